# SPDX-License-Identifier: Apache-2.0
"""FUSE messages, which the kernel exchanges with a program that serves a file system.

Source: ``include/uapi/linux/fuse.h``. Integers are little-endian. Declarations may omit fields that
the server neither reads nor sets.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final

from snpcerts.abi.cstruct import CStruct, s32, u16, u32, u64

MAJOR: Final = 7  # FUSE_KERNEL_VERSION
MINOR: Final = 31  # the newest minor version whose messages are declared here
FOPEN_DIRECT_IO: Final = 1 << 0
FUSE_BIG_WRITES: Final = 1 << 5
FATTR_SIZE: Final = 1 << 3
FATTR_FH: Final = 1 << 6
FATTR_LOCKOWNER: Final = 1 << 9
FUSE_ROOT_ID: Final = 1
MIN_READ_BUFFER: Final = 8192  # FUSE_MIN_READ_BUFFER


class Opcode(enum.IntEnum):
    """Operation codes of FUSE requests: ``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    RENAME2 = 45


@dataclass(frozen=True, slots=True)
class FuseInHeader(CStruct):
    """The header of every FUSE request."""

    SIZE: ClassVar[int] = 40
    C_NAME: ClassVar[str] = "struct fuse_in_header"
    len: int = u32(0)
    opcode: int = u32(4)
    unique: int = u64(8)
    nodeid: int = u64(16)
    uid: int = u32(24)
    gid: int = u32(28)
    pid: int = u32(32)


@dataclass(frozen=True, slots=True)
class FuseOutHeader(CStruct):
    """The header of every FUSE answer. ``error`` is 0 or a negative errno."""

    SIZE: ClassVar[int] = 16
    C_NAME: ClassVar[str] = "struct fuse_out_header"
    len: int = u32(0)
    error: int = s32(4)
    unique: int = u64(8)


@dataclass(frozen=True, slots=True)
class FuseInitIn(CStruct):
    """An INIT request: the fields that all versions have."""

    SIZE: ClassVar[int] = 64
    C_NAME: ClassVar[str] = "struct fuse_init_in"
    major: int = u32(0)
    minor: int = u32(4)
    max_readahead: int = u32(8)
    flags: int = u32(12)


@dataclass(frozen=True, slots=True)
class FuseInitOut(CStruct):
    """The answer to INIT."""

    SIZE: ClassVar[int] = 64
    C_NAME: ClassVar[str] = "struct fuse_init_out"
    major: int = u32(0)
    minor: int = u32(4)
    max_readahead: int = u32(8)
    flags: int = u32(12)
    max_background: int = u16(16)
    congestion_threshold: int = u16(18)
    max_write: int = u32(20)
    time_gran: int = u32(24)


@dataclass(frozen=True, slots=True)
class FuseAttr(CStruct):
    """The attributes of a file, as stat(2) shows them."""

    SIZE: ClassVar[int] = 88
    C_NAME: ClassVar[str] = "struct fuse_attr"
    ino: int = u64(0)
    size: int = u64(8)
    blocks: int = u64(16)
    atime: int = u64(24)
    mtime: int = u64(32)
    ctime: int = u64(40)
    mode: int = u32(60)
    nlink: int = u32(64)
    uid: int = u32(68)
    gid: int = u32(72)
    blksize: int = u32(80)


@dataclass(frozen=True, slots=True)
class FuseEntryOut(CStruct):
    """The answer to LOOKUP and MKDIR, which ends with a ``struct fuse_attr``."""

    SIZE: ClassVar[int] = 128
    C_NAME: ClassVar[str] = "struct fuse_entry_out"
    nodeid: int = u64(0)
    generation: int = u64(8)
    entry_valid: int = u64(16)
    attr_valid: int = u64(24)


@dataclass(frozen=True, slots=True)
class FuseAttrOut(CStruct):
    """The answer to GETATTR and SETATTR, which ends with a ``struct fuse_attr``."""

    SIZE: ClassVar[int] = 104
    C_NAME: ClassVar[str] = "struct fuse_attr_out"
    attr_valid: int = u64(0)


@dataclass(frozen=True, slots=True)
class FuseSetattrIn(CStruct):
    """A SETATTR request."""

    SIZE: ClassVar[int] = 88
    C_NAME: ClassVar[str] = "struct fuse_setattr_in"
    valid: int = u32(0)


@dataclass(frozen=True, slots=True)
class FuseOpenIn(CStruct):
    """An OPEN or OPENDIR request."""

    SIZE: ClassVar[int] = 8
    C_NAME: ClassVar[str] = "struct fuse_open_in"
    flags: int = u32(0)


@dataclass(frozen=True, slots=True)
class FuseOpenOut(CStruct):
    """The answer to OPEN and OPENDIR."""

    SIZE: ClassVar[int] = 16
    C_NAME: ClassVar[str] = "struct fuse_open_out"
    fh: int = u64(0)
    open_flags: int = u32(8)


@dataclass(frozen=True, slots=True)
class FuseReadIn(CStruct):
    """A READ or READDIR request."""

    SIZE: ClassVar[int] = 40
    C_NAME: ClassVar[str] = "struct fuse_read_in"
    fh: int = u64(0)
    offset: int = u64(8)
    size: int = u32(16)


@dataclass(frozen=True, slots=True)
class FuseWriteIn(CStruct):
    """A WRITE request. The data to write follows."""

    SIZE: ClassVar[int] = 40
    C_NAME: ClassVar[str] = "struct fuse_write_in"
    fh: int = u64(0)
    offset: int = u64(8)
    size: int = u32(16)


@dataclass(frozen=True, slots=True)
class FuseWriteOut(CStruct):
    """The answer to WRITE."""

    SIZE: ClassVar[int] = 8
    C_NAME: ClassVar[str] = "struct fuse_write_out"
    size: int = u32(0)


@dataclass(frozen=True, slots=True)
class FuseReleaseIn(CStruct):
    """A RELEASE or RELEASEDIR request."""

    SIZE: ClassVar[int] = 24
    C_NAME: ClassVar[str] = "struct fuse_release_in"
    fh: int = u64(0)


@dataclass(frozen=True, slots=True)
class FuseMkdirIn(CStruct):
    """A MKDIR request. The directory's name follows, ending with a zero byte."""

    SIZE: ClassVar[int] = 8
    C_NAME: ClassVar[str] = "struct fuse_mkdir_in"
    mode: int = u32(0)
    umask: int = u32(4)


@dataclass(frozen=True, slots=True)
class FuseDirent(CStruct):
    """One entry in the answer to READDIR. The name follows, padded with zeros to a multiple of 8
    bytes.
    """

    SIZE: ClassVar[int] = 24
    C_NAME: ClassVar[str] = "struct fuse_dirent"
    ino: int = u64(0)
    off: int = u64(8)
    namelen: int = u32(16)
    type: int = u32(20)


@dataclass(frozen=True, slots=True)
class FuseForgetIn(CStruct):
    """A FORGET request, which gets no answer."""

    SIZE: ClassVar[int] = 8
    C_NAME: ClassVar[str] = "struct fuse_forget_in"
    nlookup: int = u64(0)


@dataclass(frozen=True, slots=True)
class FuseBatchForgetIn(CStruct):
    """A BATCH_FORGET request, followed by ``count`` :class:`FuseForgetOne` structures."""

    SIZE: ClassVar[int] = 8
    C_NAME: ClassVar[str] = "struct fuse_batch_forget_in"
    count: int = u32(0)


@dataclass(frozen=True, slots=True)
class FuseForgetOne(CStruct):
    """One node to forget, in a BATCH_FORGET request."""

    SIZE: ClassVar[int] = 16
    C_NAME: ClassVar[str] = "struct fuse_forget_one"
    nodeid: int = u64(0)
    nlookup: int = u64(8)


@dataclass(frozen=True, slots=True)
class FuseInterruptIn(CStruct):
    """An INTERRUPT request: it names a request whose caller has received a signal. It gets no
    answer.
    """

    SIZE: ClassVar[int] = 8
    C_NAME: ClassVar[str] = "struct fuse_interrupt_in"
    unique: int = u64(0)


@dataclass(frozen=True, slots=True)
class FuseKstatfs(CStruct):
    """The answer to STATFS."""

    SIZE: ClassVar[int] = 80
    C_NAME: ClassVar[str] = "struct fuse_kstatfs"
    blocks: int = u64(0)
    bfree: int = u64(8)
    bavail: int = u64(16)
    files: int = u64(24)
    ffree: int = u64(32)
    bsize: int = u32(40)
    namelen: int = u32(44)
    frsize: int = u32(48)
