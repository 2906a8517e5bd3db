# SPDX-License-Identifier: Apache-2.0
"""Calls on open files, seen before they happen, held back, and answered in the kernel's place."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.lock import F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_SETLK, F_SETLKW
from snpcerts.conformance.file_observer import HeldUntil, read_short, refusal_of, takes_lock
from snpcerts.emulator.frontdoor import bpf
from snpcerts.emulator.frontdoor.bpf import FILE_CALLS, Syscall
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.file_watch import FileCall, OpenCall
from snpcerts.emulator.syscall.device import Pending

from .conftest import Stage
from .test_kernel_interface import ALLOW, NOTIFY, decide

PROGRAM = """
import fcntl, mmap, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
exec(sys.argv[2])
"""


@dataclass
class Diary:
    """A watch on one file that records its calls."""

    path: Path
    react: Callable[[FileCall], int | Pending | None] = lambda _: None
    seen: list[FileCall] = field(default_factory=list)
    refused: dict[bytes, int] = field(default_factory=dict)
    examined: list[tuple[int, bytes]] = field(default_factory=list)

    def opening(self, call: OpenCall) -> int | None:
        """Refuse what is in ``refused``."""
        return self.refused.get(call.path)

    def examining(self, tid: int, _dirfd: int, path: bytes) -> None:
        self.examined.append((tid, path))

    def wants(self, found: os.stat_result) -> bool:
        return os.path.samestat(found, self.path.stat())

    def before(self, call: FileCall) -> int | Pending | None:
        self.seen.append(call)
        return self.react(call)

    @property
    def calls(self) -> list[Syscall]:
        return [call.call for call in self.seen]


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40)
    return Diary(path)


def run(stage: Stage, diary: Diary, statements: str) -> str:
    """Run Python statements with ``fd`` open on the file; return what they print."""
    python = Path(sys.executable)
    argv = ("-S", "-c", PROGRAM, diary.path, statements)
    door = Door({}, look=False, watch=diary)
    return " ".join(stage.printed(*argv, program=python, door=door))


def test_an_open_is_refused_in_the_kernels_place(stage: Stage, diary: Diary) -> None:
    other = os.fsencode(diary.path.with_name("other"))
    diary.refused[other] = -errno.EACCES
    statements = (
        "for path in (sys.argv[1], sys.argv[1].replace('file', 'other')):\n"
        "    try:\n        os.open(path, os.O_RDONLY); print('opened')\n"
        "    except OSError as error:\n        print(error.errno)"
    )
    assert run(stage, diary, statements) == f"opened {errno.EACCES}"


def test_examining_a_path_is_seen_before_it_happens(stage: Stage, diary: Diary) -> None:
    statements = (
        "os.fstat(fd); print(os.stat(sys.argv[1]).st_size, os.lstat(sys.argv[1]).st_size, "
        "os.access(sys.argv[1], os.R_OK))"
    )
    size = diary.path.stat().st_size
    assert run(stage, diary, statements) == f"{size} {size} True"
    found = [tid for tid, path in diary.examined if path == os.fsencode(diary.path)]
    assert len(found) == 3
    assert len(set(found)) == 1


@given(call=st.sampled_from(sorted(FILE_CALLS)), word=st.integers(0, (1 << 32) - 1))
def test_calls_on_files_are_trapped_only_for_a_watch(call: Syscall, word: int) -> None:
    arguments = [3, word, 0, bpf.MAP_ANONYMOUS if word & 1 else 0]
    assert decide(bpf.program(look=True), call, *arguments) == ALLOW
    expected = NOTIFY
    if call is Syscall.MMAP and word & 1:
        expected = ALLOW
    if call is Syscall.FCNTL and word not in (F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW):
        expected = ALLOW
    assert decide(bpf.program(look=False, watch=True), call, *arguments) == expected


@pytest.mark.parametrize("command", [F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW])
def test_every_command_that_locks_is_trapped(command: int) -> None:
    program = bpf.program(look=False, watch=True)
    assert decide(program, Syscall.FCNTL, 3, command) == NOTIFY
    assert decide(program, Syscall.FCNTL, 3, F_OFD_GETLK) == ALLOW


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ("os.read(fd, 10)", [Syscall.READ]),
        ("os.pread(fd, 10, 5)", [Syscall.PREAD64]),
        ("os.readv(fd, [bytearray(4)])", [Syscall.READV]),
        ("os.preadv(fd, [bytearray(4)], 0)", [Syscall.PREADV2]),
        ("mmap.mmap(fd, 4096)", [Syscall.MMAP]),
        ("fcntl.flock(fd, fcntl.LOCK_SH)", [Syscall.FLOCK]),
        ("fcntl.lockf(fd, fcntl.LOCK_SH)", [Syscall.FCNTL]),
        ("os.close(fd)", [Syscall.CLOSE]),
        ("other = os.open('/dev/null', 0); os.read(other, 1)", []),
    ],
)
def test_calls_on_a_watched_file_are_seen_and_performed(
    stage: Stage, diary: Diary, statements: str, expected: list[Syscall]
) -> None:
    assert run(stage, diary, f"{statements}; print('done')") == "done"
    # Python may also close ``fd`` when it ends.
    assert diary.calls[: len(expected)] == expected
    assert set(diary.calls[len(expected) :]) <= {Syscall.CLOSE}


def test_a_call_can_be_answered_in_the_kernels_place(stage: Stage, diary: Diary) -> None:
    diary.react = lambda call: -errno.EIO if call.call is Syscall.READ else None
    said = run(
        stage,
        diary,
        "try: os.read(fd, 10)\nexcept OSError as error: print(error.errno)",
    )
    assert said == str(errno.EIO)


def test_a_call_can_be_held_back_until_something_has_happened(stage: Stage, diary: Diary) -> None:
    written: list[float] = []

    def react(call: FileCall) -> HeldUntil | None:
        if call.call is not Syscall.PREAD64:
            return None
        diary.path.write_bytes(b"changed meanwhile")
        written.append(time.monotonic())
        return HeldUntil(lambda: time.monotonic() > written[0] + 0.05, 60)

    diary.react = react
    assert run(stage, diary, "print(os.pread(fd, 7, 0).decode())") == "changed"


def test_a_call_is_not_held_back_for_ever(stage: Stage, diary: Diary) -> None:
    diary.react = lambda call: (
        HeldUntil(lambda: False, 0.05) if call.call is Syscall.PREAD64 else None
    )
    assert run(stage, diary, "print(len(os.pread(fd, 7, 0)))") == "7"


@pytest.mark.parametrize(
    "read",
    [
        "os.read(fd, 5000)",
        "os.pread(fd, 5000, {at})",
        "(lambda b: os.readv(fd, b) and b''.join(b))([bytearray(1000), bytearray(4000)])",
        "(lambda b: os.preadv(fd, b, {at}) and b''.join(b))([bytearray(1), bytearray(4999)])",
    ],
)
def test_a_read_cut_short_gives_the_files_bytes_and_moves_on(
    stage: Stage, diary: Diary, read: str
) -> None:
    """A read returns half the requested bytes, and the next plain read continues there."""
    cut: list[int] = []

    def react(call: FileCall) -> int | None:
        if cut or call.call not in (
            Syscall.READ,
            Syscall.PREAD64,
            Syscall.READV,
            Syscall.PREADV,
            Syscall.PREADV2,
        ):
            return None
        done = read_short(call)
        cut.append(done or 0)
        return done

    diary.react = react
    first, second = read.format(at=0), read.format(at=2500)
    said = run(
        stage,
        diary,
        f"a = bytes({first})[:2500]; b = bytes({second})[:2500]\n"
        "with open(sys.argv[1], 'rb') as whole: print(a + b == whole.read(5000))",
    )
    assert cut == [2500]
    assert said == "True"


def test_a_read_of_one_byte_and_a_mapping_cannot_be_cut_short(stage: Stage, diary: Diary) -> None:
    results: list[int | None] = []

    def react(call: FileCall) -> None:
        if call.call in (Syscall.READ, Syscall.MMAP):
            results.append(read_short(call))

    diary.react = react
    run(stage, diary, "os.read(fd, 1); mmap.mmap(fd, 4096)")
    assert results == [None, None]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("fcntl.fcntl(fd, 37, struct.pack('<hh4xqqi4x', 0, 0, 0, 0, 0))", True),
        ("fcntl.fcntl(fd, 37, struct.pack('<hh4xqqi4x', 1, 0, 0, 0, 0))", True),
        ("fcntl.fcntl(fd, 37, struct.pack('<hh4xqqi4x', 2, 0, 0, 0, 0))", False),
        ("fcntl.lockf(fd, fcntl.LOCK_UN)", False),
        ("fcntl.flock(fd, fcntl.LOCK_EX)", True),
        ("fcntl.flock(fd, fcntl.LOCK_UN)", False),
        ("os.read(fd, 1)", False),
    ],
)
def test_taking_a_lock_is_distinguished_from_releasing_it(
    stage: Stage, diary: Diary, statement: str, expected: bool
) -> None:
    taken: list[bool] = []
    diary.react = lambda call: taken.append(takes_lock(call))
    run(stage, diary, statement)
    assert taken[0] is expected


@pytest.mark.parametrize(
    ("mode", "lock", "code"),
    [
        ("O_RDONLY", "hhqqi4x', fcntl.F_RDLCK, 0, 0, 0, 0", 0),
        ("O_RDWR", "hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0", 0),
        ("O_RDONLY", "hhqqi4x', fcntl.F_RDLCK, 0, 0, 0, 7", errno.EINVAL),
        ("O_WRONLY", "hhqqi4x', fcntl.F_RDLCK, 0, 0, 0, 0", errno.EBADF),
        ("O_RDONLY", "hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0", errno.EBADF),
    ],
)
def test_the_reason_for_which_the_kernel_refuses_a_lock_is_known(
    stage: Stage, diary: Diary, mode: str, lock: str, code: int
) -> None:
    said: list[str] = []
    diary.react = lambda call: said.append(refusal_of(call)) if takes_lock(call) else None
    statements = (
        f"fd = os.open(sys.argv[1], os.{mode})\n"
        f"try:\n    fcntl.fcntl(fd, {F_OFD_SETLK}, struct.pack('{lock}))\n"
        "except OSError as error:\n    print(error.errno)\nelse:\n    print(0)"
    )
    assert run(stage, diary, statements) == str(code)
    (reason,) = said
    assert (errno.errorcode[code] in reason) if code else not reason
