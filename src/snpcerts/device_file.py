# SPDX-License-Identifier: Apache-2.0
"""An open device, such as ``/dev/sev``, for clients that issue its ioctls."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Final, Self

from snpcerts.errors import RefusedError

_MISSING: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM)


class DeviceFile:
    """A device opened for reading and writing. As a context manager, it closes the device.

    ``path`` is the device's path. ``fd`` is its file descriptor, or -1 once the device is closed.
    """

    def __init__(
        self,
        path: str,
        *,
        hint: str,
        forbidden_hint: str,
        missing: type[RefusedError] = RefusedError,
    ) -> None:
        """Open the device.

        Raises ``missing`` if the device does not exist or has no driver. Raises
        :class:`RefusedError` for any other failure, with ``forbidden_hint`` if this user may not
        open it, otherwise with ``hint``.
        """
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            kind = missing if error.errno in _MISSING else RefusedError
            text = forbidden_hint if error.errno in _FORBIDDEN else hint
            raise kind(f"{path}: {error.strerror}", hint=text) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the device."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
