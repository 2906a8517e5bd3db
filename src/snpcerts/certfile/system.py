# SPDX-License-Identifier: Apache-2.0
"""Runs the protocol's steps as real system calls."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from typing import Any, TypeVar

from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK, SHARED
from snpcerts.certfile import step, trusted_path

T = TypeVar("T")

# O_NONBLOCK, because opening a FIFO must not wait for its other end.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CONFLICT = (errno.EAGAIN, errno.EACCES)  # POSIX allows both


def perform(steps: step.Steps[T]) -> T:
    """Run a protocol with real system calls; return its result.

    An exception that a step raises is thrown into the protocol, which cleans up (closes, rolls
    back) and raises it again.
    """
    try:
        action = next(steps)
        while True:
            try:
                result = _PERFORM[type(action)](action)
            except BaseException as error:
                action = steps.throw(error)
            else:
                action = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


def _lock(fd: int, flock: bytes) -> bool:
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, flock)
    except OSError as error:
        if error.errno in _CONFLICT:
            return False
        raise
    return True


def _stat(status: os.stat_result) -> step.FileStat:
    return step.FileStat(
        status.st_dev,
        status.st_ino,
        status.st_size,
        stat.S_ISREG(status.st_mode),
        status.st_nlink,
    )


def _read(fd: int, size: int) -> bytes:
    data = os.pread(fd, size, 0)
    if len(data) == size:
        return data
    parts = [data]
    done = len(data)
    while data and done < size:
        data = os.pread(fd, size - done, done)
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    mine = os.fstat(target)
    if (status.st_uid, status.st_gid) != (mine.st_uid, mine.st_gid):
        os.fchown(target, status.st_uid, status.st_gid)
    # Access control lists and security labels are extended attributes.
    for name in os.listxattr(source):
        value = os.getxattr(source, name)
        try:
            same = os.getxattr(target, name) == value
        except OSError:
            same = False
        if not same:
            os.setxattr(target, name, value)
    # Do this last: changing the owner clears mode bits, and an ACL's mask is part of the mode.
    os.fchmod(target, stat.S_IMODE(status.st_mode))


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


_PERFORM: dict[type, Callable[[Any], Any]] = {
    step.Now: lambda _: time.monotonic(),
    step.Pause: lambda s: time.sleep(s.seconds),
    step.Resolve: lambda s: trusted_path.resolve(s.path),
    step.OpenRead: lambda s: os.open(s.path, _READ),
    step.OpenWrite: lambda s: os.open(s.path, _WRITE | os.O_NOFOLLOW),
    step.Create: lambda s: os.open(s.path, _WRITE | os.O_CREAT | os.O_EXCL, s.mode),
    step.OpenOrCreate: lambda s: os.open(s.path, _WRITE | os.O_CREAT | os.O_NOFOLLOW, s.mode),
    step.Close: lambda s: os.close(s.fd),
    step.LockShared: lambda s: _lock(s.fd, SHARED),
    step.LockExclusive: lambda s: _lock(s.fd, EXCLUSIVE),
    step.Stat: lambda s: _stat(os.fstat(s.fd)),
    step.StatPath: lambda s: _stat(os.stat(s.path)),
    step.Read: lambda s: _read(s.fd, s.size),
    step.Write: lambda s: _write(s.fd, s.data, s.offset),
    step.Truncate: lambda s: os.ftruncate(s.fd, s.size),
    step.Sync: lambda s: os.fsync(s.fd),
    step.SyncDirectory: lambda s: _sync_directory(s.path),
    step.CopyAttributes: lambda s: _copy_attributes(s.source, s.target),
    step.Link: lambda s: os.link(s.path, s.second, follow_symlinks=False),
    step.Rename: lambda s: os.rename(s.source, s.target),
    step.Unlink: lambda s: _unlink(s.path),
    step.Change: lambda s: s.call(),
    step.Deliver: lambda s: s.call(s.found),
    step.Handshake: lambda s: s.call(),
}
