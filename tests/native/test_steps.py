# SPDX-License-Identifier: Apache-2.0
"""The library in C takes the steps of ``certfile/reader.py``, which the explorer examines.

Each case runs twice with the same disturbances: the library under ptrace(2), call by call, and
the exit service in Python, step by step. The library's calls must be the same steps in the same
order, and both must give the same answer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from snpcerts.abi.cert_table import ENTRY_SIZE
from snpcerts.abi.kvm import RUN_SIZE, RunView
from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK
from snpcerts.certfile import reader, step
from snpcerts.certfile.file import CertFile
from snpcerts.vmm.exit_service import ExitService, Outcome
from snpcerts.vmm.guest_memory import MappedMemory

from ..certfile.relay import relay
from ..certfile.tracing import Call, Traced, calls_of, can_trace
from ..shim.conftest import ROOT, build

BASE, SIZE, PAGE = 0x10000, 16 * 4096, 4096
TABLE = b"\x63" * 5000
WAIT = 50_000_000_000  # ns: no case waits for as long
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
AT_FDCWD = 2**32 - 100
# The system calls that docs/vmm-authors.md tells a seccomp filter to allow. clock_gettime needs
# none.
CALLS = re.findall(
    r"`(\w+)(?:\(2\))?`",
    re.search(
        r"into\s+the\s+guest's\s+memory\s+with\s(.*?)\.\n\n",
        (ROOT / "docs" / "vmm-authors.md").read_text(),
        re.DOTALL,
    )[1],  # type: ignore[index]  # found, or no test here runs
)
Disturb = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A request. By the name of a step, ``before`` has a function that disturbs the file before
    the first such step, and ``fails`` has the errno with which that step fails."""

    content: bytes | None = TABLE
    gpa: int = BASE
    npages: int = 4
    lock_wait: int = 0
    flags: int = 0
    prepare: Disturb = lambda _: None
    before: dict[str, Disturb] = field(default_factory=dict)
    fails: dict[str, int] = field(default_factory=dict)
    held: bool = False  # an update has the lock until the first pause


def _replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(TABLE + b"newer")
    other.rename(file)


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _shrink(file: Path) -> None:
    os.truncate(file, 10)


CASES = {
    "a table": Case(),
    "a table of whole pages": Case(content=TABLE[:PAGE], npages=1),
    "a table across slots": Case(gpa=BASE + SIZE // 2 - PAGE),
    "too small a buffer": Case(npages=1),
    "no buffer": Case(npages=0),
    "a buffer that is not aligned": Case(gpa=BASE + 8),
    "a buffer outside memory": Case(gpa=BASE + SIZE),
    "a buffer that leaves memory": Case(gpa=BASE + SIZE - PAGE),
    "a file of 0 bytes": Case(content=b""),
    "the empty table": Case(content=bytes(24)),
    "an update that was cut off": Case(content=bytes(24) + TABLE),
    "the empty table and no buffer": Case(content=bytes(24), npages=0),
    "the empty table outside memory": Case(content=bytes(24), gpa=0),
    "no file": Case(content=None),
    "no file, for a guest that must have one": Case(content=None, flags=1),
    "no permission": Case(fails={"OpenRead": errno.EACCES}),
    "an open that would block": Case(fails={"OpenRead": errno.EAGAIN}, lock_wait=WAIT),
    "no descriptor left": Case(fails={"OpenRead": errno.EMFILE}),
    "a lock that is held": Case(fails={"LockShared": errno.EAGAIN}),
    "a lock that is held, reported as EACCES": Case(fails={"LockShared": errno.EACCES}),
    "a lock that comes free": Case(held=True, lock_wait=WAIT),
    "a lock that the kernel refuses": Case(fails={"LockShared": errno.ENOLCK}),
    "replaced before the lock": Case(before={"LockShared": _replace}, lock_wait=WAIT),
    "replaced, and no time left": Case(before={"LockShared": _replace}),
    "replaced before the comparison": Case(before={"StatPath": _replace}, lock_wait=WAIT),
    "removed before the comparison": Case(before={"StatPath": Path.unlink}),
    "a stat that fails": Case(fails={"Stat": errno.EIO}),
    "a stat that would block": Case(fails={"Stat": errno.EAGAIN}, lock_wait=WAIT),
    "a stat of the path that fails": Case(fails={"StatPath": errno.EACCES}),
    "a directory": Case(prepare=_directory),
    "a FIFO": Case(prepare=_fifo),
    "too large a file": Case(prepare=lambda file: os.truncate(file, 1 + (1 << 20))),
    "shrunk before the read": Case(before={"Read": _shrink}),
    "a read that fails": Case(fails={"Read": errno.EIO}),
    "shrunk halfway": Case(before={"Copy": _shrink}),
    "a read that fails halfway": Case(fails={"Copy": errno.EIO}),
    "a hand-shake that fails": Case(fails={"Handshake": errno.EBADF}),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one_request.c, built with the library."""
    if not can_trace():
        pytest.skip("this machine does not let a process trace its child")
    sources = (Path(__file__).with_name("one_request.c"), ROOT / "native" / "snpcerts.c")
    include = f"-I{ROOT / 'native' / 'include'}"
    return build(tmp_path_factory.mktemp("native") / "one_request", *sources, include, "-pthread")


@contextlib.contextmanager
def prepared(case: Case, folder: Path) -> Iterator[tuple[Path, Callable[[str], int | None]]]:
    """Yield a case's file, and a function to call before each step: it disturbs the file, and
    returns the errno with which the step must fail, if any."""
    folder.mkdir()
    file = folder / "certs.bin"
    if case.content is not None:
        file.write_bytes(case.content)
    case.prepare(file)
    before, fails = dict(case.before), dict(case.fails)
    with contextlib.ExitStack() as lock:
        if case.held:
            holder = lock.enter_context(file.open("r+b", buffering=0))
            fcntl.fcntl(holder, F_OFD_SETLK, EXCLUSIVE)

        def disturb(name: str) -> int | None:
            if name == "Pause":
                lock.close()
            if name in before:
                before.pop(name)(file)
            return fails.pop(name, None)

        yield file, disturb


Answer = tuple[str, int, int, int, int]


def in_c(case: Case, program: Path, folder: Path) -> tuple[list[str], Answer]:
    """The library's steps, and its answer."""
    counted = str(case.gpa), str(case.npages), str(case.lock_wait), str(case.flags)
    with prepared(case, folder) as (file, disturb):
        output = folder / "output"
        inside = False

        def fails(call: Call) -> int | None:
            nonlocal inside
            inside = (inside or call.name == "getuid") and call.name != "getgid"
            if not inside or call.name == "getuid":
                return None
            names.append(name_of(call, file))
            assert call.name in CALLS or names[-1] == "Handshake", call.name
            copies = call.name == "pread64" and call.arguments[2] != ENTRY_SIZE
            return disturb("Copy" if copies else names[-1])

        names: list[str] = []
        script = f'exec "$0" "$@" >{output}'
        made = calls_of(["/bin/sh", "-c", script, str(program), str(file), *counted], fails)
        outcome, *numbers = map(int, output.read_text().split())
    assert_locks_are_dropped(made, file)
    words = ("served", "empty", "too-small", "busy", "failed")
    ret, pages, size, run_errno = numbers
    return collapsed(names), (words[outcome], ret, pages, size, run_errno)


def name_of(call: Call, file: Path) -> str:
    """The step to which a system call belongs."""
    name, arguments = call.name, call.arguments
    if name == "openat":
        assert (arguments[0] % 2**32, call.path) == (AT_FDCWD, str(file))
        assert arguments[2] == READ_FLAGS
        return "OpenRead"
    if name == "fcntl":
        kind, whence = struct.unpack("<hh", call.memory(2, 4))
        start, length = struct.unpack("<qq", call.memory(2, 24)[8:])
        assert (arguments[1], whence, start, length) == (F_OFD_SETLK, os.SEEK_SET, 0, 0)
        return {fcntl.F_RDLCK: "LockShared", fcntl.F_UNLCK: "Unlock"}[kind]
    if name == "newfstatat" and call.path:
        assert (arguments[0] % 2**32, call.path) == (AT_FDCWD, str(file))
        assert arguments[3] == 0  # follows symbolic links
        return "StatPath"
    if name == "rt_sigprocmask":  # without a new mask it only writes to the guest's memory
        return "Signals" if arguments[1] else "Deliver"
    return {
        "fstat": "Stat",
        "newfstatat": "Stat",
        "pread64": "Read",
        "nanosleep": "Pause",
        "clock_nanosleep": "Pause",
        "clock_gettime": "Now",
        "getppid": "Handshake",
        "close": "Close",
    }.get(name, f"system call {name}")


def collapsed(names: list[str]) -> list[str]:
    """The steps: several calls for one step count once, and unlocking is a part of closing."""
    kept = [name for name in names if name not in ("Now", "Signals", "Unlock")]
    return [
        name
        for number, name in enumerate(kept)
        if number == 0 or name != kept[number - 1] or name not in ("Read", "Deliver")
    ]


def assert_locks_are_dropped(made: list[Traced], file: Path) -> None:
    """Each descriptor that got the lock is unlocked right before it is closed."""
    locked: set[int] = set()
    opened: set[int] = set()
    # The shell calls getuid too, before it executes the program, so the last call counts.
    begun = max(number for number, each in enumerate(made) if each.call.name == "getuid")
    unlocked = -1
    for each in made[begun:]:
        fd, name = each.call.arguments[0] % 2**32, each.call.name
        if name == "openat" and each.result >= 0:
            opened.add(each.result)
        elif name == "fcntl" and fd in locked:
            unlocked = fd
        elif name == "fcntl" and each.result == 0:
            locked.add(fd)
        elif name == "close":
            assert fd in opened
            assert (unlocked == fd) is (fd in locked)
            opened.discard(fd)
            locked.discard(fd)
        elif name == "getgid":
            break
        if name != "fcntl":
            unlocked = -1
    assert opened == set()


def in_python(case: Case, folder: Path) -> tuple[list[str], Answer]:
    """The reader's steps, and the exit service's answer."""
    names: list[str] = []
    run = RunView(bytearray(RUN_SIZE))
    run.snp_req_certs = (case.gpa, case.npages, 0)
    memory = MappedMemory([(BASE, bytearray(SIZE // 2)), (BASE + SIZE // 2, bytearray(SIZE // 2))])

    def kvm_run() -> None:
        raise OSError(handshake_fails or errno.EINTR, "KVM_RUN")

    with prepared(case, folder) as (file, disturb):
        handshake_fails: int | None = None

        def before(action: Any) -> None:
            nonlocal handshake_fails
            name = type(action).__name__
            if name == "Deliver" and not delivers(action.found, case):
                return
            if name == "Now":
                return
            names.append(name)
            code = disturb(name)
            if name == "Read":  # the library reads the first entry, then the rest
                code = code or disturb("Copy")
            if name == "Handshake":
                handshake_fails = code
            elif code in (errno.EAGAIN, errno.EACCES) and name == "LockShared":
                refused.append(True)
            elif code is not None:
                raise OSError(code, os.strerror(code))

        def after(action: Any, result: Any) -> Any:
            # For EAGAIN and EACCES, system.py returns False instead of raising.
            return False if isinstance(action, step.LockShared) and refused else result

        refused: list[bool] = []
        service = ExitService(
            CertFile(str(file), relay(before=before, after=after)),
            lock_wait=min(case.lock_wait / 1e9, 59),
            on_error="eio" if case.flags else "empty",
        )
        served = service.serve(run, memory, kvm_run)
    answer = (served.outcome.value, served.ret, served.needed_pages or 0, served.size)
    return names, (*answer, served.run_errno)


def delivers(found: reader.Found, case: Case) -> bool:
    """Whether the library delivers with a call of its own. It reads a table into the buffer."""
    if isinstance(found, reader.Table | reader.Busy) or case.npages == 0:
        return False
    return BASE <= case.gpa < BASE + SIZE and not (
        case.flags and isinstance(found, reader.Unreadable)
    )


@pytest.mark.parametrize("name", CASES)
def test_the_calls_are_the_steps(name: str, program: Path, tmp_path: Path) -> None:
    steps, answer = in_python(CASES[name], tmp_path / "python")
    calls, given = in_c(CASES[name], program, tmp_path / "c")
    assert calls == steps
    assert given == answer


def test_the_cases_reach_every_line_of_the_reader(tmp_path: Path) -> None:
    """Otherwise the library could differ in a branch that no case compares."""
    codes = [reader.serve.__code__, reader._find.__code__, reader._locked_content.__code__]
    reached: set[int] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code not in codes:
            return None
        if event == "line":
            reached.add(frame.f_lineno)
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        for number, case in enumerate(CASES.values()):
            in_python(case, tmp_path / str(number))
    finally:
        sys.settrace(previous)
    assert {line for code in codes for line in lines_of(code)} - reached == set()


def lines_of(code: CodeType) -> set[int]:
    first = code.co_firstlineno
    return {line for _, _, line in code.co_lines() if line is not None and line > first}


def test_every_outcome_is_among_the_cases(tmp_path: Path) -> None:
    found = {
        in_python(case, tmp_path / str(number))[1][0] for number, case in enumerate(CASES.values())
    }
    assert found == {outcome.value for outcome in Outcome}


def test_the_library_has_no_state_and_needs_no_more_than_system_calls(tmp_path: Path) -> None:
    """The library has no writable globals, no allocation and no mutex: all threads may use it."""
    output = tmp_path / "snpcerts.o"
    build(output, ROOT / "native" / "snpcerts.c", "-c", "-fPIC")
    listed = subprocess.run(["nm", output], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in listed.splitlines()]
    kinds: dict[str, set[str]] = {}
    for kind, symbol in symbols:
        kinds.setdefault(kind, set()).add(symbol)
    assert kinds.keys() <= {"T", "t", "r", "U"}, kinds  # no b, B, d, D: nothing to write to
    assert kinds["U"] - {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"} == {
        *("__errno_location", "clock_gettime", "close", "fcntl", "fstat", "ioctl"),
        *("memset", "nanosleep", "open", "pread"),
        *("pthread_setcancelstate", "pthread_sigmask", "sigfillset", "stat"),
    }
