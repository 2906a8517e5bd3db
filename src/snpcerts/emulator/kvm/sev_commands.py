# SPDX-License-Identifier: Apache-2.0
"""KVM_MEMORY_ENCRYPT_OP: the commands that initialise and launch SNP VMs and enable certificates.

Source: Linux ``arch/x86/kvm/svm/sev.c`` with certificate fetching. The order of checks is the
kernel's. Only SNP guests are emulated. Commands for SEV and SEV-ES guests fail as they do on a VM
that is not an SEV guest.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from snpcerts.abi.cstruct import CStruct
from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.abi.kvm import (
    SEV_COMMAND_SNP_FIRST,
    PageType,
    SevCmd,
    SevCommand,
    SevInit,
    SnpLaunchFinish,
    SnpLaunchStart,
    SnpLaunchUpdate,
    VmType,
)
from snpcerts.abi.psp import SevStatus
from snpcerts.abi.report import POLICY_RESERVED_ONE
from snpcerts.emulator.guest.memory_slots import MemorySlot, MemorySlots
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.private_ranges import PrivateRanges
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.kvm.vcpu import Vcpu
from snpcerts.emulator.psp.firmware import CpuidPageError, FirmwareError, GuestContext
from snpcerts.emulator.psp.guest_context import PAGE_TYPE_VMSA
from snpcerts.emulator.psp.id_block import ID_AUTH_SIZE, ID_BLOCK_SIZE
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.emulator.psp.vmsa import INITIAL_VMSA_GPA
from snpcerts.emulator.syscall.device import Caller

log = logging.getLogger(__name__)

GHCB_VERSION_MAX = 2
SECURE_TSC: Final = 1 << 9  # a bit of vmsa_features
# The SEV and SEV-ES commands, 0 (INIT) to 21 (SEND_CANCEL), except the three that KVM does not
# implement: SEND_UPDATE_VMSA, RECEIVE_UPDATE_VMSA and CERT_EXPORT.
_OLDER: Final = frozenset(range(22)) - {10, 14, 19}
_INIT_COMMANDS: Final = (SevCommand.INIT, SevCommand.ES_INIT)

_S = TypeVar("_S", bound=CStruct)


class LaunchUpdateError(OSError):
    """KVM itself has refused a launch update: EIO with firmware status 0."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "no page could be populated")


class SevVm(Protocol):
    """The VM that the SEV commands act on."""

    platform: Platform
    kind: VmType
    slots: MemorySlots
    private: PrivateRanges
    vcpus: dict[int, Vcpu]
    initialised: bool
    certs_enabled: bool
    ghcb_version: int
    vmsa_features: int
    tsc_khz: int
    kernel: KernelRelease
    context: GuestContext | None
    sev_fd: int | None
    secrets: tuple[int, bytes] | None
    request_page: bytes
    response_page: bytes

    @property
    def snp(self) -> bool:
        """Whether the VM is an initialised SNP guest."""

    @property
    def secure_tsc(self) -> bool:
        """Whether the firmware controls the guest's TSC."""


class SevCommands:
    """Handles the SEV commands of one VM."""

    def __init__(self, vm: SevVm) -> None:
        self._vm = vm
        self._error = 0  # the firmware error of the current command so far
        self._populated: set[int] = set()  # numbers of the pages that the firmware has accepted
        self._handlers: dict[int, Callable[[Caller, SevCmd], int]] = {
            SevCommand.INIT2: self._init2,
            SevCommand.SNP_LAUNCH_START: self._launch_start,
            SevCommand.SNP_LAUNCH_UPDATE: self._launch_update,
            SevCommand.SNP_LAUNCH_FINISH: self._launch_finish,
        }
        if vm.platform.certs_supported:
            self._handlers[SevCommand.SNP_ENABLE_REQ_CERTS] = self._enable_req_certs

    def command(self, caller: Caller, argument: int) -> None:
        """Handle the ``struct kvm_sev_cmd`` at ``argument`` and copy it back, even after an
        error.
        """
        if not self._vm.platform.sev:
            raise OSError(errno.ENOTTY, "the processor or the kernel does not support SEV")
        if argument == 0:
            return
        stored = caller.memory.read(argument, SevCmd.SIZE)
        given = SevCmd.unpack(stored)
        if self._vm.snp and given.id < SEV_COMMAND_SNP_FIRST:
            raise OSError(errno.EPERM, f"SEV command {given.id} is not for SNP guests")
        handler = self._handlers.get(given.id)
        if handler is None and given.id not in _OLDER:
            raise OSError(errno.EINVAL, f"unknown SEV command {given.id}")
        outcome: OSError | None = None
        error = self._error = given.error
        try:
            error = self._older(given) if handler is None else handler(caller, given)
        except FirmwareError as refused:
            log.info("SEV command %d: %s", given.id, refused)
            error = refused.status
            outcome = OSError(errno.EIO, str(refused))
        except LaunchUpdateError as failed:
            error, outcome = SevStatus.SUCCESS, failed
        except OSError as failed:
            error, outcome = self._error, failed
        caller.memory.write(argument, _with_error(stored, error))
        if outcome is not None:
            raise outcome

    def guest_request(self, caller: Caller) -> int:
        """Issue SNP_GUEST_REQUEST with the VM's request and response pages; return the firmware's
        status.
        """
        self._reach_firmware(caller, self._vm.sev_fd)
        vm = self._vm
        if vm.context is None:
            raise OSError(errno.EINVAL, "SNP_GUEST_REQUEST: the guest's launch has not started")
        try:
            vm.response_page = vm.platform.firmware.guest_request(vm.context, vm.request_page)
        except FirmwareError as refused:
            log.debug("SNP_GUEST_REQUEST: %s", refused)
            return refused.status
        return SevStatus.SUCCESS

    def _reach_firmware(self, caller: Caller, descriptor: int | None) -> None:
        """Raise ``OSError`` if no command can reach the firmware.

        The errno is EBADF if ``descriptor`` is not an open ``/dev/sev``, otherwise the platform's
        ``psp_errno``.
        """
        device = None if descriptor is None else caller.find(descriptor)
        if not isinstance(device, SevDevice):
            raise OSError(errno.EBADF, "sev_fd is not a descriptor of /dev/sev")
        if self._vm.platform.psp_errno:
            raise OSError(self._vm.platform.psp_errno, "the PSP does not answer")

    # One method per command; each returns the firmware error to copy back.

    def _older(self, given: SevCmd) -> int:
        if given.id in _INIT_COMMANDS and self._vm.kind != VmType.DEFAULT:
            raise OSError(errno.EINVAL, "this VM type must be initialised with INIT2")
        log.info("SEV command %d is not emulated", given.id)
        raise OSError(errno.ENOTTY, f"SEV command {given.id} is only for SEV guests")

    def _init2(self, caller: Caller, given: SevCmd) -> int:
        vm = self._vm
        if vm.kind != VmType.SNP:
            raise OSError(errno.EINVAL, "this VM type does not support INIT2")
        init = _copied(SevInit, caller, given.data)
        if (
            vm.vcpus
            or init.flags
            or init.vmsa_features & ~vm.platform.vmsa_features
            or init.ghcb_version > GHCB_VERSION_MAX
            or init.ghcb_version == 1
        ):
            raise OSError(
                errno.EINVAL, "INIT2: a parameter is invalid, or the VM already has vCPUs"
            )
        if vm.platform.asids == 0:
            raise OSError(errno.ENOTTY, "INIT2: the host has no ASIDs for SNP guests")
        if vm.platform.asids_in_use >= vm.platform.asids:
            raise OSError(errno.EBUSY, "INIT2: all ASIDs for SNP guests are in use")
        vm.ghcb_version = init.ghcb_version or GHCB_VERSION_MAX
        vm.vmsa_features = init.vmsa_features
        vm.initialised = True
        vm.request_page = bytes(PAGE_SIZE)
        vm.response_page = bytes(PAGE_SIZE)
        return given.error

    def _enable_req_certs(self, _: Caller, given: SevCmd) -> int:
        if self._vm.vcpus or not self._vm.snp:
            raise OSError(
                errno.EINVAL,
                "SNP_ENABLE_REQ_CERTS is only allowed after INIT2 of an SNP guest and before "
                "its first vCPU",
            )
        self._vm.certs_enabled = True
        return given.error

    def _launch_start(self, caller: Caller, given: SevCmd) -> int:
        vm = self._vm
        if not vm.snp:
            raise OSError(errno.ENOTTY, "SNP_LAUNCH_START is only for SNP guests, after INIT2")
        start = _copied(SnpLaunchStart, caller, given.data)
        if (
            vm.context is not None
            or start.flags
            or start.policy & ~vm.platform.policy_bits
            or not start.policy & POLICY_RESERVED_ONE
        ):
            raise OSError(
                errno.EINVAL,
                "SNP_LAUNCH_START: the launch has already started, or KVM does not accept the "
                "flags or the policy",
            )
        try:
            self._reach_firmware(caller, given.sev_fd)
        except OSError:
            raise OSError(
                errno.ENOTTY, "SNP_LAUNCH_START: the firmware cannot create a guest context"
            ) from None
        vm.sev_fd = given.sev_fd
        vm.context = vm.platform.firmware.launch_start(
            start.policy,
            gosvw=start.gosvw,
            desired_tsc_khz=vm.tsc_khz if vm.secure_tsc else 0,
        )
        return SevStatus.SUCCESS

    def _launch_update(self, caller: Caller, given: SevCmd) -> int:
        vm = self._vm
        if not vm.snp or vm.context is None:
            raise OSError(errno.EINVAL, "SNP_LAUNCH_UPDATE must come after SNP_LAUNCH_START")
        update = _copied(SnpLaunchUpdate, caller, given.data)
        slot = vm.slots.find(update.gfn_start * PAGE_SIZE)
        if (
            update.flags
            or update.len == 0
            or update.len % PAGE_SIZE
            or update.type not in frozenset(PageType)
            or (update.type != PageType.ZERO and self._bad_source(update.uaddr))
            or slot is None
            or slot.memfd is None
        ):
            raise OSError(
                errno.EINVAL,
                "SNP_LAUNCH_UPDATE: expected no flags, a known page type, whole pages, and a "
                "memory slot with a guest_memfd",
            )
        pages, error = self._populate(caller, given.sev_fd, vm.context, slot, update)
        if pages == 0:
            raise error or LaunchUpdateError
        advanced = replace(
            update,
            gfn_start=update.gfn_start + pages,
            len=update.len - pages * PAGE_SIZE,
            uaddr=update.uaddr + (0 if update.type == PageType.ZERO else pages * PAGE_SIZE),
        )
        caller.memory.write(given.data, advanced.pack())
        return given.error  # KVM changes this field only if the firmware refused a page

    def _bad_source(self, address: int) -> bool:
        if address % PAGE_SIZE:
            return True
        return not address and self._vm.kernel.refuses_launch_update_without_source

    def _populate(
        self,
        caller: Caller,
        sev_fd: int,
        context: GuestContext,
        slot: MemorySlot,
        update: SnpLaunchUpdate,
    ) -> tuple[int, FirmwareError | None]:
        """Pass the pages of ``update`` to the firmware.

        Returns how many it accepted, and the error if it refused one. Stops at the end of the slot,
        at a page that is not private, was accepted before or cannot be read, and if the firmware
        cannot be reached.
        """
        vm, kind = self._vm, PageType(update.type)
        available = slot.end // PAGE_SIZE - update.gfn_start
        for done in range(min(update.len // PAGE_SIZE, available)):
            page = update.gfn_start + done
            gpa = page * PAGE_SIZE
            if page in self._populated or not vm.private.covers(gpa, gpa + PAGE_SIZE):
                return done, None
            try:
                self._reach_firmware(caller, sev_fd)
                contents = bytes(PAGE_SIZE)
                if kind is not PageType.ZERO:
                    contents = caller.memory.read(update.uaddr + done * PAGE_SIZE, PAGE_SIZE)
            except OSError:
                return done, None
            try:
                secrets = vm.platform.firmware.launch_update(context, gpa, kind, contents)
            except FirmwareError as refused:
                if isinstance(refused, CpuidPageError):
                    # Write the corrected page back, so that the VMM can report the difference.
                    caller.memory.write(update.uaddr + done * PAGE_SIZE, refused.page)
                return done, refused
            self._populated.add(page)
            if secrets is not None:
                vm.secrets = (gpa, secrets)
        return min(update.len // PAGE_SIZE, available), None

    def _launch_finish(self, caller: Caller, given: SevCmd) -> int:
        vm = self._vm
        if not vm.snp:
            raise OSError(errno.ENOTTY, "SNP_LAUNCH_FINISH is only for SNP guests, after INIT2")
        if vm.context is None:
            raise OSError(errno.EINVAL, "SNP_LAUNCH_FINISH must come after SNP_LAUNCH_START")
        finish = _copied(SnpLaunchFinish, caller, given.data)
        if finish.flags:
            raise OSError(errno.EINVAL, f"unknown SNP_LAUNCH_FINISH flags: {finish.flags:#x}")
        self._launch_vmsas(caller, given.sev_fd, vm.context)
        block = None
        if finish.id_block_en:
            block = (
                _blob(caller, finish.id_block_uaddr, ID_BLOCK_SIZE),
                _blob(caller, finish.id_auth_uaddr, ID_AUTH_SIZE),
            )
        self._reach_firmware(caller, vm.sev_fd)
        vm.platform.firmware.launch_finish(
            vm.context,
            finish.host_data,
            id_block=block,
            author_key_en=bool(finish.id_block_en and finish.auth_key_en),
            vcek_disabled=bool(finish.vcek_disabled),
        )
        for vcpu in vm.vcpus.values():
            vcpu.launched = True
        return SevStatus.SUCCESS

    def _launch_vmsas(self, caller: Caller, sev_fd: int, context: GuestContext) -> None:
        """Pass the registers of all vCPUs to the firmware, in the order in which the vCPUs were
        created. From then on the VMM cannot access them.
        """
        vm = self._vm
        for vcpu in vm.vcpus.values():
            if vcpu.protected or vcpu.state.debugged:
                raise OSError(
                    errno.EINVAL,
                    "SNP_LAUNCH_FINISH: a vCPU has already been launched, or its DR7 is set",
                )
            self._reach_firmware(caller, sev_fd)
            page = vcpu.state.vmsa(vm.vmsa_features)
            vm.platform.firmware.launch_update(context, INITIAL_VMSA_GPA, PAGE_TYPE_VMSA, page)
            vcpu.protected = True
            self._error = SevStatus.SUCCESS


def _copied(kind: type[_S], caller: Caller, address: int) -> _S:
    return kind.unpack(caller.memory.read(address, kind.SIZE))


def _blob(caller: Caller, address: int, size: int) -> bytes:
    """Return a copy of the caller's structure for the firmware.

    Raises EINVAL for address 0, as ``psp_copy_user_blob`` does.
    """
    if not address:
        raise OSError(
            errno.EINVAL,
            "SNP_LAUNCH_FINISH: the address of the ID block or of its authentication page is 0",
        )
    return caller.memory.read(address, size)


def _with_error(stored: bytes, error: int) -> bytes:
    """Return the structure that the kernel read, padding included, with ``error`` set."""
    offset, size = SevCmd.layout()["error"]
    return stored[:offset] + error.to_bytes(size, "little") + stored[offset + size :]
