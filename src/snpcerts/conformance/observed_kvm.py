# SPDX-License-Identifier: Apache-2.0
"""The emulated KVM, with its calls recorded.

This module wraps the emulator's ``/dev/kvm``, VMs and vCPUs. A wrapper passes calls on, and records
the relevant ones in the journal. The re-entry that carries an answer can be delayed, as on a
machine whose firmware is busy. During the delay the suite sees which locks are still held.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Final, Protocol

from snpcerts.abi.kvm import (
    ATTR_SNP_REQ_CERTS,
    GROUP_SEV,
    DeviceAttr,
    Ioctl,
    SevCmd,
    SevCommand,
)
from snpcerts.conformance.journal import (
    CertsRequest,
    Enabling,
    Journal,
    firmware_track,
    vcpu_track,
)
from snpcerts.conformance.served_file import ServedFile
from snpcerts.emulator.kvm.kvm_device import KvmDevice
from snpcerts.emulator.kvm.vcpu import Vcpu
from snpcerts.emulator.kvm.vm import Vm
from snpcerts.emulator.syscall.caller_memory import ProcessMemory
from snpcerts.emulator.syscall.device import EVERY_SIGNAL, Caller, NewDescriptor, Pending, Result

RECHECK: Final = 0.002  # seconds between checks of whether a delayed call may proceed


class Observer(Protocol):
    """Owns the journal, and decides when the firmware gets an answered request."""

    journal: Journal
    served: ServedFile

    def lets_go(self, request: CertsRequest) -> bool:
        """Whether the firmware may have this answered request now."""

    def attribute_value(self) -> int | None:
        """Return the value to show for KVM_X86_SEV_SNP_REQ_CERTS, or None for the emulator's own
        value.
        """

    def reentry_error(self, request: CertsRequest) -> int:
        """Return the errno to report for this request's re-entry; 0 for the emulator's own
        errno.
        """

    def note_answer(self, request: CertsRequest) -> None:
        """Handle the VMM's answer to this request."""


class ObservedKvm:
    """An emulated ``/dev/kvm`` whose calls are recorded."""

    def __init__(self, device: KvmDevice, observer: Observer) -> None:
        self._device = device
        self._observer = observer

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        """Pass the ioctl to the device. Record attribute queries and wrap new VMs."""
        if request in (Ioctl.HAS_DEVICE_ATTR, Ioctl.GET_DEVICE_ATTR):
            self._note_attribute(caller, request, argument)
        result = self._device.ioctl(caller, request, argument)
        if request == Ioctl.GET_DEVICE_ATTR:
            self._set_attribute(caller, argument)
        if isinstance(result, NewDescriptor) and isinstance(result.device, Vm):
            return NewDescriptor(_ObservedVm(result.device, self._observer), result.shared)
        return result

    def close(self) -> None:
        """Close the emulated device."""
        self._device.close()

    def _note_attribute(self, caller: Caller, request: int, argument: int) -> None:
        attr = DeviceAttr.unpack(caller.memory.read(argument, DeviceAttr.SIZE))
        if (attr.group, attr.attr) == (GROUP_SEV, ATTR_SNP_REQ_CERTS):
            asked = self._observer.journal.attribute
            asked.has = asked.has or request == Ioctl.HAS_DEVICE_ATTR
            asked.got = asked.got or request == Ioctl.GET_DEVICE_ATTR

    def _set_attribute(self, caller: Caller, argument: int) -> None:
        value = self._observer.attribute_value()
        attr = DeviceAttr.unpack(caller.memory.read(argument, DeviceAttr.SIZE))
        if value is not None and (attr.group, attr.attr) == (GROUP_SEV, ATTR_SNP_REQ_CERTS):
            caller.memory.write(attr.addr, value.to_bytes(8, "little"))


class _ObservedVm:
    def __init__(self, vm: Vm, observer: Observer) -> None:
        self._vm = vm
        self._observer = observer

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        if request == Ioctl.MEMORY_ENCRYPT_OP and argument:
            command = SevCmd.unpack(caller.memory.read(argument, SevCmd.SIZE))
            if command.id == SevCommand.SNP_ENABLE_REQ_CERTS:
                return self._enable(caller, request, argument)
        result = self._vm.ioctl(caller, request, argument)
        if isinstance(result, NewDescriptor) and isinstance(result.device, Vcpu):
            return NewDescriptor(_ObservedVcpu(result.device, self._observer), result.shared)
        return result

    def close(self) -> None:
        self._vm.close()

    def _enable(self, caller: Caller, request: int, argument: int) -> Result:
        asked, code = self._observer.journal.attribute, 0
        try:
            return self._vm.ioctl(caller, request, argument)
        except OSError as error:
            code = error.errno or errno.EIO
            raise
        finally:
            self._observer.journal.enablings.append(
                Enabling(code, asked.got, asked.has or asked.got, len(self._vm.vcpus))
            )


class _ObservedVcpu:
    def __init__(self, vcpu: Vcpu, observer: Observer) -> None:
        self._vcpu = vcpu
        self._observer = observer
        self._index = len(vcpu.vm.vcpus) - 1 if isinstance(vcpu.vm, Vm) else 0
        self._open: CertsRequest | None = None  # exited, and not answered yet

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        if request != Ioctl.RUN:
            return self._vcpu.ioctl(caller, request, argument)
        journal = self._observer.journal
        journal.entered[self._index] = journal.entered.get(self._index, 0) + 1
        if isinstance(caller.memory, ProcessMemory):
            thread = caller.memory.pid
            same = journal.threads.get(thread, self._index) == self._index
            journal.threads[thread] = self._index if same else None
        journal.runner = self._vcpu.vm.creator or journal.runner
        answered, self._open = self._open, None
        if answered is None:
            return self._run(caller, argument, None)
        self._note_answer(answered)
        held = _Held(
            lambda: self._observer.lets_go(answered),
            lambda: self._run(caller, argument, answered),
        )
        result = held.poll()
        return held if result is None else result

    def close(self) -> None:
        self._vcpu.close()

    def _note_answer(self, request: CertsRequest) -> None:
        run = self._vcpu.run
        request.answered_at = time.monotonic()
        _, request.needed, request.ret = run.snp_req_certs
        request.immediate_exit = run.immediate_exit
        request.lock_at_answer = self._observer.served.locked(request.file)
        self._tell(f"answers: ret {_as_signed(request.ret)}, npages {request.needed}")
        self._observer.note_answer(request)

    def _tell(self, what: str) -> None:
        self._observer.journal.note(vcpu_track(self._index), what)

    def _run(self, caller: Caller, argument: int, answered: CertsRequest | None) -> Result:
        spins = self._observer.journal.spins
        immediate = bool(self._vcpu.run.immediate_exit)
        try:
            result = self._vcpu.ioctl(caller, Ioctl.RUN, argument)
        except OSError as error:
            code = error.errno or errno.EIO
            if answered is not None:
                code = self._observer.reentry_error(answered) or code
            if answered is None and immediate and code == errno.EINTR:
                spins[self._index] = spins.get(self._index, 0) + 1
            self._ended(answered, code)
            raise OSError(code, os.strerror(code)) from error
        if answered is not None:
            self._signed(answered)
        spins[self._index] = 0
        if isinstance(result, int):
            self._ended(answered, 0)
            return result
        if isinstance(result, NewDescriptor):
            return result
        return _Recorded(result, lambda code: self._ended(answered, code))

    def _ended(self, answered: CertsRequest | None, code: int) -> None:
        """Record the end of KVM_RUN: an exit (``code`` 0) or an errno."""
        if answered is not None and answered.errno is None:
            if not answered.signed:
                self._signed(answered)
            answered.errno = code
            self._tell(f"KVM_RUN ends the request: {errno.errorcode.get(code, 'a new exit')}")
        if code == 0 and self._vcpu.run.asks_for_certs:
            gpa, npages, _ = self._vcpu.run.snp_req_certs
            self._open = CertsRequest(self._index, gpa, npages, time.monotonic())
            locked = self._observer.served.locked() is not None
            self._observer.journal.begin(self._open, locked=locked)
            self._tell(f"exit for certificates: gpa {gpa:#x}, npages {npages:#x}")

    def _signed(self, request: CertsRequest) -> None:
        request.signed = True
        request.lock_when_signed = self._observer.served.locked(request.file)
        self._observer.journal.note(
            firmware_track(request.vcpu), "has the request", request.answered_at
        )


class _Held:
    """A KVM_RUN that starts only when the firmware may have the request."""

    def __init__(self, may_go: Callable[[], bool], go: Callable[[], Result]) -> None:
        self._may_go = may_go
        self._go = go
        self._gone: Pending | None = None

    @property
    def deadline(self) -> float | None:
        return time.monotonic() + RECHECK if self._gone is None else self._gone.deadline

    @property
    def blocked(self) -> int | None:
        # A signal does not interrupt the wait for the firmware, but it interrupts the guest.
        return EVERY_SIGNAL if self._gone is None else self._gone.blocked

    def poll(self) -> int | None:
        if self._gone is not None:
            return self._gone.poll()
        if not self._may_go():
            return None
        result = self._go()
        if isinstance(result, int):
            return result
        if isinstance(result, NewDescriptor):
            raise OSError(errno.EINVAL, "KVM_RUN: expected a result, found a new descriptor")
        self._gone = result
        return None

    def cancel(self) -> None:
        if self._gone is not None:
            self._gone.cancel()


class _Recorded:
    """A pending KVM_RUN whose end is recorded."""

    def __init__(self, pending: Pending, ended: Callable[[int], None]) -> None:
        self._pending = pending
        self._ended = ended

    @property
    def deadline(self) -> float | None:
        return self._pending.deadline

    @property
    def blocked(self) -> int | None:
        return self._pending.blocked

    def poll(self) -> int | None:
        try:
            result = self._pending.poll()
        except OSError as error:
            self._ended(error.errno or errno.EIO)
            raise
        if result is not None:
            self._ended(0)
        return result

    def cancel(self) -> None:
        self._pending.cancel()
        self._ended(errno.EINTR)


def _as_signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
