# SPDX-License-Identifier: Apache-2.0
"""The memory of a VM: the slots that a VMM has registered with KVM, and access through them.

A slot maps guest physical addresses to addresses in the VMM. The rules for adding, moving and
deleting slots are those of ``__kvm_set_memory_region`` in Linux ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.abi.kvm import (
    MEM_GUEST_MEMFD,
    MEM_LOG_DIRTY_PAGES,
    MEM_READONLY,
    UserspaceMemoryRegion2,
)
from snpcerts.emulator.syscall.caller_memory import UserMemory

PHYSICAL_BITS = 48  # width of the processor's physical addresses (MAXPHYADDR)
USER_SLOTS = 32764  # KVM_USER_MEM_SLOTS on x86
MAX_SLOT_PAGES = (1 << 31) - 1  # KVM_MEM_MAX_NR_PAGES
USER_ADDRESS_LIMIT = (1 << 47) - PAGE_SIZE  # TASK_SIZE_MAX with four-level paging
_U64 = 1 << 64
_CHUNK = 1 << 20  # bytes copied at once, to limit the buffer for one copy


class GuestMemfd:
    """A guest_memfd (KVM_CREATE_GUEST_MEMFD): its size, and the ranges that are bound to slots.

    Its bytes are private to the guest and are not emulated. ``memfd`` is a file of the same size to
    which nothing is written, and the VMM gets a descriptor for it. This object owns ``memfd`` until
    :meth:`close`.
    """

    __slots__ = ("_bound", "_sizes", "_starts", "memfd", "owner", "size")

    def __init__(self, owner: object, size: int) -> None:
        self.owner = owner
        self.size = size
        self._bound: dict[int, int] = {}  # offset by slot
        self._starts: list[int] = []  # offsets in order
        self._sizes: dict[int, int] = {}  # size by offset
        self.memfd = os.memfd_create("[kvm-gmem]", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.memfd, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.memfd, fcntl.F_ADD_SEALS, seals)
        except OSError:
            os.close(self.memfd)
            raise

    def ioctl(self, caller: object, request: int, argument: int) -> int:  # noqa: ARG002 - Device
        """Fail with ENOTTY: a guest_memfd has no ioctls."""
        raise OSError(errno.ENOTTY, "a guest_memfd has no ioctls")

    def close(self) -> None:
        """Close the memfd. Slots keep their memory."""
        os.close(self.memfd)

    def bind(self, slot: int, offset: int, size: int) -> None:
        """Bind a range of the guest_memfd to a slot. Fail with EEXIST if a part of the range is
        already bound.
        """
        index = bisect.bisect_right(self._starts, offset)
        if any(
            offset < start + self._sizes[start] and start < offset + size
            for start in self._starts[max(0, index - 1) : index + 1]
        ):
            raise OSError(
                errno.EEXIST, "a part of the guest_memfd range is already bound to a slot"
            )
        self._starts.insert(index, offset)
        self._sizes[offset] = size
        self._bound[slot] = offset

    def unbind(self, slot: int) -> None:
        """Release the range of a deleted slot."""
        if (offset := self._bound.pop(slot, None)) is not None:
            del self._sizes[offset]
            del self._starts[bisect.bisect_left(self._starts, offset)]


@dataclass(frozen=True, slots=True)
class MemorySlot:
    """A slot maps ``size`` bytes at ``gpa`` to ``address`` in the VMM. All three are
    page-aligned.
    """

    number: int
    gpa: int
    size: int
    address: int
    flags: int = 0
    memfd: GuestMemfd | None = None

    @property
    def end(self) -> int:
        """The first guest physical address after the slot."""
        return self.gpa + self.size

    @property
    def readonly(self) -> bool:
        """Whether KVM refuses to write through the slot."""
        return bool(self.flags & MEM_READONLY)


class MemorySlots:
    """The memory slots of one VM.

    ``protected`` says whether the VM's state is protected; such VMs have no read-only slots.
    ``binds_first`` says whether the kernel binds a guest_memfd before it checks the slot's end.
    """

    def __init__(self, *, protected: bool, binds_first: bool = False) -> None:
        self._binds_first = binds_first
        self._allowed = MEM_LOG_DIRTY_PAGES | MEM_GUEST_MEMFD
        if not protected:
            self._allowed |= MEM_READONLY
        self._slots: dict[int, MemorySlot] = {}
        self._at: dict[int, MemorySlot] = {}  # by first guest physical address
        self._starts: list[int] = []  # these addresses, sorted

    def __iter__(self) -> Iterator[MemorySlot]:
        return (self._at[start] for start in self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, gpa: int) -> MemorySlot | None:
        """Return the slot that contains the guest physical address ``gpa``, or None."""
        index = bisect.bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        slot = self._at[self._starts[index]]
        return slot if gpa < slot.end else None

    def largest(self) -> MemorySlot | None:
        """Return the largest writable slot, the guest's main memory; None if there is none."""
        writable = [slot for slot in self if not slot.readonly]
        return max(writable, key=lambda slot: slot.size, default=None)

    def set(
        self,
        region: UserspaceMemoryRegion2,
        find_memfd: Callable[[], GuestMemfd] | None = None,
    ) -> None:
        """Create, change or delete a slot, as ``region`` specifies.

        If the region has the flag KVM_MEM_GUEST_MEMFD, ``find_memfd`` is called just before the
        guest_memfd is bound. It returns the guest_memfd behind ``region.guest_memfd``, or raises
        ``OSError``. This method raises ``OSError``: EINVAL if KVM would refuse the region, EEXIST
        if the guest addresses overlap another slot or a part of the guest_memfd range is already
        bound.
        """
        self._check(region)
        old = self._slots.get(region.slot)
        if region.memory_size == 0:
            if old is None:
                raise _einval("cannot delete the slot, because it does not exist")
            self._replace(old, None)
            return
        new = MemorySlot(
            region.slot,
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
            region.flags,
        )
        if old is not None:
            fixed = region.flags ^ old.flags
            if (
                region.flags & MEM_GUEST_MEMFD
                or fixed & ~MEM_LOG_DIRTY_PAGES
                or (new.address, new.size) != (old.address, old.size)
            ):
                raise _einval(
                    "a slot that has a guest_memfd cannot be changed, nor can any slot's size, "
                    "userspace_addr or read-only flag"
                )
        index = bisect.bisect_right(self._starts, new.gpa)
        # The neighbours on both sides. One of them may be the slot that the new one replaces.
        for start in self._starts[max(0, index - 2) : index + 2]:
            other = self._at[start]
            if other is not old and new.gpa < other.end and other.gpa < new.end:
                raise OSError(errno.EEXIST, "the slot's guest addresses overlap another slot")
        if region.flags & MEM_GUEST_MEMFD and find_memfd is not None:
            new = replace(new, memfd=find_memfd())
        self._bind(new, region.guest_memfd_offset, moved=old is None or old.gpa != new.gpa)
        self._replace(old, new)

    def _bind(self, new: MemorySlot, offset: int, *, moved: bool) -> None:
        """Check the guest addresses of a new or moved slot, and bind its guest_memfd."""
        beyond = moved and new.end > 1 << PHYSICAL_BITS
        memfd = new.memfd
        if memfd is not None:
            if offset + new.size > memfd.size:
                raise _einval("the slot's range does not fit into the guest_memfd")
            if self._binds_first or not beyond:
                memfd.bind(new.number, offset, new.size)
        if beyond:
            if memfd is not None:
                memfd.unbind(new.number)
            raise _einval("the slot extends beyond the processor's physical address space")

    def _check(self, region: UserspaceMemoryRegion2) -> None:
        allowed = self._allowed
        if region.flags & MEM_GUEST_MEMFD:
            allowed &= ~(MEM_LOG_DIRTY_PAGES | MEM_READONLY)
        if region.flags & ~allowed:
            raise _einval("the slot's flags are unknown or cannot be combined")
        aligned = region.memory_size | region.guest_phys_addr | region.userspace_addr
        if region.flags & MEM_GUEST_MEMFD:
            aligned |= region.guest_memfd_offset
            if region.guest_memfd_offset + region.memory_size >= _U64:
                raise _einval("the guest_memfd range wraps around")
        if aligned % PAGE_SIZE:
            raise _einval("the slot's size, addresses and guest_memfd offset must be page-aligned")
        if region.userspace_addr + region.memory_size > USER_ADDRESS_LIMIT:
            raise _einval(
                f"userspace_addr {region.userspace_addr:#x}: the slot extends beyond the user "
                "address space"
            )
        if region.slot >= USER_SLOTS:
            raise _einval(f"slot number: expected less than {USER_SLOTS}, found {region.slot}")
        if region.guest_phys_addr + region.memory_size >= _U64:
            raise _einval("the guest addresses wrap around")
        if region.memory_size // PAGE_SIZE > MAX_SLOT_PAGES:
            raise _einval(
                f"slot: expected at most {MAX_SLOT_PAGES} pages, found "
                f"{region.memory_size // PAGE_SIZE}"
            )

    def _replace(self, old: MemorySlot | None, new: MemorySlot | None) -> None:
        if old is not None:
            del self._slots[old.number]
            del self._at[old.gpa]
            del self._starts[bisect.bisect_left(self._starts, old.gpa)]
            if old.memfd is not None:
                old.memfd.unbind(old.number)
        if new is not None:
            self._slots[new.number] = new
            self._at[new.gpa] = new
            bisect.insort(self._starts, new.gpa)


class SlotMemory:
    """Guest physical memory as KVM accesses it: through the slots, in the VMM's address space.

    Every access may fail with ``OSError(EFAULT)``: there is no slot, the slot is read-only, or the
    VMM has not mapped the memory.
    """

    __slots__ = ("_slots", "_user")

    def __init__(self, slots: MemorySlots, user: UserMemory) -> None:
        self._slots = slots
        self._user = user

    def read(self, gpa: int, size: int) -> bytes:
        """Read exactly ``size`` bytes of guest memory at ``gpa``."""
        return b"".join(
            self._user.read(address, length)
            for address, length in self._pieces(gpa, size, writing=False)
        )

    def write(self, gpa: int, data: bytes) -> None:
        """Write all of ``data`` at ``gpa``. If that fails with EFAULT, part of it may have been
        written.
        """
        done = 0
        for address, length in self._pieces(gpa, len(data), writing=True):
            self._user.write(address, data[done : done + length])
            done += length

    def has_private(self, gpa: int, size: int) -> bool:
        """Return whether all ``size`` bytes at ``gpa`` are in slots with a guest_memfd."""
        end = gpa + size
        while gpa < end:
            slot = self._slots.find(gpa)
            if slot is None or slot.memfd is None:
                return False
            gpa = slot.end
        return True

    def writable(self, gpa: int) -> bool:
        """Return whether ``gpa`` is in a writable slot."""
        slot = self._slots.find(gpa)
        return slot is not None and not slot.readonly

    def _pieces(self, gpa: int, size: int, *, writing: bool) -> Iterator[tuple[int, int]]:
        while size:
            slot = self._slots.find(gpa)
            if slot is None or (writing and slot.readonly):
                raise OSError(
                    errno.EFAULT, f"guest address {gpa:#x} is not in a slot that permits the access"
                )
            length = min(size, slot.end - gpa, _CHUNK)
            yield slot.address + gpa - slot.gpa, length
            gpa += length
            size -= length


def _einval(why: str) -> OSError:
    return OSError(errno.EINVAL, why)
