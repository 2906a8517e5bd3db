# SPDX-License-Identifier: Apache-2.0
"""KVM_MEMORY_ENCRYPT_OP: every refusal in the kernel's order, and a launch."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.kvm import (
    Ioctl,
    SevCmd,
    SevInit,
    SnpLaunchFinish,
    SnpLaunchStart,
    SnpLaunchUpdate,
)
from snpcerts.abi.psp import SevStatus
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.kvm.vm import Vm
from tests.emulator.id_blocks import key_digest, new_key, signed
from tests.emulator.kvm_calls import BAD, COMMAND, DATA, MEMORY, POLICY, SEV_FD, Process
from tests.emulator.kvm_rig import make_platform


def failing(call: Callable[[], Any]) -> int:
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno is not None
    return raised.value.errno


def initialised(process: Process) -> Vm:
    vm = process.create_vm()
    process.init2(vm)
    return vm


def started(process: Process) -> Vm:
    vm = initialised(process)
    process.give_memory(vm)
    process.start(vm)
    return vm


# Before any handler.


def test_without_sev_even_a_null_argument_is_enotty() -> None:
    process = Process(make_platform(sev=False))
    vm = process.create_vm(0)
    for argument in (0, COMMAND, BAD):
        assert failing(partial(process.ioctl, vm, Ioctl.MEMORY_ENCRYPT_OP, argument)) == (
            errno.ENOTTY
        )


def test_null_argument_asks_whether_sev_is_there() -> None:
    process = Process()
    assert process.ioctl(process.create_vm(0), Ioctl.MEMORY_ENCRYPT_OP, 0) == 0


def test_unreadable_command_is_efault() -> None:
    process = Process()
    assert failing(lambda: process.ioctl(process.create_vm(), Ioctl.MEMORY_ENCRYPT_OP, BAD)) == (
        errno.EFAULT
    )


@pytest.mark.parametrize("command", [0, 1, 2, 16, 21, 22, 50, 99])
def test_older_commands_on_an_snp_guest_are_eperm(command: int) -> None:
    process = Process()
    vm = initialised(process)
    assert failing(lambda: process.sev(vm, command, SevInit())) == errno.EPERM


@pytest.mark.parametrize("command", [104, 105, 1000, 2**32 - 1, 10, 14, 19, 23, 99])
def test_unknown_command_is_einval_and_not_written_back(command: int) -> None:
    process = Process()
    vm = process.create_vm()
    process.arena.written.clear()
    assert failing(lambda: process.sev(vm, command, error=7)) == errno.EINVAL
    assert process.arena.written == [(COMMAND, SevCmd.SIZE)]  # the test's own write


def test_the_certificate_command_is_unknown_to_an_older_kernel() -> None:
    process = Process(make_platform(certs_supported=False))
    vm = initialised(process)
    assert failing(lambda: process.sev(vm, 103)) == errno.EINVAL
    assert not vm.certs_enabled


def test_the_command_is_copied_back_even_when_it_failed() -> None:
    process = Process()
    vm = process.create_vm()
    process.arena.write(COMMAND, SevCmd(id=100, data=BAD, error=9, sev_fd=3).pack())
    process.arena.bytes[4:8] = b"\xaa" * 4  # padding stays
    process.arena.written.clear()
    assert failing(lambda: process.ioctl(vm, Ioctl.MEMORY_ENCRYPT_OP, COMMAND)) == errno.ENOTTY
    assert process.arena.written == [(COMMAND, SevCmd.SIZE)]
    assert process.arena.read(COMMAND + 4, 4) == b"\xaa" * 4
    assert process.command() == SevCmd(id=100, data=BAD, error=9, sev_fd=3)


def test_failing_copy_back_is_efault_though_the_command_was_done() -> None:
    process = Process()
    vm = initialised(process)
    process.arena.write(COMMAND, SevCmd(id=103).pack())

    def unwritable(address: int, data: bytes) -> None:
        raise OSError(errno.EFAULT, "read-only")

    process.arena.write = unwritable  # type: ignore[method-assign]  # a page made read-only
    assert failing(lambda: process.ioctl(vm, Ioctl.MEMORY_ENCRYPT_OP, COMMAND)) == errno.EFAULT
    assert vm.certs_enabled


# INIT2.


@pytest.mark.parametrize(
    "fields",
    [{"flags": 1}, {"vmsa_features": 1}, {"ghcb_version": 3}, {"ghcb_version": 1}],
)
def test_init2_parameters_that_kvm_refuses(fields: dict[str, int]) -> None:
    process = Process()
    vm = process.create_vm()
    assert failing(lambda: process.init2(vm, **fields)) == errno.EINVAL
    assert not vm.snp


@pytest.mark.parametrize("fields", [{}, {"ghcb_version": 2}, {"vmsa_features": 1 << 5}])
def test_init2_makes_the_vm_an_snp_guest(fields: dict[str, int]) -> None:
    process = Process()
    vm = process.create_vm()
    process.init2(vm, **fields)
    assert vm.snp
    assert vm.ghcb_version == 2


def test_init2_needs_an_snp_vm_no_vcpu_and_readable_data() -> None:
    process = Process()
    assert failing(lambda: process.init2(process.create_vm(0))) == errno.EINVAL
    vm = process.create_vm()
    assert failing(lambda: process.sev(vm, 22, BAD)) == errno.EFAULT
    process.create_vcpu(vm)
    assert failing(lambda: process.init2(vm)) == errno.EINVAL


def test_init2_a_second_time_is_eperm() -> None:
    process = Process()
    vm = initialised(process)
    assert failing(lambda: process.init2(vm)) == errno.EPERM


def test_init2_takes_an_asid() -> None:
    process = Process(make_platform(asids=1))
    vm = initialised(process)
    assert failing(lambda: process.init2(process.create_vm())) == errno.EBUSY
    vm.close()
    process.init2(process.create_vm())
    none = Process(make_platform(asids=0))
    assert failing(lambda: none.init2(none.create_vm())) == errno.ENOTTY


# SNP_ENABLE_REQ_CERTS.


def test_enabling_certificates_may_be_repeated_and_touches_nothing_else() -> None:
    process = Process()
    vm = initialised(process)
    for _ in range(2):
        process.sev(vm, 103, BAD, sev_fd=77, error=5)
        assert process.command() == SevCmd(id=103, data=BAD, error=5, sev_fd=77)
    assert vm.certs_enabled


def test_enabling_certificates_needs_an_initialised_snp_guest_without_vcpus() -> None:
    process = Process()
    assert failing(lambda: process.sev(process.create_vm(0), 103)) == errno.EINVAL
    vm = process.create_vm()
    assert failing(lambda: process.sev(vm, 103)) == errno.EINVAL
    process.init2(vm)
    process.create_vcpu(vm)
    assert failing(lambda: process.sev(vm, 103)) == errno.EINVAL
    assert not vm.certs_enabled


def test_certificates_may_be_enabled_after_launch_start() -> None:
    process = Process()
    vm = started(process)
    process.sev(vm, 103)
    assert vm.certs_enabled


# SNP_LAUNCH_START.


def test_start_of_a_vm_that_is_not_an_snp_guest_is_enotty() -> None:
    process = Process()
    for vm in (process.create_vm(0), process.create_vm()):
        assert failing(partial(process.start, vm)) == errno.ENOTTY


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"flags": 1}, errno.EINVAL),
        ({"policy": 1 << 16}, errno.EINVAL),
        ({"policy": 1 << 17 | 1 << 18}, errno.EINVAL),
        ({"policy": 1 << 17 | 1 << 40}, errno.EINVAL),
    ],
)
def test_start_parameters_that_kvm_refuses(fields: dict[str, int], expected: int) -> None:
    process = Process()
    vm = initialised(process)
    assert failing(lambda: process.start(vm, **fields)) == expected
    process.start(vm)
    assert failing(lambda: process.start(vm)) == errno.EINVAL  # there is a context now


def test_start_with_unreadable_data_is_efault() -> None:
    process = Process()
    assert failing(lambda: process.sev(initialised(process), 100, BAD)) == errno.EFAULT


@pytest.mark.parametrize("descriptor", [99, 6, 2**32 - 1])
def test_start_without_the_sev_device_is_enotty(descriptor: int) -> None:
    """KVM then reports that there is no context, instead of the wrong descriptor (EBADF)."""
    process = Process()
    vm = initialised(process)
    process.devices[6] = process.kvm
    start = SnpLaunchStart(policy=POLICY)
    assert failing(lambda: process.sev(vm, 100, start, sev_fd=descriptor)) == errno.ENOTTY
    assert vm.context is None


def test_start_that_the_firmware_refuses_is_eio_with_its_status() -> None:
    process = Process()
    vm = initialised(process)
    assert failing(lambda: process.start(vm, policy=1 << 17)) == errno.EIO  # SMT not allowed
    assert process.command().error == SevStatus.POLICY_FAILURE
    process.start(vm)
    assert process.command().error == 0


# SNP_LAUNCH_UPDATE.


def test_update_advances_its_structure() -> None:
    process = Process()
    vm = started(process)
    process.update(vm, gfn_start=2, len=0x3000)
    after = SnpLaunchUpdate.unpack(process.arena.read(DATA, SnpLaunchUpdate.SIZE))
    assert (after.gfn_start, after.uaddr, after.len) == (5, MEMORY + 0x3000, 0)
    process.update(vm, gfn_start=5, len=0x1000, type=3, uaddr=0)
    after = SnpLaunchUpdate.unpack(process.arena.read(DATA, SnpLaunchUpdate.SIZE))
    assert (after.gfn_start, after.uaddr, after.len) == (6, 0, 0)


def test_update_stops_at_the_end_of_the_slot_and_at_what_was_taken() -> None:
    process = Process()
    vm = started(process)
    process.update(vm, gfn_start=0x1A, len=0x8000, type=3)
    after = SnpLaunchUpdate.unpack(process.arena.read(DATA, SnpLaunchUpdate.SIZE))
    assert (after.gfn_start, after.len) == (0x1C, 0x6000)
    assert failing(lambda: process.update(vm, gfn_start=0x1B)) == errno.EIO


@pytest.mark.parametrize(
    "fields",
    [
        {"len": 0},
        {"len": 0x1001},
        {"flags": 1},
        {"type": 0},
        {"type": 2},
        {"type": 7},
        {"uaddr": MEMORY + 1},
        {"gfn_start": 0x1C},
        {"gfn_start": 2**52},
        {"gfn_start": 2**64 - 1},
    ],
)
def test_update_parameters_that_kvm_refuses(fields: dict[str, int]) -> None:
    process = Process()
    assert failing(lambda: process.update(started(process), **fields)) == errno.EINVAL


@pytest.mark.parametrize(
    ("series", "code", "error"), [("7.2", errno.EIO, 0), ("7.3", errno.EINVAL, 0x1234)]
)
def test_update_without_a_source_ends_as_in_each_release(
    series: str, code: int, error: int
) -> None:
    """7.3 checks uaddr in ``snp_launch_update``, 7.2 only in ``sev_gmem_post_populate``."""
    process = Process(kernel=KernelRelease(series))
    vm = started(process)
    update = SnpLaunchUpdate(uaddr=0, len=0x1000, type=1)
    assert failing(lambda: process.sev(vm, 101, update, error=0x1234)) == code
    assert process.command().error == error


def test_update_needs_a_context_and_private_memory() -> None:
    process = Process()
    assert failing(lambda: process.update(process.create_vm())) == errno.EINVAL
    vm = initialised(process)
    process.give_memory(vm)
    assert failing(lambda: process.update(vm)) == errno.EINVAL
    process.start(vm)
    assert failing(lambda: process.sev(vm, 101, BAD)) == errno.EFAULT
    vm.private.remove(0, 0x1000)
    assert failing(lambda: process.update(vm)) == errno.EIO
    assert failing(lambda: process.update(vm, gfn_start=1, uaddr=BAD & ~0xFFF)) == errno.EIO
    assert failing(lambda: process.update(vm, gfn_start=1, sev_fd=99)) == errno.EIO
    process.update(vm, gfn_start=1)


def test_the_secrets_page_is_kept_for_the_guest() -> None:
    process = Process()
    vm = started(process)
    before = process.arena.read(MEMORY + 0x3000, 0x1000)
    process.update(vm, gfn_start=3, type=5)
    assert vm.context is not None
    assert vm.secrets is not None
    gpa, page = vm.secrets
    assert gpa == 0x3000
    assert page[0x20:0x40] == vm.context.vmpcks[0]
    assert process.arena.read(MEMORY + 0x3000, 0x1000) == before  # it is private


# SNP_LAUNCH_FINISH.


def test_finish_refusals() -> None:
    process = Process()
    assert failing(lambda: process.finish(process.create_vm())) == errno.ENOTTY
    vm = initialised(process)
    assert failing(lambda: process.finish(vm)) == errno.EINVAL
    process.start(vm)
    assert failing(lambda: process.finish(vm, flags=1)) == errno.EINVAL
    assert failing(lambda: process.sev(vm, 102, BAD)) == errno.EFAULT
    bad_block = SnpLaunchFinish(id_block_en=1, id_block_uaddr=BAD, id_auth_uaddr=BAD)
    assert failing(lambda: process.sev(vm, 102, bad_block)) == errno.EFAULT
    process.finish(vm, sev_fd=99)  # nothing to do with it without a vCPU
    assert failing(lambda: process.finish(vm)) == errno.EIO
    assert process.command().error == SevStatus.INVALID_GUEST_STATE


def test_finish_with_a_vcpu_needs_the_sev_device() -> None:
    process = Process()
    vm = started(process)
    process.create_vcpu(vm)
    assert failing(lambda: process.finish(vm, sev_fd=99)) == errno.EBADF
    process.finish(vm, host_data=b"h" * 32)
    assert vm.context is not None
    assert vm.context.host_data == b"h" * 32


def test_the_id_block_reaches_the_firmware() -> None:
    process = Process()
    vm = started(process)
    assert vm.context is not None
    id_key, author_key = new_key(), new_key()
    for author in (False, True):
        block, auth = signed(
            vm.context.measurement,
            vm.context.policy,
            id_key=id_key,
            author_key=author_key,
            family_id=b"F" * 16,
            guest_svn=9,
            algorithms=(1, 1 if author else 7),  # without an author key its kind is ignored
        )
        process.arena.write(MEMORY, block)
        process.arena.write(MEMORY + 0x1000, auth)
        finish = SnpLaunchFinish(
            id_block_en=1, id_block_uaddr=MEMORY, id_auth_uaddr=MEMORY + 0x1000, auth_key_en=author
        )
        process.sev(vm, 102, finish)
        assert vm.context.id_block.family_id == b"F" * 16
        assert vm.context.id_block.guest_svn == 9
        assert vm.context.id_block.id_key_digest == key_digest(id_key)
        vouches = key_digest(author_key) if author else bytes(48)
        assert vm.context.id_block.author_key_digest == vouches
        vm = started(process)
        assert vm.context is not None


def test_the_last_descriptor_takes_the_guest_with_it() -> None:
    process = Process()
    vm, (vcpu,) = process.launch()
    firmware = process.platform.firmware
    assert list(process.platform.vms.values()) == [vm]
    vm.close()
    assert firmware.snp_platform_status().guest_count == 1
    vcpu.close()
    assert firmware.snp_platform_status().guest_count == 0
    assert process.platform.vms == {}


# Whatever a VMM passes.


@given(
    st.sampled_from([0, 2, 22, 22, 100, 100, 101, 101, 102, 103, 104]) | st.integers(0, 2**32 - 1),
    st.binary(min_size=96, max_size=96),
    st.sampled_from([DATA, DATA, BAD, 0, 2**64 - 8]),
    st.sampled_from([SEV_FD, 0, 2**32 - 1]),
    st.booleans(),
)
def test_hostile_commands_raise_only_oserror(
    command: int, data: bytes, pointer: int, sev_fd: int, ready: bool
) -> None:
    process = Process()
    vm = started(process) if ready else process.create_vm()
    process.arena.write(DATA, data)
    try:
        process.sev(vm, command, pointer, sev_fd=sev_fd)
    except OSError:
        return


@given(
    st.sampled_from([0x4020AE46, 0x40A0AE49, 0xC040AED4, 0x4020AED2, 0x4068AEA3, 0x8010AEBB])
    | st.sampled_from([0xAE41, 0x8010AEBC, 0xAE03, 0xAE60])
    | st.integers(0, 2**32 - 1),
    st.binary(min_size=160, max_size=160),
    st.sampled_from([COMMAND, BAD, 2**64 - 1]),
)
def test_hostile_vm_ioctls_raise_only_oserror(request_: int, data: bytes, argument: int) -> None:
    process = Process()
    vm = initialised(process)
    process.arena.write(COMMAND, data)
    try:
        process.ioctl(vm, request_, argument)
    except OSError:
        return


def test_unknown_vm_ioctls_are_enotty_and_other_processes_get_eio() -> None:
    process = Process()
    vm = process.create_vm()
    for request in (0xAEFF, 0x5401, 0xAE80):
        assert failing(partial(process.ioctl, vm, request)) == errno.ENOTTY
    assert failing(lambda: vm.ioctl(process.caller(pid=2), 0xAE03, 3)) == errno.EIO


def test_vcpu_ids() -> None:
    process = Process()
    vm = process.create_vm()
    process.create_vcpu(vm, 3)
    assert failing(lambda: process.create_vcpu(vm, 3)) == errno.EEXIST
    assert failing(lambda: process.create_vcpu(vm, 4096)) == errno.EINVAL
