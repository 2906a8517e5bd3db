# SPDX-License-Identifier: Apache-2.0
"""Files that the VMM under test writes, such as a log or copies of the table. The certificate file
is not one of them.

The guest decides how often it requests certificates, so such a file must not grow with each
request, and no request may leave a file behind. Imports nothing from ``conformance``.
"""

from __future__ import annotations

import os
import stat
from typing import Final

_PATHS_MAX: Final = 4096
_GROWTH_MAX: Final = 1 << 20  # bytes of a file that are searched for lines


class WrittenFiles:
    """The paths that the VMM has opened for writing. Only regular files count."""

    def __init__(self) -> None:
        self._paths: dict[bytes, bool] = {}  # whether an open may have created the file

    def opened(self, tid: int, path: bytes, flags: int) -> None:
        """Record that the thread ``tid`` opens ``path`` with the flags of open(2)."""
        if flags & os.O_ACCMODE == os.O_RDONLY or len(self._paths) >= _PATHS_MAX:
            return
        if not os.path.isabs(path):
            try:
                path = os.path.join(os.readlink(b"/proc/%d/cwd" % tid), path)
            except OSError:
                return
        self._paths[path] = bool(flags & os.O_CREAT) or self._paths.get(path, False)

    def sizes(self) -> dict[bytes, int]:
        """Return the size of each file that exists now, in bytes, by path."""
        found: dict[bytes, int] = {}
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                found[path] = status.st_size
        return found

    def created(self) -> int:
        """Return how many of the files that exist now were created by the VMM, or may have been."""
        return sum(self._paths[path] for path in self.sizes())

    def grown(self, before: dict[bytes, int]) -> tuple[int, int]:
        """Return how many lines and bytes have been appended since ``before``, the result of
        :meth:`sizes`.
        """
        lines = size = 0
        for path, now in self.sizes().items():
            since = before.get(path, 0)
            if now > since:
                size += now - since
                lines += _lines(path, since)
        return lines, size


def _lines(path: bytes, start: int) -> int:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(_GROWTH_MAX).count(b"\n")
    except OSError:
        return 0
