# SPDX-License-Identifier: Apache-2.0
"""``/dev/kvm``: capabilities, device attributes, VM types."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.kvm import Cap, DeviceAttr, Ioctl, VmType
from tests.emulator.kvm_calls import BAD, COMMAND, DATA, Process
from tests.emulator.kvm_rig import make_platform


def get(process: Process, group: int, attr: int, *, addr: int = DATA, flags: int = 0) -> int:
    wanted = DeviceAttr(flags, group, attr, addr)
    assert process.ioctl(process.kvm, Ioctl.GET_DEVICE_ATTR, wanted) == 0
    return int.from_bytes(process.arena.read(DATA, 8), "little")


def has(process: Process, group: int, attr: int, *, addr: int = 0, flags: int = 0) -> int:
    result = process.ioctl(process.kvm, Ioctl.HAS_DEVICE_ATTR, DeviceAttr(flags, group, attr, addr))
    assert isinstance(result, int)
    return result


def test_api_version_and_mmap_size_take_no_argument() -> None:
    process = Process()
    assert process.ioctl(process.kvm, Ioctl.GET_API_VERSION) == 12
    assert process.ioctl(process.kvm, Ioctl.GET_VCPU_MMAP_SIZE) == 12288
    for request in (Ioctl.GET_API_VERSION, Ioctl.GET_VCPU_MMAP_SIZE):
        with pytest.raises(OSError) as raised:
            process.ioctl(process.kvm, request, 1)
        assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize("request_", [0xAEFF, 0x5401, 0x4018AEE1, 0xAE41, 0x1234, 2**32 - 1])
def test_unknown_system_ioctls_are_einval(request_: int) -> None:
    """A real kernel answers EINVAL even to requests that are not KVM's."""
    with pytest.raises(OSError) as raised:
        Process().ioctl(Process().kvm, request_)
    assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("flags", "types"),
    [({}, {0, 4}), ({"snp": False}, {0}), ({"sev": False}, {0})],
)
def test_vm_types_are_those_of_the_bitmap(flags: dict[str, bool], types: set[int]) -> None:
    process = Process(make_platform(**flags))
    bitmap = process.ioctl(process.kvm, Ioctl.CHECK_EXTENSION, Cap.VM_TYPES)
    assert isinstance(bitmap, int)
    assert {kind for kind in range(64) if bitmap >> kind & 1} == types
    for kind in [*range(8), 63, 64, 2**64 - 1]:
        if kind in types:
            assert process.create_vm(kind).kind == VmType(kind)
        else:
            with pytest.raises(OSError) as raised:
                process.create_vm(kind)
            assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("cap", "value"),
    [(3, 1), (89, 1), (136, 1), (201, 1 << 12), (209, 1), (231, 1), (233, 8), (234, 1), (9999, 0)],
)
def test_capabilities(cap: int, value: int) -> None:
    process = Process()
    assert process.ioctl(process.kvm, Ioctl.CHECK_EXTENSION, cap) == value
    assert process.ioctl(process.create_vm(), Ioctl.CHECK_EXTENSION, cap) == value


def test_ordinary_vms_have_no_private_memory() -> None:
    process = Process()
    vm = process.create_vm(0)
    assert process.ioctl(vm, Ioctl.CHECK_EXTENSION, Cap.MEMORY_ATTRIBUTES) == 0


def test_known_attribute_has_and_gets() -> None:
    process = Process()
    assert has(process, 1, 2) == 0
    assert get(process, 1, 2) == 1
    assert get(process, 1, 0) == 1 << 5 | 1 << 9
    assert get(process, 1, 1) & 1 << 17
    assert get(process, 0, 0) == 7


def test_has_does_not_use_the_address_and_get_faults_on_it() -> None:
    process = Process()
    for addr in (0, BAD, 2**64 - 1):
        assert has(process, 1, 2, addr=addr) == 0
        with pytest.raises(OSError) as raised:
            get(process, 1, 2, addr=addr)
        assert raised.value.errno == errno.EFAULT


@pytest.mark.parametrize(
    ("flags", "group", "attr"),
    [
        ({}, 1, 3),
        ({}, 2, 2),
        ({}, 0, 1),
        ({"sev": False}, 1, 2),
        ({"sev": False}, 1, 0),
        ({"certs_supported": False}, 1, 2),
    ],
)
def test_unknown_attribute_is_enxio(flags: dict[str, bool], group: int, attr: int) -> None:
    process = Process(make_platform(**flags))
    for call in (has, get):
        with pytest.raises(OSError) as raised:
            call(process, group, attr, addr=0)
        assert raised.value.errno == errno.ENXIO


def test_with_snp_off_the_attribute_is_there_with_value_0() -> None:
    process = Process(make_platform(snp=False))
    assert has(process, 1, 2) == 0
    assert get(process, 1, 2) == 0


def test_attribute_flags_are_ignored() -> None:
    process = Process()
    assert has(process, 1, 2, flags=0xFFFFFFFF) == 0
    assert get(process, 1, 2, flags=0xFFFFFFFF) == 1


@pytest.mark.parametrize("request_", [Ioctl.HAS_DEVICE_ATTR, Ioctl.GET_DEVICE_ATTR])
def test_unreadable_attribute_structure_is_efault(request_: int) -> None:
    process = Process()
    with pytest.raises(OSError) as raised:
        process.ioctl(process.kvm, request_, BAD)
    assert raised.value.errno == errno.EFAULT


def test_supported_cpuid_fills_the_table_or_says_it_is_too_small() -> None:
    process = Process()
    process.arena.write(COMMAND, struct.pack("<II", 2, 0))
    with pytest.raises(OSError) as raised:
        process.ioctl(process.kvm, 0xC008AE05, COMMAND)
    assert raised.value.errno == errno.E2BIG
    process.arena.write(COMMAND, struct.pack("<II", 64, 0))
    assert process.ioctl(process.kvm, 0xC008AE05, COMMAND) == 0
    (count,) = struct.unpack("<I", process.arena.read(COMMAND, 4))
    table = process.arena.read(COMMAND + 8, 40 * count)
    functions = {entry[0]: entry[3:7] for entry in struct.iter_unpack("<7I12x", table)}
    assert functions[0][1:] == (0x68747541, 0x444D4163, 0x69746E65), "AuthenticAMD"
    assert functions[0x8000_001F][0] & 0b10010 == 0b10010, "SEV and SNP"


@given(st.integers(0, 2**32 - 1) | st.sampled_from(list(Ioctl)), st.integers(0, 2**64 - 1))
def test_no_system_ioctl_raises_anything_but_oserror(request_: int, argument: int) -> None:
    process = Process()
    try:
        process.ioctl(process.kvm, request_, argument)
    except OSError:
        return
