# SPDX-License-Identifier: Apache-2.0
"""Memory slots, guest_memfd and attributes of a VM."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.ghcb import PAGE_SIZE as PAGE
from snpcerts.abi.kvm import (
    MEM_GUEST_MEMFD,
    CreateGuestMemfd,
    EncRegion,
    Ioctl,
    MemoryAttributes,
    UserspaceMemoryRegion,
    UserspaceMemoryRegion2,
)
from snpcerts.emulator.guest.memory_slots import USER_SLOTS, GuestMemfd, MemorySlots, SlotMemory
from snpcerts.emulator.kvm.private_ranges import PrivateRanges
from snpcerts.emulator.kvm.vm import PRIVATE_RANGES_MAX, Vm
from snpcerts.emulator.syscall.device import NewDescriptor
from tests.emulator.kvm_calls import BAD, Process
from tests.emulator.kvm_rig import Arena

REGION = UserspaceMemoryRegion2(0, 0, 0x10000, 0x4000, 0x20000)


def refused(process: Process, device: Vm, request: int, argument: Any) -> int:
    with pytest.raises(OSError) as raised:
        process.ioctl(device, request, argument)
    assert raised.value.errno is not None
    return raised.value.errno


def setting(process: Process, vm: Vm, region: UserspaceMemoryRegion2) -> int:
    try:
        assert process.ioctl(vm, Ioctl.SET_USER_MEMORY_REGION2, region) == 0
    except OSError as failed:
        return failed.errno or -1
    return 0


@pytest.mark.parametrize(
    "change",
    [
        {"memory_size": 0x4001},
        {"guest_phys_addr": 0x10800},
        {"userspace_addr": 0x20001},
        {"userspace_addr": 1 << 47},
        {"userspace_addr": 2**64 - 0x1000},
        {"guest_phys_addr": 2**64 - 0x1000},
        {"slot": 32764},
        {"slot": 1 << 16},
        {"flags": 8},
        {"flags": 2},  # no read-only slots with protected state
        {"flags": 5},  # nor dirty logging of private ones
        {"memory_size": 0},  # nothing there to delete
        {"memory_size": 1 << 43},
        {"guest_phys_addr": (1 << 48) - 0x3000},  # the processor has 48 bits
    ],
)
def test_regions_that_kvm_refuses(change: dict[str, int]) -> None:
    process = Process()
    vm = process.create_vm()
    assert setting(process, vm, replace(REGION, **change)) == errno.EINVAL
    assert setting(process, vm, REGION) == 0


def test_ordinary_vms_may_have_read_only_slots() -> None:
    process = Process()
    vm = process.create_vm(0)
    assert setting(process, vm, replace(REGION, flags=6)) == errno.EINVAL
    assert setting(process, vm, replace(REGION, flags=3)) == 0


def test_slots_are_made_moved_and_deleted_but_not_resized() -> None:
    process = Process()
    vm = process.create_vm()
    assert setting(process, vm, REGION) == 0
    assert setting(process, vm, REGION) == 0
    assert setting(process, vm, replace(REGION, memory_size=0x5000)) == errno.EINVAL
    assert setting(process, vm, replace(REGION, userspace_addr=0x30000)) == errno.EINVAL
    assert setting(process, vm, replace(REGION, guest_phys_addr=0x40000)) == 0
    assert vm.slots.find(0x10000) is None
    assert vm.slots.find(0x43FFF) is not None
    assert setting(process, vm, replace(REGION, memory_size=0)) == 0
    assert vm.slots.find(0x40000) is None


def test_overlapping_slots_are_eexist() -> None:
    process = Process()
    vm = process.create_vm()
    setting(process, vm, REGION)
    assert setting(process, vm, replace(REGION, slot=1, guest_phys_addr=0x13000)) == errno.EEXIST
    assert setting(process, vm, replace(REGION, slot=1, guest_phys_addr=0xD000)) == errno.EEXIST
    assert setting(process, vm, replace(REGION, slot=1, guest_phys_addr=0x14000)) == 0
    assert setting(process, vm, replace(REGION, slot=1, guest_phys_addr=0x12000)) == errno.EEXIST


def test_the_older_call_knows_no_private_memory() -> None:
    process = Process()
    vm = process.create_vm()
    old = UserspaceMemoryRegion(0, 0, 0, 0x4000, 0x20000)
    assert process.ioctl(vm, Ioctl.SET_USER_MEMORY_REGION, old) == 0
    wrong = replace(old, flags=4)
    assert refused(process, vm, Ioctl.SET_USER_MEMORY_REGION, wrong) == errno.EINVAL


@pytest.mark.parametrize(
    ("size", "flags", "allowed"),
    [(0x4000, 0, True), (0, 0, False), (0x4001, 0, False), (1 << 63, 0, False), (0x4000, 1, False)],
)
def test_guest_memfd_sizes(size: int, flags: int, allowed: bool) -> None:
    process = Process()
    vm = process.create_vm()
    wanted = CreateGuestMemfd(size, flags)
    if allowed:
        made = process.ioctl(vm, Ioctl.CREATE_GUEST_MEMFD, wanted)
        assert isinstance(made, NewDescriptor)
    else:
        assert refused(process, vm, Ioctl.CREATE_GUEST_MEMFD, wanted) == errno.EINVAL


def test_private_slots_need_a_guest_memfd_of_the_same_vm_with_room() -> None:
    process = Process()
    vm, other = process.create_vm(), process.create_vm()
    region = replace(REGION, flags=4, guest_memfd=9)
    assert setting(process, vm, region) == errno.EBADF
    process.devices[9] = process.kvm
    assert setting(process, vm, region) == errno.EINVAL
    for owner, size, expected in ((other, 0x4000, errno.EINVAL), (vm, 0x3000, errno.EINVAL)):
        made = process.ioctl(owner, Ioctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size))
        assert isinstance(made, NewDescriptor)
        process.devices[9] = made.device
        assert setting(process, vm, region) == expected
    made = process.ioctl(vm, Ioctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(0x8000))
    assert isinstance(made, NewDescriptor)
    process.devices[9] = made.device
    assert setting(process, vm, replace(region, guest_memfd_offset=0x800)) == errno.EINVAL
    assert setting(process, vm, replace(region, guest_memfd_offset=0x5000)) == errno.EINVAL
    assert setting(process, vm, region) == 0
    assert setting(process, vm, region) == errno.EINVAL  # private slots do not change
    second = replace(region, slot=1, guest_phys_addr=0x80000, guest_memfd_offset=0x3000)
    assert setting(process, vm, second) == errno.EEXIST  # bound already
    assert setting(process, vm, replace(second, guest_memfd_offset=0x4000)) == 0
    assert setting(process, vm, replace(region, memory_size=0)) == 0
    assert setting(process, vm, replace(region, slot=2)) == 0


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (MemoryAttributes(0x1000, 0x2000, 8), 0),
        (MemoryAttributes(0x1000, 0x2000, 0), 0),
        (MemoryAttributes(0x1000, 0x2000, 8, flags=1), errno.EINVAL),
        (MemoryAttributes(0x1000, 0x2000, 4), errno.EINVAL),
        (MemoryAttributes(0x1000, 0, 8), errno.EINVAL),
        (MemoryAttributes(0x1001, 0x1000, 8), errno.EINVAL),
        (MemoryAttributes(0x1000, 0x1001, 8), errno.EINVAL),
        (MemoryAttributes(2**64 - 0x1000, 0x1000, 8), errno.EINVAL),
    ],
)
def test_memory_attributes(wanted: MemoryAttributes, expected: int) -> None:
    process = Process()
    vm = process.create_vm()
    if expected:
        assert refused(process, vm, Ioctl.SET_MEMORY_ATTRIBUTES, wanted) == expected
    else:
        assert process.ioctl(vm, Ioctl.SET_MEMORY_ATTRIBUTES, wanted) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 10), st.booleans()), min_size=1, max_size=20
    )
)
def test_private_ranges_are_a_set(changes: list[tuple[int, int, bool]]) -> None:
    ranges, model = PrivateRanges(), set()
    for start, size, private in changes:
        covered = set(range(start, start + size))
        if private:
            ranges.add(start, start + size)
            model |= covered
        else:
            ranges.remove(start, start + size)
            model -= covered
    for start in range(41):
        for size in (1, 3):
            assert ranges.covers(start, start + size) == set(range(start, start + size)).issubset(
                model
            )


def test_the_time_for_private_ranges_is_not_quadratic() -> None:
    """Every other page is added, in scattered order. In quadratic time, this would take minutes."""
    ranges = PrivateRanges()
    for number in range(PRIVATE_RANGES_MAX):
        page = number * 4999 % PRIVATE_RANGES_MAX * 2
        ranges.add(page * PAGE, (page + 1) * PAGE)
    assert len(ranges) == PRIVATE_RANGES_MAX
    for page in range(2 * PRIVATE_RANGES_MAX):
        assert ranges.holds(page * PAGE) == (page % 2 == 0)
    for page in range(0, 2 * PRIVATE_RANGES_MAX, 2):
        ranges.remove(page * PAGE, (page + 1) * PAGE)
    assert len(ranges) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 8), st.integers(0, 4), st.integers(0, 15)),
        max_size=12,
    ),
    st.integers(0, 0x10000),
    st.binary(max_size=0x2800),
)
def test_guest_memory_is_what_the_slots_say(
    regions: list[tuple[int, int, int, int]], gpa: int, data: bytes
) -> None:
    """A read returns what was written; a write fails exactly if one of its pages has no slot."""
    slots, arena = MemorySlots(protected=True), Arena()
    for number, page, pages, at in regions:
        try:
            slots.set(
                UserspaceMemoryRegion2(
                    number, 0, page * 0x1000, pages * 0x1000, arena.base + at * 0x1000
                )
            )
        except OSError as refusal:
            assert refusal.errno in (errno.EINVAL, errno.EEXIST)  # noqa: PT017 - success is fine too
    mapped = {slot.gpa + at for slot in slots for at in range(0, slot.size, 0x1000)}
    touched = {address & ~0xFFF for address in range(gpa, gpa + len(data))}
    memory = SlotMemory(slots, arena)
    try:
        memory.write(gpa, data)
        whole = True
    except OSError:
        whole = False
    assert whole == touched.issubset(mapped)
    if whole and len(slots) == 1:  # several may be the same memory
        assert memory.read(gpa, len(data)) == data


def test_encrypted_regions() -> None:
    process = Process()
    vm = process.create_vm()
    region = EncRegion(0x10000, 0x1000)
    for request in (Ioctl.MEMORY_ENCRYPT_REG_REGION, Ioctl.MEMORY_ENCRYPT_UNREG_REGION):
        assert refused(process, vm, request, region) == errno.ENOTTY
        assert refused(process, vm, request, BAD) == errno.EFAULT  # first
    process.init2(vm)
    register, unregister = Ioctl.MEMORY_ENCRYPT_REG_REGION, Ioctl.MEMORY_ENCRYPT_UNREG_REGION
    assert refused(process, vm, unregister, region) == errno.EINVAL
    assert refused(process, vm, register, EncRegion(0x10000, 0)) == errno.EINVAL
    assert refused(process, vm, register, EncRegion(2**64 - 1, 2)) == errno.EINVAL
    assert refused(process, vm, register, BAD) == errno.EFAULT
    for request in (register, register, unregister, unregister):  # each has its own entry
        assert process.ioctl(vm, request, region) == 0
    assert refused(process, vm, unregister, region) == errno.EINVAL


_CHANGES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 4), st.integers(0, 12)),
    max_size=40,
)


@given(changes=_CHANGES)
def test_slots_behave_as_if_each_were_compared_with_every_other(
    changes: list[tuple[int, int, int, int]],
) -> None:
    """A change: a slot's number, then address, size (0 deletes) and guest_memfd offset in pages."""
    slots, memfd = MemorySlots(protected=True), GuestMemfd(None, 20 * PAGE)
    model: dict[int, tuple[int, int, int]] = {}

    def free(at: int, size: int, ranges: list[tuple[int, int]]) -> bool:
        return all(at >= start + length or start >= at + size for start, length in ranges)

    for number, gpa, size, offset in changes:
        others = [each for other, each in model.items() if other != number]
        expected = 0
        if size == 0:
            expected = 0 if model.pop(number, None) else errno.EINVAL
        elif number in model:
            expected = errno.EINVAL  # a private slot does not change
        elif not free(gpa, size, [(at, length) for at, length, _ in others]):
            expected = errno.EEXIST  # of the guest
        elif not free(offset, size, [(at, length) for _, length, at in others]):
            expected = errno.EEXIST  # of the guest_memfd
        else:
            model[number] = (gpa, size, offset)
        region = UserspaceMemoryRegion2(
            slot=number,
            flags=MEM_GUEST_MEMFD,
            guest_phys_addr=gpa * PAGE,
            memory_size=size * PAGE,
            userspace_addr=0x100000,
            guest_memfd_offset=offset * PAGE,
        )
        if size == 0:
            region = UserspaceMemoryRegion2(slot=number)
        try:
            slots.set(region, lambda: memfd)
            found = 0
        except OSError as error:
            found = error.errno or 0
        assert found == expected
        assert [(slot.number, slot.gpa) for slot in slots] == sorted(
            ((each, at * PAGE) for each, (at, _, _) in model.items()), key=lambda pair: pair[1]
        )
        for page in range(18):
            there = slots.find(page * PAGE)
            assert (there is None) == free(
                page, 1, [(at, length) for at, length, _ in model.values()]
            )


def test_a_vm_may_have_all_slots_that_kvm_has() -> None:
    """All slots use one guest_memfd, in scattered order. Quadratic time would be too long."""
    slots, memfd = MemorySlots(protected=True), GuestMemfd(None, USER_SLOTS * PAGE)
    for number in range(USER_SLOTS):
        place = number * 4999 % USER_SLOTS
        region = UserspaceMemoryRegion2(
            slot=number,
            flags=MEM_GUEST_MEMFD,
            guest_phys_addr=place * PAGE,
            memory_size=PAGE,
            userspace_addr=place * PAGE,
            guest_memfd_offset=place * PAGE,
        )
        slots.set(region, lambda: memfd)
    assert len(slots) == USER_SLOTS
    for number in range(USER_SLOTS):
        slots.set(UserspaceMemoryRegion2(slot=number))
    assert len(slots) == 0
