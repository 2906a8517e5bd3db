# SPDX-License-Identifier: Apache-2.0
"""Serves an emulated file system (:mod:`snpcerts.emulator.syscall.file_tree`) through FUSE.

The kernel sends each system call on the mounted tree as a message, so a program needs no
preparation, and calls on other file systems are not slowed down. Nothing is cached: each read and
write arrives as the program made it. As in the emulated drivers, no signal interrupts a call except
SIGKILL, which ends it with EINTR.

RELEASE takes effect before the next message, since the kernel sends it before close(2) returns and
messages arrive in order. One difference from an in-kernel file system remains: a write of no bytes
returns 0 and causes no message.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

from snpcerts.abi.cstruct import CStruct
from snpcerts.emulator.frontdoor.fuse_messages import (
    FATTR_FH,
    FATTR_LOCKOWNER,
    FATTR_SIZE,
    FOPEN_DIRECT_IO,
    FUSE_BIG_WRITES,
    FUSE_ROOT_ID,
    MAJOR,
    MIN_READ_BUFFER,
    MINOR,
    FuseAttr,
    FuseAttrOut,
    FuseBatchForgetIn,
    FuseDirent,
    FuseEntryOut,
    FuseForgetIn,
    FuseForgetOne,
    FuseInHeader,
    FuseInitIn,
    FuseInitOut,
    FuseInterruptIn,
    FuseKstatfs,
    FuseMkdirIn,
    FuseOpenIn,
    FuseOpenOut,
    FuseOutHeader,
    FuseReadIn,
    FuseReleaseIn,
    FuseSetattrIn,
    FuseWriteIn,
    FuseWriteOut,
    Opcode,
)
from snpcerts.emulator.frontdoor.tasks import task
from snpcerts.emulator.syscall.file_tree import OpenTreeFile, Operation, TreeDirectory, TreeFile
from snpcerts.errors import FormatError

log = logging.getLogger(__name__)

WRITE_MAX: Final = 64 << 10  # bytes that one WRITE can carry
MESSAGES_MAX: Final = 0xFFFF  # queued messages whose sender does not wait, such as RELEASE
_BUFFER: Final = MIN_READ_BUFFER + WRITE_MAX
_NAME_MAX: Final = 255
_NOT_SERVED: Final = {
    Opcode.MKNOD: errno.EPERM,
    Opcode.CREATE: errno.EACCES,
    Opcode.SYMLINK: errno.EPERM,
    Opcode.LINK: errno.EPERM,
    Opcode.RENAME: errno.EPERM,
    Opcode.RENAME2: errno.EPERM,
    Opcode.UNLINK: errno.EPERM,
    Opcode.FSYNC: errno.EINVAL,
    Opcode.IOCTL: errno.ENOTTY,
}

Handling = Generator[None, None, bytes]


@dataclass(slots=True)
class _Request:
    header: FuseInHeader
    handling: Handling
    interrupted: bool = False


class TreeServer:
    """Serves one mounted tree. Takes ownership of ``descriptor``, an open ``/dev/fuse``.

    All files in the tree belong to this process's user.
    """

    def __init__(self, descriptor: int, root: TreeDirectory) -> None:
        self._descriptor = descriptor
        self._owner = os.geteuid(), os.getegid()
        os.set_blocking(descriptor, False)
        self._nodes: dict[int, TreeFile | TreeDirectory] = {FUSE_ROOT_ID: root}
        self._lookups: dict[int, int] = {}
        self._open: dict[int, OpenTreeFile] = {}
        self._listed: dict[int, list[tuple[str, TreeFile | TreeDirectory]]] = {}
        self._handles = 0
        self._requests: dict[int, _Request] = {}
        self._serves: dict[int, Callable[[FuseInHeader, bytes], Handling]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.MKDIR: self._mkdir,
            Opcode.RMDIR: self._rmdir,
            Opcode.OPEN: self._open_file,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: _nothing,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: self._open_directory,
            Opcode.READDIR: self._read_directory,
            Opcode.RELEASEDIR: self._release_directory,
            Opcode.STATFS: self._statfs,
            Opcode.DESTROY: _nothing,
        }

    def fileno(self) -> int:
        """Return the descriptor of ``/dev/fuse``, which is readable when the kernel has sent a
        message.
        """
        return self._descriptor

    @property
    def interrupted(self) -> bool:
        """Whether the caller of a waiting call has received a signal."""
        return any(request.interrupted for request in self._requests.values())

    def serve(self) -> bool:
        """Receive and handle one message. Returns False if the tree is no longer mounted, or if the
        message does not come from the kernel.
        """
        try:
            message = os.read(self._descriptor, _BUFFER)
        except OSError as error:
            # ENOENT: the caller gave up before the message was received.
            return error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT)
        try:
            self._begin(message)
        except FormatError as error:  # the descriptor is not a /dev/fuse
            log.warning("FUSE: %s", error)
            return False
        return True

    def _begin(self, message: bytes) -> None:
        header, body = FuseInHeader.unpack(message), message[FuseInHeader.SIZE :]
        if header.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            self._forget(header, body)
        elif header.opcode == Opcode.INTERRUPT:
            self._interrupt(FuseInterruptIn.unpack(body).unique)
        elif header.opcode in _NOT_SERVED:
            self._answer(header.unique, _NOT_SERVED[Opcode(header.opcode)])
        elif (begin := self._serves.get(header.opcode)) is None:
            self._answer(header.unique, errno.ENOSYS)
        else:
            request = _Request(header, begin(header, body))
            self._requests[header.unique] = request
            self._go_on(request)

    def go_on(self) -> int:
        """Resume the calls that are waiting, and return how many of them have ended."""
        return sum(self._go_on(request) for request in list(self._requests.values()))

    def end_killed(self) -> None:
        """End the waiting calls whose callers have been killed."""
        # The kernel reports only the first signal. SIGKILL may be a later one.
        for request in list(self._requests.values()):
            if request.interrupted and _is_killed(request.header.pid):
                request.handling.close()
                del self._requests[request.header.unique]
                self._answer(request.header.unique, errno.EINTR)

    def close(self) -> list[Operation[None]]:
        """Stop serving. Waiting and later calls fail with ENOTCONN or ECONNABORTED.

        Returns the operations that close the open files, because at an unmount the kernel drops
        each RELEASE that has not been received.
        """
        for request in self._requests.values():
            request.handling.close()
        self._requests.clear()
        os.close(self._descriptor)
        return [opened.close() for opened in self._open.values()]

    def _go_on(self, request: _Request) -> bool:
        unique = request.header.unique
        try:
            next(request.handling)
        except StopIteration as done:
            answer, code = done.value, 0
        except OSError as error:
            answer, code = b"", error.errno or errno.EIO
        except FormatError:
            answer, code = b"", errno.EIO
        else:
            return False
        del self._requests[unique]
        self._answer(unique, code, answer)
        return True

    def _answer(self, unique: int, code: int, body: bytes = b"") -> None:
        size = FuseOutHeader.SIZE + len(body)
        try:
            os.write(self._descriptor, FuseOutHeader(size, -code, unique).pack() + body)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # the caller has ended
                log.warning("FUSE: the kernel did not accept an answer (%s)", error)

    def _interrupt(self, unique: int) -> None:
        request = self._requests.get(unique)
        if request is not None:
            request.interrupted = True
            self.end_killed()

    def _forget(self, header: FuseInHeader, body: bytes) -> None:
        if header.opcode == Opcode.FORGET:
            forgotten = [(header.nodeid, FuseForgetIn.unpack(body).nlookup)]
        else:
            count, rest = FuseBatchForgetIn.unpack(body).count, body[FuseBatchForgetIn.SIZE :]
            size = FuseForgetOne.SIZE
            ones = (FuseForgetOne.unpack(rest[at * size :]) for at in range(count))
            forgotten = [(one.nodeid, one.nlookup) for one in ones]
        for number, lookups in forgotten:
            if number != FUSE_ROOT_ID and number in self._lookups:
                self._lookups[number] -= lookups
                if self._lookups[number] <= 0:
                    del self._lookups[number], self._nodes[number]

    # Nodes.

    def _node(self, number: int) -> TreeFile | TreeDirectory:
        found = self._nodes.get(number)
        if found is None:
            raise OSError(errno.ESTALE, f"the emulated file system has no node {number}")
        return found

    def _directory(self, number: int) -> TreeDirectory:
        found = self._node(number)
        if not stat.S_ISDIR(found.mode):
            raise OSError(errno.ENOTDIR, f"node {number} is not a directory")
        return found  # type: ignore[return-value]  # its mode says that it is a directory

    def _attributes(self, node: TreeFile | TreeDirectory) -> bytes:
        user, group = self._owner
        links = 2 if stat.S_ISDIR(node.mode) else 1
        return FuseAttr(
            ino=node.number,
            size=node.size,
            mode=node.mode,
            nlink=links,
            uid=user,
            gid=group,
            blksize=4096,
        ).pack()

    def _entry(self, node: TreeFile | TreeDirectory) -> bytes:
        self._nodes[node.number] = node
        self._lookups[node.number] = self._lookups.get(node.number, 0) + 1
        return _with_attributes(FuseEntryOut(nodeid=node.number), self._attributes(node))

    # The operations. Each is a generator. An operation that never waits ends with a yield that is
    # never reached and only makes the function a generator.

    def _init(self, _: FuseInHeader, body: bytes) -> Handling:
        asked = FuseInitIn.unpack(body.ljust(FuseInitIn.SIZE, b"\0"))
        if asked.major != MAJOR:
            raise OSError(
                errno.EPROTO, f"FUSE major version: expected {MAJOR}, found {asked.major}"
            )
        return FuseInitOut(
            major=MAJOR,
            minor=min(MINOR, asked.minor),
            max_readahead=asked.max_readahead,
            flags=FUSE_BIG_WRITES,
            max_background=MESSAGES_MAX,
            congestion_threshold=MESSAGES_MAX,
            max_write=WRITE_MAX,
            time_gran=1,
        ).pack()
        yield

    def _lookup(self, header: FuseInHeader, body: bytes) -> Handling:
        name = _name(body)
        found = self._directory(header.nodeid).entries.get(name)
        if found is None:
            raise OSError(errno.ENOENT, f"directory {header.nodeid} has no entry {name!r}")
        return self._entry(found)
        yield

    def _getattr(self, header: FuseInHeader, _: bytes) -> Handling:
        return _with_attributes(FuseAttrOut(), self._attributes(self._node(header.nodeid)))
        yield

    def _setattr(self, header: FuseInHeader, body: bytes) -> Handling:
        """Handle SETATTR for O_TRUNC, which changes nothing; refuse any other change."""
        changes = FuseSetattrIn.unpack(body).valid & ~(FATTR_FH | FATTR_LOCKOWNER)
        if changes != FATTR_SIZE:
            raise OSError(errno.EPERM, "the attributes of an emulated file cannot be changed")
        return _with_attributes(FuseAttrOut(), self._attributes(self._node(header.nodeid)))
        yield

    def _mkdir(self, header: FuseInHeader, body: bytes) -> Handling:
        name = _name(body[FuseMkdirIn.SIZE :])
        made = yield from self._directory(header.nodeid).make(name)
        return self._entry(made)

    def _rmdir(self, header: FuseInHeader, body: bytes) -> Handling:
        yield from self._directory(header.nodeid).remove(_name(body))
        return b""

    def _open_file(self, header: FuseInHeader, body: bytes) -> Handling:
        node = self._node(header.nodeid)
        if stat.S_ISDIR(node.mode):
            raise OSError(errno.EISDIR, "a directory cannot be opened as a file")
        opened = node.open(FuseOpenIn.unpack(body).flags)  # type: ignore[union-attr]  # by its mode
        self._handles += 1
        self._open[self._handles] = opened
        return FuseOpenOut(fh=self._handles, open_flags=FOPEN_DIRECT_IO).pack()
        yield

    def _opened(self, handle: int) -> OpenTreeFile:
        found = self._open.get(handle)
        if found is None:
            raise OSError(errno.EBADF, f"no open file has the handle {handle}")
        return found

    def _read(self, _: FuseInHeader, body: bytes) -> Handling:
        asked = FuseReadIn.unpack(body)
        return (yield from self._opened(asked.fh).read(asked.offset, asked.size))

    def _write(self, _: FuseInHeader, body: bytes) -> Handling:
        asked = FuseWriteIn.unpack(body)
        data = body[FuseWriteIn.SIZE : FuseWriteIn.SIZE + asked.size]
        written = yield from self._opened(asked.fh).write(asked.offset, data)
        return FuseWriteOut(size=written).pack()

    def _release(self, _: FuseInHeader, body: bytes) -> Handling:
        handle = FuseReleaseIn.unpack(body).fh
        if handle in self._open:
            yield from self._open[handle].close()
            del self._open[handle]
        return b""

    def _open_directory(self, header: FuseInHeader, _: bytes) -> Handling:
        self._handles += 1
        self._listed[self._handles] = list(self._directory(header.nodeid).entries.items())
        return FuseOpenOut(fh=self._handles).pack()
        yield

    def _read_directory(self, header: FuseInHeader, body: bytes) -> Handling:
        asked = FuseReadIn.unpack(body)
        itself = self._directory(header.nodeid)
        # ".." has this directory's inode number, not its parent's.
        listed = [(".", itself), ("..", itself), *self._listed.get(asked.fh, ())]
        found = b""
        for place, (name, node) in enumerate(listed[asked.offset :], asked.offset + 1):
            encoded = os.fsencode(name)
            kind = stat.S_IFMT(node.mode) >> 12
            entry = FuseDirent(node.number, place, len(encoded), kind).pack() + encoded
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > asked.size:
                break
            found += entry
        return found
        yield

    def _release_directory(self, _: FuseInHeader, body: bytes) -> Handling:
        self._listed.pop(FuseReleaseIn.unpack(body).fh, None)
        return b""
        yield

    def _statfs(self, _: FuseInHeader, _body: bytes) -> Handling:
        return FuseKstatfs(bsize=4096, frsize=4096, namelen=_NAME_MAX).pack()
        yield


def _nothing(_: FuseInHeader, _body: bytes) -> Handling:
    return b""
    yield


def _is_killed(tid: int) -> bool:
    caller = task(tid)
    return caller is None or bool((caller.own | caller.shared) & 1 << signal.SIGKILL - 1)


def _with_attributes(answer: CStruct, attributes: bytes) -> bytes:
    return answer.pack()[: -len(attributes)] + attributes


def _name(body: bytes) -> str:
    name = body.partition(b"\0")[0]
    if len(name) > _NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "the file name is too long")
    return os.fsdecode(name)
