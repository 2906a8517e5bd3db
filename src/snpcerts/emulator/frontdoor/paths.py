# SPDX-License-Identifier: Apache-2.0
"""Finds the file that a path names for the thread that uses the path.

A path is resolved as the kernel would: from the thread's root, working directory or a directory
descriptor, through links, ``..``, ``/proc/self`` and the links of ``/proc/PID`` that lead to files
without a name. If part of a path does not exist, the rest is resolved by name only. So an emulated
file in a missing directory (``/sys/module/kvm_amd/parameters/sev``) is found too.

Resolution goes through ``/proc/TID`` and costs one or two system calls for each component. So the
door uses it only if a plain stat is not conclusive.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import Final

from snpcerts.emulator.frontdoor.tasks import task
from snpcerts.emulator.syscall.caller_memory import Iovec

AT_FDCWD: Final = -100
PATH_MAX: Final = 4096  # bytes, with the terminating zero
_PAGE: Final = 4096
_ADDRESS_LIMIT: Final = 1 << 64
_LINKS_MAX: Final = 40  # the kernel's limit, MAXSYMLINKS
_ENOENT: Final = frozenset((errno.ENOENT, errno.ENOTDIR))

# Paths that may lead elsewhere for another process.
RELATIVE_TO_PROCESS: Final = re.compile(
    rb"(?:^|/)(?:self|thread-self|fd|stdin|stdout|stderr)(?:/|\Z)"
)

# Links that the kernel resolves to an open file, not to a name.
_MAGIC_LINK = re.compile(rb"proc/\d+(/task/\d+)?/(fd/\d+|cwd|root|exe)\Z")


_libc = ctypes.CDLL(None, use_errno=True)
_read = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t,
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
)(("process_vm_readv", _libc))
_text = ctypes.create_string_buffer(PATH_MAX + 1)  # the last byte stays zero
_local = Iovec(ctypes.addressof(_text), PATH_MAX)
_remote = Iovec()
_local_address, _remote_address = ctypes.addressof(_local), ctypes.addressof(_remote)


def read_path(tid: int, address: int) -> bytes | None:
    """Return the zero-terminated path at ``address``; None if it cannot be read.

    In that case the address is invalid (EFAULT), the path is too long (ENAMETOOLONG), or this
    process may not read the thread's memory.
    """
    # Read to the end of the page first: the next page may be unmapped.
    size = _PAGE - address % _PAGE
    path = _read_text(tid, address, size)
    if path is None or len(path) < size:
        return path
    rest = _read_text(tid, address + size, PATH_MAX - size) if size < PATH_MAX else None
    if rest is None or len(rest) == PATH_MAX - size:
        return None
    return path + rest


def _read_text(tid: int, address: int, size: int) -> bytes | None:
    """Read bytes at ``address`` up to the first zero byte, or ``size`` bytes if none of them is
    zero; None if they cannot be read.
    """
    if address + size > _ADDRESS_LIMIT:
        return None
    _remote.base = address
    _remote.length = size
    got = _read(tid, _local_address, 1, _remote_address, 1, 0)
    if got < 0:
        return None
    _text[got] = b"\0"
    return _text.value


def is_hidden(tid: int) -> bool:
    """Whether this user may not inspect the thread's process."""
    try:
        os.readlink(b"/proc/%d/root" % tid)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def start(tid: int, dirfd: int, path: bytes) -> bytes:
    """Return a path under ``/proc/TID`` by which this process can open the file that ``path`` names
    for the thread ``tid``. The result is wrong for paths through ``/proc/self``, and for absolute
    links if the thread has another root.
    """
    if path.startswith(b"/"):
        return b"/proc/%d/root%b" % (tid, path)
    if dirfd == AT_FDCWD:
        return b"/proc/%d/cwd/%b" % (tid, path)
    return b"/proc/%d/fd/%d/%b" % (tid, dirfd, path)


@dataclass(frozen=True, slots=True)
class ResolvedPath:
    """Where a path leads: the resolved path and the file's status.

    ``path`` starts at the thread's root and contains no links and no ``..``. For a file without a
    name it is the text of its link in ``/proc``. ``status`` is None if nothing exists there.
    """

    path: bytes
    status: os.stat_result | None


def resolve(
    tid: int, dirfd: int, path: bytes, *, follow: bool, confined: bool = False
) -> ResolvedPath | None:
    """Return where ``path`` leads for the thread ``tid``; None if that cannot be determined, for
    example because of too many links or a wrong ``dirfd``.

    ``follow`` says whether to follow a link at the end. With ``confined``, the directory in which
    resolution starts is also its root, as with RESOLVE_IN_ROOT.
    """
    root = b"/proc/%d/root/" % tid
    try:
        return _walk(root, _start_of(tid, root, dirfd, path, confined), tid, follow)
    except OSError:
        return None


@dataclass(slots=True)
class _Walk:
    """The state of a path's resolution.

    ``done`` are the components resolved so far. ``todo`` are those that remain, the next one last.
    ``..`` removes no component below ``floor``.
    """

    done: list[bytes]
    todo: list[bytes]
    floor: int = 0


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _start_of(tid: int, root: bytes, dirfd: int, path: bytes, confined: bool) -> _Walk:
    todo = _parts(path)[::-1]
    if path.startswith(b"/") and not confined:
        return _Walk([], todo)
    link = b"/proc/%d/cwd" % tid if dirfd == AT_FDCWD else b"/proc/%d/fd/%d" % (tid, dirfd)
    done = _parts(_inside(root, os.readlink(link)))
    return _Walk(done, todo, len(done) if confined else 0)


def _inside(root: bytes, path: bytes) -> bytes:
    """Convert ``path``, which is valid for this process, to the path of the same file for a thread
    whose root is ``root``.
    """
    top = os.readlink(root.rstrip(b"/"))
    inside = top != b"/" and (path == top or path.startswith(top + b"/"))
    return (path[len(top) :] or b"/") if inside else path


def _walk(root: bytes, walk: _Walk, tid: int, follow: bool) -> ResolvedPath | None:
    links = 0
    while walk.todo:
        part = walk.todo.pop()
        if part == b"..":
            if len(walk.done) > walk.floor:
                walk.done.pop()
            continue
        name = b"/".join((*walk.done, part))
        if walk.todo or follow:
            if _MAGIC_LINK.match(name):
                text = _inside(root, os.readlink(root + name))
                status = os.stat(root + name)
                if not walk.todo or not stat.S_ISDIR(status.st_mode):
                    return ResolvedPath(text, status)
            else:
                text = _link(root, name, tid)
            if text:
                links += 1
                if links > _LINKS_MAX:
                    return None
                walk.todo += _parts(text)[::-1]
                if text.startswith(b"/"):
                    del walk.done[walk.floor :]
                continue
        walk.done.append(part)
    name = b"/".join(walk.done)
    try:
        return ResolvedPath(b"/" + name, os.lstat(root + name))
    except OSError as error:
        if error.errno not in _ENOENT:
            raise
        return ResolvedPath(b"/" + name, None)


def _link(root: bytes, name: bytes, tid: int) -> bytes:
    """Return the target of the link ``name``, or empty bytes if ``name`` is not a link or does not
    exist.
    """
    # The target of these links depends on the process that follows them.
    if name in (b"proc/self", b"proc/thread-self") and (asking := task(tid)) is not None:
        own = b"%d" % asking.process
        return own if name == b"proc/self" else b"%b/task/%d" % (own, tid)
    try:
        return os.readlink(root + name)
    except OSError as error:
        if error.errno == errno.EINVAL or error.errno in _ENOENT:
            return b""
        raise
