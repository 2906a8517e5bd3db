# SPDX-License-Identifier: Apache-2.0
"""Gives a program a new file descriptor as the result of its system call."""

from __future__ import annotations

import errno
import os

from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.frontdoor.descriptors import Descriptors, OpenDevice
from snpcerts.emulator.frontdoor.seccomp import Notification
from snpcerts.emulator.syscall.device import Device


def give(listener: int, notification: Notification, descriptor: int, flags: int) -> None:
    """Let the trapped call return a copy of ``descriptor``, a descriptor of this process.

    ``flags`` are the flags of open(2). Raises the same ``OSError`` as
    :func:`~snpcerts.emulator.frontdoor.seccomp.answer_with_descriptor`.
    """
    seccomp.answer_with_descriptor(
        listener, notification.id, descriptor, cloexec=bool(flags & os.O_CLOEXEC)
    )


def give_device(
    descriptors: Descriptors,
    listener: int,
    notification: Notification,
    device: Device,
    *,
    path: bytes | None,
    flags: int,
    shared: int | None,
) -> None:
    """Let the trapped call return a descriptor for ``device``. If that fails, close the device.

    ``path`` is the opened path. ``shared`` is the device's memfd; None creates one.
    """
    entry: OpenDevice | None = None
    try:
        entry, given = descriptors.admit(device, path=path, flags=flags, shared=shared)
        try:
            give(listener, notification, given, flags)
        finally:
            os.close(given)
    except OSError as error:
        if entry is not None:
            descriptors.forget(entry)
        device.close()
        seccomp.answer(listener, notification.id, -(error.errno or errno.EIO))
