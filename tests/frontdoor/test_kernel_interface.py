# SPDX-License-Identifier: Apache-2.0
"""The filter's decisions, the path reader, and the errors on kernels without the needed
features.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.emulator.frontdoor import bpf, paths, seccomp
from snpcerts.emulator.frontdoor.bpf import Syscall
from snpcerts.emulator.frontdoor.spawn import spawn

from .conftest import Stage

NOTIFY, ALLOW = seccomp.SECCOMP_RET_USER_NOTIF, seccomp.SECCOMP_RET_ALLOW
SIX = (0,) * 6


def decide(program: bytes, number: int, *arguments: int, arch: int = bpf.AUDIT_ARCH_X86_64) -> int:
    """Run the filter as the kernel does."""
    words = [*arguments, *SIX][:6]
    data = struct.pack("<iIQ6Q", number, arch, 0, *words)
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            at += if_true if holds else if_false


@given(request=st.integers(0, (1 << 64) - 1), look=st.booleans())
def test_ioctls_are_trapped_by_their_type_byte_alone(request: int, look: bool) -> None:
    ours = request >> 8 & 0xFF in (0xAE, ord("S"))
    expected = NOTIFY if ours else ALLOW
    assert decide(bpf.program(look=look), Syscall.IOCTL, 3, request) == expected


@given(number=st.integers(0, 600), arguments=st.lists(st.integers(0, (1 << 64) - 1), max_size=6))
def test_calls_that_open_nothing_are_the_kernels(number: int, arguments: list[int]) -> None:
    if number not in set(Syscall):
        assert decide(bpf.program(look=True), number, *arguments) == ALLOW


@given(flags=st.integers(0, (1 << 32) - 1))
def test_every_open_but_of_a_directory_is_trapped(flags: int) -> None:
    expected = ALLOW if flags & os.O_DIRECTORY else NOTIFY
    program = bpf.program(look=False)
    assert decide(program, Syscall.OPENAT, 0, 0, flags) == expected
    assert decide(program, Syscall.OPEN, 0, flags) == expected
    assert decide(program, Syscall.OPENAT2, 0, 0, flags) == NOTIFY
    assert decide(program, Syscall.CREAT, 0, flags) == NOTIFY


@given(number=st.integers(0, 600), arguments=st.lists(st.integers(0, (1 << 64) - 1), max_size=6))
def test_in_a_namespace_only_ioctls_are_trapped(number: int, arguments: list[int]) -> None:
    decided = decide(bpf.program(look=False, opens=False), number, *arguments)
    assert decided != NOTIFY or number == Syscall.IOCTL


def test_looks_are_trapped_on_demand_only() -> None:
    looks = [Syscall.STAT, Syscall.LSTAT, Syscall.NEWFSTATAT, Syscall.STATX, Syscall.ACCESS]
    looks += [Syscall.GETXATTR, Syscall.LGETXATTR, Syscall.LISTXATTR, Syscall.LLISTXATTR]
    for call in (
        *looks,
        Syscall.FACCESSAT,
        Syscall.FACCESSAT2,
        Syscall.READLINK,
        Syscall.READLINKAT,
    ):
        assert decide(bpf.program(look=True), call) == NOTIFY, call
        assert decide(bpf.program(look=False), call) == ALLOW, call
    fstat = decide(bpf.program(look=True), Syscall.NEWFSTATAT, 3, 0, 0, bpf.AT_EMPTY_PATH)
    assert fstat == ALLOW


@given(number=st.integers(0, (1 << 31) - 1), arch=st.sampled_from([0x40000003, 0xC000003E]))
def test_other_numberings_do_not_exist(number: int, arch: int) -> None:
    if arch == bpf.AUDIT_ARCH_X86_64:
        number |= bpf.X32_BIT
    expected = seccomp.SECCOMP_RET_ERRNO | errno.ENOSYS
    assert decide(bpf.program(look=False), number, arch=arch) == expected


@given(text=st.binary(max_size=5000), offset=st.integers(0, 4095))
def test_paths_are_read_as_the_kernel_reads_them(text: bytes, offset: int) -> None:
    with mmap.mmap(-1, 3 * 4096) as memory:
        memory[offset : offset + len(text)] = text
        anchor = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(anchor) + offset
        read = paths.read_path(os.getpid(), address)
        del anchor
    path = text.split(b"\0")[0]
    assert read == (path if len(path) < paths.PATH_MAX else None)


@pytest.mark.parametrize("address", [0, 8, 1 << 47, (1 << 64) - 1, (1 << 64) - 4096])
def test_paths_at_bad_addresses_are_not_there(address: int) -> None:
    assert paths.read_path(os.getpid(), address) is None


@given(
    parts=st.lists(
        st.sampled_from(
            ["..", ".", "", "a", "b", "link", "up", "loop", "absolute", "file", "none"]
        ),
        min_size=1,
        max_size=8,
    ),
    follow=st.booleans(),
)
def test_paths_lead_where_the_kernel_says(tree: Path, parts: list[str], follow: bool) -> None:
    path = os.fsencode(tree) + b"/" + "/".join(parts).encode()
    place = paths.resolve(os.getpid(), paths.AT_FDCWD, path, follow=follow)
    try:
        status = os.stat(path, follow_symlinks=follow)
    except OSError:
        return
    assert place is not None
    assert place.status is not None
    # Before a trailing slash, even calls that do not follow links follow the last one.
    if not path.endswith((b"/", b"/.", b"/..")):
        assert os.path.samestat(place.status, status)
        assert not follow or place.path == os.path.realpath(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories a/b with files and links of all kinds."""
    top = tmp_path_factory.mktemp("tree")
    (top / "a/b").mkdir(parents=True)
    for directory in (top, top / "a", top / "a/b"):
        (directory / "file").write_bytes(b"")
        (directory / "up").symlink_to("..")
        (directory / "loop").symlink_to("loop")
        (directory / "link").symlink_to("a/../file")
        (directory / "absolute").symlink_to(top / "a")
    return top


def test_another_architecture_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(sysname="Linux", machine="aarch64"))
    with pytest.raises(seccomp.FrontDoorUnavailableError, match="this is Linux on aarch64"):
        seccomp.check()


@pytest.mark.parametrize(
    ("operation", "code", "says"),
    [
        (seccomp.SECCOMP_GET_ACTION_AVAIL, errno.EOPNOTSUPP, "user notification is not available"),
        (seccomp.SECCOMP_GET_ACTION_AVAIL, errno.EPERM, "container that allows seccomp"),
        (seccomp.SECCOMP_SET_MODE_FILTER, errno.EINVAL, "WAIT_KILLABLE_RECV.*Linux 5.19"),
    ],
)
def test_a_missing_kernel_feature_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch, operation: int, code: int, says: str
) -> None:
    real = seccomp._seccomp

    def without(asked: int, flags: int, argument: object) -> int:
        if asked == operation:
            raise OSError(code, os.strerror(code))
        return real(asked, flags, argument)

    monkeypatch.setattr(seccomp, "_seccomp", without)
    with pytest.raises(seccomp.FrontDoorUnavailableError, match=says):
        seccomp.check()


def test_a_door_behind_a_door_is_refused(stage: Stage) -> None:
    """The kernel allows one listener; the error is one line without a traceback."""
    script = (
        "from snpcerts.emulator.frontdoor import bpf, seccomp\n"
        "try: seccomp.install(bpf.program(look=False))\n"
        "except seccomp.FrontDoorUnavailableError as error: print(error)\n"
    )
    running = spawn(
        [sys.executable, "-c", script],
        stage.supervisor,
        stage.toys.door(look=False),
        stdout=subprocess.PIPE,
        way=stage.way,
    )
    assert "already has a seccomp listener" in " ".join(stage.finish(running))
