# SPDX-License-Identifier: Apache-2.0
"""What happens to requests. Each scenario runs in its own process, which preloads the shim and a
fake KVM.

``python -m tests.shim.scenarios NAME FILE`` runs one; FILE is the certificate file
that the shim serves. A scenario asserts what it sees; test_shim.py checks standard error.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from snpcerts.abi import kvm
from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK, UNLOCK
from snpcerts.parent_process import end_with_parent

from .rig import PAGE, SNP_VM, Answer, Vcpu, Vm, address_of, open_files

TABLE = bytes(range(1, 251)) * 20  # 5000 bytes
PAGES = 2
TAKEN = errno.EINTR
EMPTY = bytes(24)
SYS_PROCESS_VM_WRITEV = 311
_DUP = 32  # on x86-64
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
SCENARIOS: dict[str, Callable[[Path], None]] = {}


def scenario(function: Callable[[Path], None]) -> Callable[[Path], None]:
    SCENARIOS[function.__name__] = function
    return function


def guest(pages: int = 16) -> tuple[Vm, Vcpu, mmap.mmap]:
    vm = Vm()
    memory = vm.add_memory(0, 0, pages)
    return vm, Vcpu(vm.fd), memory


def untouched(memory: mmap.mmap | bytes) -> bool:
    return set(memory[:]) == {0xEE}


@scenario
def a_table_is_served(file: Path) -> None:
    file.write_bytes(TABLE)
    vm, vcpu, memory = guest()
    assert vm.times_enabled == 1
    for _ in range(3):
        memory[:] = b"\xee" * len(memory)
        assert vcpu.ask(PAGE, PAGES) == Answer(0, PAGES, TAKEN)
        assert memory[PAGE : PAGE + len(TABLE)] == TABLE
        assert untouched(memory[:PAGE])
        assert untouched(memory[PAGE + len(TABLE) :])
        assert vcpu.seen.locked == 1, "the lock must be held while the firmware has the request"
        assert vcpu.seen.immediate_exit != 0
        assert vcpu.seen.interruptible == 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        assert vcpu.run[1] == 0, "immediate_exit must have its old value again"
        assert open_files(file) == 0
    assert vcpu.seen.handshakes == 3
    with open(file, "r+b") as writer:
        fcntl.fcntl(writer, F_OFD_SETLK, EXCLUSIVE)


@scenario
def a_table_of_whole_pages_needs_no_more(file: Path) -> None:
    file.write_bytes(b"\x01" * 2 * PAGE)
    _, vcpu, memory = guest()
    assert vcpu.ask(0, 1) == Answer(errno.ENOSPC, 2, TAKEN)
    assert untouched(memory)
    assert vcpu.ask(0, 2) == Answer(0, 2, TAKEN)
    assert memory[: 2 * PAGE] == file.read_bytes()


@scenario
def a_small_buffer_gets_the_number_of_pages(file: Path) -> None:
    file.write_bytes(TABLE)
    _, vcpu, memory = guest()
    for npages in (0, 1):
        assert vcpu.ask(PAGE, npages) == Answer(errno.ENOSPC, PAGES, TAKEN)
    assert untouched(memory)
    assert vcpu.seen.locked == 1


@scenario
def an_empty_table_is_24_zero_bytes_or_nothing(file: Path) -> None:
    _, vcpu, memory = guest()
    for content in (b"", EMPTY, EMPTY + TABLE):
        file.write_bytes(content)
        memory[:] = b"\xee" * len(memory)
        assert vcpu.ask(PAGE, 0) == Answer(0, 0, TAKEN)
        assert untouched(memory)
        assert vcpu.ask(PAGE, 1) == Answer(0, 1, TAKEN)
        assert memory[PAGE : PAGE + 24] == EMPTY
        assert untouched(memory[PAGE + 24 :])


@scenario
def a_file_that_cannot_be_served_is_an_empty_table(file: Path) -> None:
    _, vcpu, memory = guest()

    def ask_thrice() -> None:
        for _ in range(3):
            memory[:] = b"\xee" * len(memory)
            assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
            assert memory[:24] == EMPTY
            assert untouched(memory[24:])
            assert open_files(file) == 0

    ask_thrice()
    file.mkdir()
    ask_thrice()
    file.rmdir()
    os.mkfifo(file)
    ask_thrice()
    file.unlink()
    file.write_bytes(b"\x01" * ((1 << 20) + 1))
    ask_thrice()
    file.write_bytes(TABLE)
    for _ in range(3):
        assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
        assert memory[: len(TABLE)] == TABLE


@scenario
def a_sandbox_that_forbids_the_usual_way_gets_an_empty_table(file: Path) -> None:
    """Without process_vm_writev, the guest gets an empty table; EIO would cost it its VMPCK."""
    file.mkdir()
    _, vcpu, memory = guest()
    forbid(SYS_PROCESS_VM_WRITEV)
    for _ in range(2):
        memory[:] = b"\xee" * len(memory)
        assert vcpu.ask(PAGE, 1) == Answer(0, 1, TAKEN)
        assert memory[PAGE : PAGE + 24] == EMPTY
        assert untouched(memory[:PAGE])
        assert untouched(memory[PAGE + 24 :])


def forbid(call: int) -> None:
    """Have a system call fail with EPERM in this thread from now on (seccomp)."""
    load, equal, answer = 0x20, 0x15, 0x06
    fails, allowed = 0x00050000 | errno.EPERM, 0x7FFF0000
    steps = ((load, 0, 0, 0), (equal, 0, 1, call), (answer, 0, 0, fails), (answer, 0, 0, allowed))
    code = b"".join(struct.pack("<HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<H6xQ", len(steps), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0


@scenario
def a_file_with_less_than_it_says_is_an_empty_table(file: Path) -> None:
    """A sysfs file has fewer bytes than its size, like a file truncated without the lock."""
    _, vcpu, memory = guest()
    for name in ("class/net/lo/address", "devices/system/cpu/vulnerabilities/spectre_v2"):
        file.unlink(missing_ok=True)
        file.symlink_to(Path("/sys", name))
        assert file.stat().st_size == PAGE > len(file.read_bytes())
        memory[:] = b"\xee" * len(memory)
        assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
        assert memory[:24] == EMPTY
        assert vcpu.seen.handshakes > 0


@scenario
def successful_calls_leave_errno_alone(file: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    vm = Vm()
    calls = [
        (os.open(os.devnull, os.O_RDWR), kvm.Ioctl.CREATE_VM, SNP_VM),
        (vm.fd, kvm.Ioctl.MEMORY_ENCRYPT_OP, kvm.SevCmd(id=kvm.SevCommand.INIT2).pack()),
        (vm.fd, kvm.Ioctl.SET_USER_MEMORY_REGION, bytes(32)),
        (vm.fd, kvm.Ioctl.CREATE_VCPU, 0),
        (Vcpu(Vm().fd).fd, kvm.Ioctl.RUN, 0),
    ]
    for fd, request, argument in calls:
        ctypes.set_errno(77)
        assert libc.ioctl(fd, ctypes.c_ulong(request), argument) >= 0
        assert ctypes.get_errno() == 77


@scenario
def no_descriptor_left_is_an_empty_table(file: Path) -> None:
    file.write_bytes(TABLE)
    _, vcpu, memory = guest()
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    filling = [os.dup(0)]
    while filling[-1] < highest:
        filling.append(os.dup(0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (filling[-1] + 1, hard))
    assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
    assert memory[:24] == EMPTY


@scenario
def a_writer_makes_it_busy(file: Path) -> None:
    file.write_bytes(TABLE)
    _, vcpu, memory = guest()
    with open(file, "r+b") as writer:
        fcntl.fcntl(writer, F_OFD_SETLK, EXCLUSIVE)
        assert vcpu.ask(0, 4) == Answer(errno.EAGAIN, 4, TAKEN)
        assert untouched(memory)
        assert vcpu.run[1] == 0
        fcntl.fcntl(writer, F_OFD_SETLK, UNLOCK)
        assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)


@scenario
def a_writer_that_ends_in_time_is_waited_for(file: Path) -> None:
    """The shim waits even while signals arrive all the time."""
    file.write_bytes(TABLE)
    _, vcpu, memory = guest()
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    with open(file, "r+b") as writer:
        fcntl.fcntl(writer, F_OFD_SETLK, EXCLUSIVE)

        def end() -> None:
            while vcpu.seen.runs == 0:
                pass
            fcntl.fcntl(writer, F_OFD_SETLK, UNLOCK)

        ending = threading.Thread(target=end)
        ending.start()
        assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
        ending.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert memory[: len(TABLE)] == TABLE


@scenario
def a_replaced_file_is_followed(file: Path) -> None:
    _, vcpu, memory = guest()
    for number in range(1, 20):
        new = file.with_suffix(".new")
        new.write_bytes(bytes([number]) * (number * 700))
        new.replace(file)
        assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
        assert memory[: number * 700] == file.read_bytes()
        assert open_files(file) == 0


@scenario
def a_file_replaced_before_the_lock_is_opened_anew(file: Path) -> None:
    file.with_suffix(".new").write_bytes(TABLE)
    file.write_bytes(b"\x01" * 100)
    _, vcpu, memory = guest()
    _take_turns(file, vcpu, memory)


@scenario
def a_file_replaced_by_one_of_another_device_is_opened_anew(file: Path) -> None:
    """``FILE`` and its replacement are links to files with one inode number, on two devices."""
    old, new = file.resolve(), file.with_suffix(".new").resolve()
    assert old.stat().st_ino == new.stat().st_ino
    assert old.stat().st_dev != new.stat().st_dev
    old.write_bytes(b"\x01" * 100)
    new.write_bytes(TABLE)
    _, vcpu, memory = guest()
    _take_turns(file, vcpu, memory)


def _take_turns(file: Path, vcpu: Vcpu, memory: mmap.mmap) -> None:
    assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
    assert not file.with_suffix(".new").exists(), "the file must have been replaced"
    assert memory[: len(TABLE)] == TABLE
    assert vcpu.seen.locked == 1


@scenario
def a_buffer_across_slots_is_filled(file: Path) -> None:
    file.write_bytes(TABLE)
    vm = Vm()
    # Neither slot numbers nor this process's addresses are in the order of guest addresses.
    upper = vm.add_memory(0, 3 * PAGE, 1)
    lower = vm.add_memory(7, 2 * PAGE, 1)
    vcpu = Vcpu(vm.fd)
    assert vcpu.ask(2 * PAGE, PAGES) == Answer(0, PAGES, TAKEN)
    assert lower[:] + upper[: len(TABLE) - PAGE] == TABLE
    assert untouched(upper[len(TABLE) - PAGE :])


@scenario
def a_buffer_that_is_not_memory_is_eio_and_nothing_written(file: Path) -> None:
    file.write_bytes(TABLE)
    vm, vcpu, memory = guest(4)
    read_only = vm.add_memory(1, 0x100000, 4, flags=2)
    # System management mode has an address space of its own.
    other = vm.add_memory(0x10002, 0x200000, 4)
    # A buffer must not wrap from the top of the address space to address 0.
    top = vm.add_memory(2, 2**64 - PAGE, 1)
    for gpa in (3 * PAGE, 4 * PAGE, 0x100000, 0x200000, 2**64 - PAGE, 2**63, 0x1001):
        assert vcpu.ask(gpa, PAGES) == Answer(errno.EIO, PAGES, TAKEN), hex(gpa)
        assert vcpu.seen.locked == 1
    assert all(untouched(each) for each in (memory, read_only, other, top))
    file.unlink()
    assert vcpu.ask(4 * PAGE, 1) == Answer(errno.EIO, 1, TAKEN)
    assert vcpu.ask(0x1001, 1) == Answer(errno.EIO, 1, TAKEN)
    assert open_files(file) == 0


@scenario
def absurd_page_counts_are_only_numbers(file: Path) -> None:
    file.write_bytes(TABLE)
    _, vcpu, memory = guest(2)
    for npages in (2**64 - 1, 2**52, 2**52 + 1, 2**63):
        memory[:] = b"\xee" * len(memory)
        assert vcpu.ask(0, npages) == Answer(0, npages, TAKEN)
        assert memory[: len(TABLE)] == TABLE


@scenario
def memory_that_is_not_mapped_is_eio_and_no_crash(file: Path) -> None:
    file.write_bytes(TABLE)
    vm = Vm()
    vm.set_region(0, 0, 4 * PAGE, 0x1000)
    vcpu = Vcpu(vm.fd)
    assert vcpu.ask(0, 4) == Answer(errno.EIO, 4, TAKEN)
    # Only the second page is unmapped: the part of the table on the first page must not stay.
    memory = vm.add_memory(0, 0, 1)
    vm.set_region(1, PAGE, PAGE, 0x1000)
    assert vcpu.ask(0, 4) == Answer(errno.EIO, 4, TAKEN)
    assert memory[:24] == EMPTY
    assert open_files(file) == 0
    # An empty table gets the same answer.
    file.write_bytes(b"")
    assert vcpu.ask(PAGE, 1) == Answer(errno.EIO, 1, TAKEN)


@scenario
def slots_are_followed(file: Path) -> None:
    file.write_bytes(TABLE)
    vm, vcpu, first = guest(2)
    second = mmap.mmap(-1, 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # SET_USER_MEMORY_REGION2 replaces the slot, then SET_USER_MEMORY_REGION moves it.
    vm.set_region(0, 0, 2 * PAGE, address_of(second), second=True)
    assert vcpu.ask(0, PAGES) == Answer(0, PAGES, TAKEN)
    assert untouched(first)
    assert second[: len(TABLE)] == TABLE
    vm.set_region(0, 0x10000, 2 * PAGE, address_of(first))
    assert vcpu.ask(0, PAGES) == Answer(errno.EIO, PAGES, TAKEN)
    assert vcpu.ask(0x10000, PAGES) == Answer(0, PAGES, TAKEN)
    assert first[: len(TABLE)] == TABLE
    # A slot that KVM refuses does not exist.
    with pytest.raises(OSError, match="Invalid argument"):
        vm.set_region(0xFFFF, 0x20000, 2 * PAGE, address_of(second))
    assert vcpu.ask(0x20000, PAGES) == Answer(errno.EIO, PAGES, TAKEN)
    # KVM's highest slot number works too.
    vm.set_region(32763, 0x20000, 2 * PAGE, address_of(second))
    assert vcpu.ask(0x20000, PAGES) == Answer(0, PAGES, TAKEN)


@scenario
def a_slot_that_is_away_for_a_moment_is_busy(file: Path) -> None:
    """EIO would cost a Linux guest its VMPCK; after BUSY it retries."""
    file.write_bytes(TABLE)
    vm, vcpu, memory = guest(4)
    vm.set_region(0, 0, 0, 0)
    assert vcpu.ask(0, PAGES) == Answer(errno.EAGAIN, PAGES, TAKEN)
    assert vcpu.ask(0x8000, PAGES) == Answer(errno.EIO, PAGES, TAKEN), "never was memory"
    file.write_bytes(b"")
    assert vcpu.ask(0, PAGES) == Answer(errno.EAGAIN, PAGES, TAKEN)
    file.write_bytes(TABLE)
    vm.set_region(0, 0, 4 * PAGE, address_of(memory), second=True)
    assert vcpu.ask(0, PAGES) == Answer(0, PAGES, TAKEN)
    assert open_files(file) == 0


@scenario
def duplicated_descriptors_are_followed(file: Path) -> None:
    """The shim follows dup, fcntl and dup2, and forgets a number that goes to another file."""
    file.write_bytes(TABLE)
    vm = Vm()
    first = os.dup(vm.fd)
    os.close(vm.fd)
    vm.fd = fcntl.fcntl(first, fcntl.F_DUPFD, 200)
    memory = vm.add_memory(0, 0, 4)
    vcpu = Vcpu(vm.fd)
    original, vcpu.fd = vcpu.fd, os.dup(vcpu.fd)
    os.close(original)
    assert vcpu.ask(0, PAGES) == Answer(0, PAGES, TAKEN)
    assert memory[: len(TABLE)] == TABLE
    os.dup2(os.open(os.devnull, os.O_RDWR), vcpu.fd)
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        fcntl.ioctl(vcpu.fd, 0xDEAD)


@scenario
def memory_that_another_process_may_add_is_not_eio(file: Path) -> None:
    """A guest survives ENOSPC: its driver repeats the request without certificates."""
    file.write_bytes(TABLE)
    vm, vcpu, _ = guest(4)
    here, there = socket.socketpair()
    socket.send_fds(here, [b"x"], [vm.fd])
    assert vcpu.ask(0x8000, PAGES) == Answer(errno.ENOSPC, PAGES, TAKEN)
    assert vcpu.ask(0, PAGES) == Answer(0, PAGES, TAKEN)
    here.close()
    there.close()


@scenario
def memory_added_through_a_descriptor_that_cannot_be_followed_is_not_eio(file: Path) -> None:
    file.write_bytes(TABLE)
    vm, vcpu, _ = guest(4)
    assert vcpu.ask(0x8000, PAGES) == Answer(errno.EIO, PAGES, TAKEN), "not memory yet"
    vm.fd = ctypes.CDLL(None).syscall(_DUP, vm.fd)
    vm.add_memory(1, 0x8000, 4)
    assert vcpu.ask(0x8000, PAGES) == Answer(errno.ENOSPC, PAGES, TAKEN)
    assert vcpu.ask(0, PAGES) == Answer(0, PAGES, TAKEN)


@scenario
def a_second_mapping_of_kvm_run_may_go(file: Path) -> None:
    file.write_bytes(TABLE)
    _, vcpu, _ = guest()
    second = mmap.mmap(vcpu.fd, 12288, mmap.MAP_SHARED)
    second.close()
    assert vcpu.ask(0, PAGES) == Answer(0, PAGES, TAKEN)
    # The first mapping may be unmapped too, if a second one stays.
    vcpu.run, first = mmap.mmap(vcpu.fd, 12288, mmap.MAP_SHARED), vcpu.run
    first.close()
    assert vcpu.ask(0, PAGES) == Answer(0, PAGES, TAKEN)


@scenario
def a_slot_is_gone_only_once_nothing_writes_to_it(file: Path) -> None:
    """Once the slot is gone, the VMM may unmap its memory and map other memory there."""
    file.write_bytes(TABLE)
    vm, vcpu, _ = guest()
    hold = os.environ["FAKE_HOLD"]
    asking = threading.Thread(target=vcpu.ask, args=(0, 4))
    asking.start()
    # This open returns when the request is about to copy.
    with open(hold, "wb", buffering=0) as release:
        before = vm.regions_set
        removing = threading.Thread(target=vm.set_region, args=(0, 0, 0, 0))
        removing.start()
        while vm.regions_set == before:
            pass
        removing.join(0.2)
        assert removing.is_alive()
        # A child does not inherit the mark of a request under way.
        child = os.fork()
        if child == 0:
            Vm().add_memory(0, 0, 4)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        release.write(b"x")
    asking.join()
    removing.join()


@scenario
def a_kick_in_the_handshake_stays(file: Path) -> None:
    file.write_bytes(TABLE)
    _, vcpu, _ = guest()
    assert vcpu.ask(0, 4, kick=1) == Answer(0, 4, TAKEN)
    assert vcpu.run[1] == 1
    vcpu.run[1] = 0
    assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
    assert vcpu.run[1] == 0


@scenario
def other_outcomes_of_the_handshake_are_the_vmms(file: Path) -> None:
    file.write_bytes(TABLE)
    _, vcpu, _ = guest()
    for outcome in (errno.EIO, errno.EBADF, errno.EINVAL, 0):
        assert vcpu.ask(0, 4, handshake_errno=outcome) == Answer(0, 4, outcome)
        assert vcpu.run[1] == 0
        assert open_files(file) == 0


@scenario
def the_exit_by_its_number_as_posted_is_served(file: Path) -> None:
    file.write_bytes(TABLE)
    _, vcpu, memory = guest()
    assert vcpu.ask(PAGE, PAGES, exit_number=42) == Answer(0, PAGES, TAKEN)
    assert memory[PAGE : PAGE + len(TABLE)] == TABLE


@scenario
def other_exits_are_the_vmms(file: Path) -> None:
    _, vcpu, _ = guest()
    for reason in (0, 2, 8, 17, 41, 44):
        vcpu.tell(reason)
        assert vcpu.kvm_run() == 0
    assert vcpu.seen.handshakes == 0
    with open(file, "wb") as plain, pytest.raises(OSError, match="Inappropriate ioctl"):
        fcntl.ioctl(plain, 0xDEAD)


def _stood_back(vm: Vm, times_enabled: int) -> None:
    assert vm.times_enabled == times_enabled
    memory = vm.add_memory(0, 0, 4)
    vcpu = Vcpu(vm.fd)
    assert vcpu.ask(0, 4) == Answer(0, 4, 0), "the exit must reach the VMM unanswered"
    assert vcpu.seen.handshakes == 0
    assert untouched(memory)


@scenario
def a_vm_that_is_not_snp_is_left_alone(file: Path) -> None:
    file.write_bytes(TABLE)
    _stood_back(Vm(0), 0)
    sev_es = Vm(3)
    sev_es.command(kvm.SevCommand.INIT2)
    _stood_back(sev_es, 0)


@scenario
def a_vmm_that_enables_the_exit_is_left_alone(file: Path) -> None:
    file.write_bytes(TABLE)
    _stood_back(Vm(enables=True), 2)


@scenario
def nothing_is_enabled(file: Path) -> None:
    """test_shim.py runs this without the exit, then with SNP off, then with each wrong setting."""
    _stood_back(Vm(), 0)
    _stood_back(Vm(), 0)


@scenario
def a_reused_descriptor_number_is_another_vm(file: Path) -> None:
    file.write_bytes(TABLE)
    for _ in range(100):
        vm, vcpu, memory = guest()
        assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)
        assert memory[: len(TABLE)] == TABLE
        vcpu.run.close()
        os.close(vcpu.fd)
        os.close(vm.fd)
        plain = Vm(0)
        assert plain.fd == vm.fd or plain.fd == vcpu.fd
        _stood_back(plain, 0)
        os.close(plain.fd)


@scenario
def more_vms_than_there_is_room_for(file: Path) -> None:
    file.write_bytes(TABLE)
    vms = [Vm() for _ in range(20)]
    assert [vm.times_enabled for vm in vms] == [1] * 16 + [0] * 4
    for vm in vms[:16]:
        vm.add_memory(0, 0, 4)
        assert Vcpu(vm.fd).ask(0, 4) == Answer(0, 4, TAKEN)
    _stood_back(vms[19], 0)


@scenario
def closed_vms_make_room(file: Path) -> None:
    file.write_bytes(TABLE)
    for _ in range(40):
        vm, vcpu, _ = guest(4)
        assert vcpu.ask(0, PAGES) == Answer(0, PAGES, TAKEN)
        # Other files take these descriptor numbers, so that no new VM gets them.
        for fd in (vm.fd, vcpu.fd):
            os.close(fd)
            os.open(os.devnull, os.O_RDONLY)


@scenario
def a_child_can_have_vms_too(file: Path) -> None:
    """The child is forked while other threads change slots and serve requests."""
    file.write_bytes(TABLE)
    vm, vcpu, memory = guest()
    over = threading.Event()
    spare = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def change() -> None:
        while not over.is_set():
            vm.set_region(3, 0x100000, PAGE, address_of(spare))

    def serve() -> None:
        while not over.is_set():
            assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)

    threads = [threading.Thread(target=each) for each in (change, serve)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            _, own, own_memory = guest()
            served = own.ask(0, 4) == Answer(0, 4, TAKEN)
            os._exit(0 if served and own_memory[: len(TABLE)] == TABLE else 1)
        assert os.waitpid(child, 0)[1] == 0
    over.set()
    for thread in threads:
        thread.join()
    assert memory[: len(TABLE)] == TABLE


@scenario
def a_child_forked_in_a_request_does_not_keep_the_lock(file: Path) -> None:
    """The child shares the open-file description, so the shim must unlock it, not only close it."""
    file.write_bytes(TABLE)
    _, vcpu, _ = guest()
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            vcpu.ask(0, 4)

    thread = threading.Thread(target=serve)
    thread.start()
    children: list[int] = []
    parent = os.getpid()
    while len(children) < 200:
        child = os.fork()
        if child == 0:
            end_with_parent(parent)
            signal.pause()
        children.append(child)
        if any(
            os.readlink(f"/proc/{child}/fd/{fd}") == str(file)
            for fd in os.listdir(f"/proc/{child}/fd")
        ):
            break
    over.set()
    thread.join()
    try:
        with open(file, "r+b") as writer:
            fcntl.fcntl(writer, F_OFD_SETLK, EXCLUSIVE)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@scenario
def many_vcpus_and_moving_slots(file: Path) -> None:
    """While file and slots change, each buffer must hold one whole table or nothing."""
    contents = [bytes([value]) * 6000 for value in (1, 2, 3)]
    file.write_bytes(contents[0])
    vm = Vm()
    homes = [mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
    vm.set_region(0, 0, 64 * PAGE, address_of(homes[0]))
    vcpus = [Vcpu(vm.fd) for _ in range(8)]
    wrong: list[Answer] = []

    def ask(index: int) -> None:
        for _ in range(300):
            answer = vcpus[index].ask(index * 4 * PAGE, 4)
            if answer != Answer(0, 4, TAKEN):
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(vcpus))]
    for thread in threads:
        thread.start()
    turn = 0
    while any(thread.is_alive() for thread in threads):
        turn += 1
        new = file.with_suffix(".new")
        new.write_bytes(contents[turn % 3])
        new.replace(file)
        vm.set_region(0, 0, 64 * PAGE, address_of(homes[turn % 2]))
    assert wrong == []
    for index in range(len(vcpus)):
        buffers = [home[index * 4 * PAGE : index * 4 * PAGE + 6000] for home in homes]
        assert all(buffer in (*contents, bytes(6000)) for buffer in buffers)
    assert open_files(file) == 0


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Path(sys.argv[2]))
