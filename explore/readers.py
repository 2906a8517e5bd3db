# SPDX-License-Identifier: Apache-2.0
"""The kinds of readers that a writer must work with.

R1, R4 and R5 are the shipped reader, each with another path. R2 and R3 represent VMMs that follow
only the kernel's recommendation.
"""

from __future__ import annotations

from collections.abc import Callable

from explore.model import MOUNT, PATH, SECOND
from explore.steps import HoldForEver, Unlock
from snpcerts.abi.cert_table import EMPTY
from snpcerts.certfile import reader, step
from snpcerts.certfile.reader import Busy, Empty, Found, Table
from snpcerts.certfile.step import Steps


def deliver(_found: Found) -> None:
    """Stand in for filling the guest's buffer. The model records what was found."""


def handshake() -> None:
    """Stand in for the firmware's signature. The model checks the key."""


def r1() -> Steps[None]:
    """The shipped reader: opens the file for each request, and compares device and inode."""
    return reader.serve(PATH, deliver=deliver, handshake=handshake)


def r2() -> Steps[None]:
    """A reader that opens the file for each request, but does not compare device and inode."""
    try:
        fd: int = yield step.OpenRead(PATH)
    except OSError:
        yield step.Deliver(deliver, Empty())
        yield step.Handshake(handshake, None)
        return
    try:
        yield from _locked_request(fd)
    finally:
        yield step.Close(fd)


def r3() -> Steps[None]:
    """A reader that opens the file once and keeps the descriptor; it locks and unlocks for each
    request.
    """
    try:
        fd: int = yield step.OpenRead(PATH)
    except OSError:
        return
    while True:
        yield from _locked_request(fd)
        yield Unlock(fd)


def r4() -> Steps[None]:
    """The shipped reader, in a container that sees the file through a bind mount."""
    return reader.serve(MOUNT, deliver=deliver, handshake=handshake)


def r5() -> Steps[None]:
    """The shipped reader, serving the second file."""
    return reader.serve(SECOND, deliver=deliver, handshake=handshake)


def holder() -> Steps[None]:
    """A VMM that hangs or is malicious: takes a shared lock and never releases it."""
    try:
        fd: int = yield step.OpenRead(PATH)
    except OSError:
        return
    try:
        if (yield step.LockShared(fd)):
            yield HoldForEver()
    finally:
        yield step.Close(fd)


def _locked_request(fd: int) -> Steps[None]:
    found: Found = Busy(0)
    if (yield step.LockShared(fd)):
        status: step.FileStat = yield step.Stat(fd)
        data: bytes = yield step.Read(fd, status.size)
        found = Empty() if data.startswith(EMPTY) or not data else Table(data)
    yield step.Deliver(deliver, found)
    yield step.Handshake(handshake, fd)


KINDS: dict[str, Callable[[], Steps[None]]] = {
    "R1": r1,
    "R2": r2,
    "R3": r3,
    "R4": r4,
    "R5": r5,
    "holder": holder,
}
