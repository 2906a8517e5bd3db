# SPDX-License-Identifier: Apache-2.0
"""Builds the results of stat(2) and statx(2) for a path that exists only in the emulation.

Layouts: ``asm/stat.h`` of x86-64 (144 bytes) and ``linux/stat.h`` (struct statx, 256 bytes);
little-endian. Devices are character devices of mode 0600. Files have mode 0444 and, like sysfs
files, a size of one page.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Final

from snpcerts.emulator.frontdoor.door import KVM_RDEV, Match, PathKind

_PAGE: Final = 4096
_STATX_BASIC_STATS: Final = 0x7FF
_DEVTMPFS: Final = os.makedev(0, 6)
_MISC_MAJOR: Final = 10

# st_dev, st_ino, st_nlink, st_mode, st_uid, st_gid, st_rdev, st_size, st_blksize,
# st_blocks, three timestamps (seconds, nanoseconds) and three reserved words.
_STAT = struct.Struct("<QQQIII4xQqqq48x24x")
# stx_mask, stx_blksize, stx_attributes, stx_nlink, stx_uid, stx_gid, stx_mode, stx_ino, stx_size,
# stx_blocks, stx_attributes_mask, four timestamps, major and minor numbers of stx_rdev and stx_dev,
# and fields of later kernels.
_STATX = struct.Struct("<IIQIIIH2xQQQQ64xIIII112x")

_MODES: Final = {
    PathKind.DEVICE: stat.S_IFCHR | 0o600,
    PathKind.FILE: stat.S_IFREG | 0o444,
    PathKind.DIRECTORY: stat.S_IFDIR | 0o755,
}


def _device_number(match: Match) -> int:
    if match.kind is not PathKind.DEVICE:
        return 0
    if match.path == b"/dev/kvm":
        return KVM_RDEV
    # The kernel assigns minor numbers dynamically, from 256 once the lower ones are used up.
    return os.makedev(_MISC_MAJOR, 256 + _inode(match) % 256)


def _inode(match: Match) -> int:
    """Return the inode number that the front door has for the path. If it has none, return a
    number that depends only on the path.
    """
    if match.inode is not None:
        return match.inode
    number = 0
    for byte in match.path:
        number = (number * 257 + byte) % ((1 << 31) - 1)
    return number + 2


def stat_of(match: Match) -> bytes:
    """Return ``struct stat`` for the emulated path in ``match``."""
    return _STAT.pack(
        _DEVTMPFS,
        _inode(match),
        1,
        _MODES[match.kind],
        os.geteuid(),
        os.getegid(),
        _device_number(match),
        _PAGE if match.kind is PathKind.FILE else 0,
        _PAGE,
        0,
    )


def statx_of(match: Match) -> bytes:
    """Return ``struct statx`` for the emulated path in ``match``."""
    rdev = _device_number(match)
    return _STATX.pack(
        _STATX_BASIC_STATS,
        _PAGE,
        0,
        1,
        os.geteuid(),
        os.getegid(),
        _MODES[match.kind],
        _inode(match),
        _PAGE if match.kind is PathKind.FILE else 0,
        0,
        0,
        os.major(rdev),
        os.minor(rdev),
        os.major(_DEVTMPFS),
        os.minor(_DEVTMPFS),
    )
