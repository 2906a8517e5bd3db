# SPDX-License-Identifier: Apache-2.0
"""Reports, and the certificates that come with them, from configfs-tsm.

The kernel's interface for all kinds of confidential guests: a directory made
below ``/sys/kernel/config/tsm/report`` is one request. Writing ``inblob`` takes
effect when the file is closed; reading ``outblob`` or ``auxblob`` makes a report
unless one of the same ``generation`` is cached. Somebody else may write to the
same entry, so the generation is held against the number of our own writes after
each read.

Source: Linux ``Documentation/ABI/testing/configfs-tsm-report``,
``drivers/virt/coco/guest/report.c`` and ``drivers/virt/coco/sev-guest/sev-guest.c``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from snpcerts.abi.cert_table import LINUX_GUEST_LIMIT, CertTable
from snpcerts.abi.guest_message import VMPL_MAX
from snpcerts.abi.report import REPORT_SIZE
from snpcerts.errors import FormatError, RefusedError, RetryLaterError, UsageError

ROOT: Final = "/sys/kernel/config/tsm/report"
PROVIDER: Final = "sev_guest"
REPORT_DATA_SIZE: Final = 64

_PREFIX: Final = "snpcerts-"
_ATTEMPTS: Final = 8  # names tried for an entry
_TEXT_LIMIT: Final = 4096
# The kernel's own limit for a blob of this provider is 32 KiB, or less.
_BLOB_LIMIT: Final = 64 << 10


class TsmRequestError(RefusedError):
    """The kernel, the host or the firmware refused a request. ``errno`` is the file's."""

    code = "tsm-request"

    def __init__(self, message: str, number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = number


class TsmChangedError(RetryLaterError):
    """Somebody else wrote to the entry while it was read: the blobs may be of two requests."""

    code = "tsm-changed"


@dataclass(frozen=True, slots=True)
class TsmReport:
    """``outblob`` and ``auxblob`` of one request.

    ``outblob`` is a report of 1184 bytes. ``auxblob`` is the host's certificate
    table, no bytes where it has none: the host's word and nothing more.
    """

    outblob: bytes
    auxblob: bytes

    def certificates(self) -> CertTable:
        """The table, parsed; :class:`FormatError` when the host sent nonsense."""
        return CertTable.decode(self.auxblob) if self.auxblob else CertTable()


class TsmFiles(Protocol):
    """The file operations that a request takes; each may raise :class:`OSError`."""

    def make(self, path: str) -> None:
        """Make a directory."""
        ...

    def remove(self, path: str) -> None:
        """Remove a directory, with the files that the kernel has put there."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Open a file that exists, write once, close."""
        ...

    def read(self, path: str, limit: int) -> bytes:
        """Open a file, read at most ``limit`` bytes, close."""
        ...


class SystemFiles:
    """The operations as system calls."""

    def make(self, path: str) -> None:
        """mkdir, mode 0700."""
        os.mkdir(path, 0o700)

    def remove(self, path: str) -> None:
        """rmdir: configfs takes the files away itself."""
        os.rmdir(path)

    def write(self, path: str, data: bytes) -> None:
        """One write: text attributes are stored by each, and a short one is an error."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(fd, data)
        finally:
            os.close(fd)
        if written != len(data):
            raise OSError(errno.EIO, f"wrote {written} of {len(data)} bytes")

    def read(self, path: str, limit: int) -> bytes:
        """Until the end of the file, or one byte more than ``limit``."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = bytearray()
            while len(data) <= limit:
                chunk = os.read(fd, limit + 1 - len(data))
                if not chunk:
                    break
                data += chunk
            return bytes(data)
        finally:
            os.close(fd)


class ConfigfsTsm:
    """The report directory of a guest's kernel."""

    def __init__(self, root: str = ROOT, *, files: TsmFiles | None = None) -> None:
        self._root = root
        self._files = SystemFiles() if files is None else files

    def report(self, report_data: bytes, *, vmpl: int | None = None) -> TsmReport:
        """A report over 64 bytes, and the host's certificates.

        ``vmpl`` None leaves it to the kernel, which asks for VMPL 0. Raises
        :class:`TsmRequestError` when there is no such interface here, when it
        belongs to another kind of guest, or when the request fails;
        :class:`TsmChangedError` when somebody else used the entry meanwhile;
        :class:`FormatError` when what is read is no report.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(
                f"report data has {len(report_data)} bytes, must be {REPORT_DATA_SIZE}"
            )
        if vmpl is not None and not 0 <= vmpl <= VMPL_MAX:
            raise UsageError(f"VMPL {vmpl} is not 0 to {VMPL_MAX}")
        with self._entry() as entry:
            provider = self._text(entry, "provider")
            if provider != PROVIDER:
                raise TsmRequestError(
                    f"{self._root}: the provider is {provider!r}, expected {PROVIDER!r}",
                    errno.ENODEV,
                    "this is a confidential guest of another kind",
                )
            before = self._generation(entry)
            writes = 1
            self._write(entry, "inblob", report_data)
            if vmpl is not None:
                self._write(entry, "privlevel", str(vmpl).encode("ascii"))
                writes += 1
            auxblob = self._read(entry, "auxblob", LINUX_GUEST_LIMIT)
            outblob = self._read(entry, "outblob", _BLOB_LIMIT)
            after = self._generation(entry)
            if after != before + writes:
                raise TsmChangedError(
                    f"{entry}: its generation went from {before} to {after}, "
                    f"our {writes} writes do not account for that",
                    hint="another process wrote to the entry; ask again",
                )
        if len(outblob) != REPORT_SIZE:
            raise FormatError("outblob", f"must be {REPORT_SIZE} bytes, found {len(outblob)}")
        return TsmReport(outblob, auxblob)

    @contextlib.contextmanager
    def _entry(self) -> Iterator[str]:
        path = self._made()
        try:
            yield path
        finally:
            # An entry that stays costs the kernel some memory, and nobody else anything.
            with contextlib.suppress(OSError):
                self._files.remove(path)

    def _made(self) -> str:
        for _ in range(_ATTEMPTS):
            path = os.path.join(self._root, _PREFIX + secrets.token_hex(8))
            try:
                self._files.make(path)
            except FileExistsError:
                continue
            except OSError as error:
                raise _refusal(self._root, "mkdir", error) from None
            return path
        raise TsmRequestError(f"{self._root}: every name tried is taken", errno.EEXIST)

    def _write(self, entry: str, name: str, data: bytes) -> None:
        try:
            self._files.write(os.path.join(entry, name), data)
        except OSError as error:
            raise _refusal(self._root, name, error) from None

    def _read(self, entry: str, name: str, limit: int) -> bytes:
        try:
            data = self._files.read(os.path.join(entry, name), limit)
        except OSError as error:
            raise _refusal(self._root, name, error) from None
        if len(data) > limit:
            raise FormatError(name, f"more than {limit} bytes")
        return data

    def _text(self, entry: str, name: str) -> str:
        return self._read(entry, name, _TEXT_LIMIT).decode("ascii", "replace").strip()

    def _generation(self, entry: str) -> int:
        text = self._text(entry, "generation")
        # As many digits as a 64-bit number has, and one more.
        if not text.isdecimal() or len(text) > 21:
            raise FormatError("generation", f"{text[:40]!r} is not a number")
        return int(text)


_LOST: Final = "this guest's VMPCK is gone: it cannot attest again until it reboots"
_MEANINGS: Final[dict[int, tuple[str, str | None]]] = {
    errno.ENOENT: ("there is no configfs-tsm here", "mount configfs, load sev-guest"),
    errno.EACCES: ("no permission", "run this as root"),
    errno.EPERM: ("no permission", "run this as root"),
    errno.ENOTTY: ("the VMPCK is disabled", "an earlier request failed; reboot the guest"),
    errno.ETIMEDOUT: ("the host was busy for a minute", _LOST),
    errno.EBADMSG: ("the answer is not from the firmware", _LOST),
    errno.EINVAL: ("the kernel refused the request", "is the VMPL at or above privlevel_floor?"),
    errno.EIO: (
        "the host or the firmware refused the request",
        "the host's table may be over 16 KiB, or the VMPCK gone; see the guest's kernel log",
    ),
}


def _refusal(root: str, name: str, error: OSError) -> TsmRequestError:
    number = error.errno or errno.EIO
    if number == errno.ENXIO:
        text = "no provider is registered" if name == "mkdir" else "the request failed"
        hint: str | None = "load the sev-guest driver inside an SEV-SNP guest"
    else:
        text, hint = _MEANINGS.get(number, (error.strerror or os.strerror(number), None))
    return TsmRequestError(f"{root}, {name}: {text}", number, hint)
