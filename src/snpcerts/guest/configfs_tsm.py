# SPDX-License-Identifier: Apache-2.0
"""Gets reports and their certificates from configfs-tsm.

This is the kernel's interface for all kinds of confidential guests. For each request, the client
creates an entry: a directory below ``/sys/kernel/config/tsm/report``. Writing ``inblob`` takes
effect when the file is closed. Reading ``outblob`` or ``auxblob`` creates a report unless one of
the same ``generation`` is cached. Another process may write to the same entry, so after the reads
the client checks that the generation has risen by the number of its own writes.

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
from snpcerts.guest.dev_sev_guest import NO_KEY

ROOT: Final = "/sys/kernel/config/tsm/report"
PROVIDER: Final = "sev_guest"
REPORT_DATA_SIZE: Final = 64

_PREFIX: Final = "snpcerts-"
_ATTEMPTS: Final = 8  # names tried for an entry
_TEXT_LIMIT: Final = 4096
# More than enough: the sev-guest driver's blobs have at most 16 KiB.
_BLOB_LIMIT: Final = 64 << 10


class TsmRequestError(RefusedError):
    """The kernel, the host or the firmware refused a request. ``errno`` comes from the file
    operation.
    """

    code = "tsm-request"

    def __init__(self, message: str, number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = number


class TsmChangedError(RetryLaterError):
    """Another process wrote to the entry during the request.

    The blobs may belong to two different requests.
    """

    code = "tsm-changed"


@dataclass(frozen=True, slots=True)
class TsmReport:
    """``outblob`` and ``auxblob`` of one request.

    ``outblob`` is a report of 1184 bytes. ``auxblob`` is the host's certificate table, unverified;
    it is empty if the host has none.
    """

    outblob: bytes
    auxblob: bytes

    def certificates(self) -> CertTable:
        """Return the parsed table. Raises :class:`FormatError` if it is malformed."""
        return CertTable.decode(self.auxblob) if self.auxblob else CertTable()


class TsmFiles(Protocol):
    """The file operations of a request. Each may raise :class:`OSError`."""

    def make(self, path: str) -> None:
        """Make a directory."""
        ...

    def remove(self, path: str) -> None:
        """Remove a directory, including the files that the kernel created in it."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Open an existing file, write ``data`` with one call, and close the file."""
        ...

    def read(self, path: str, limit: int) -> bytes:
        """Open a file, read at most ``limit + 1`` bytes, and close the file."""
        ...


class SystemFiles:
    """The file operations as real system calls."""

    def make(self, path: str) -> None:
        """Make a directory of mode 0700."""
        os.mkdir(path, 0o700)

    def remove(self, path: str) -> None:
        """Remove a directory with rmdir(2). configfs removes the files in it."""
        os.rmdir(path)

    def write(self, path: str, data: bytes) -> None:
        """Write ``data`` with one call. Each call sets the whole attribute, so a short write is an
        error.
        """
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(fd, data)
        finally:
            os.close(fd)
        if written != len(data):
            raise OSError(errno.EIO, f"only {written} of {len(data)} bytes were written")

    def read(self, path: str, limit: int) -> bytes:
        """Read to the end of the file, but at most ``limit + 1`` bytes."""
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
    """A client of the report directory (``root``) of the guest's kernel."""

    def __init__(self, root: str = ROOT, *, files: TsmFiles | None = None) -> None:
        self._root = root
        self._files = SystemFiles() if files is None else files

    def report(self, report_data: bytes, *, vmpl: int | None = None) -> TsmReport:
        """Request a report with 64 bytes of report data, and the host's certificates.

        If ``vmpl`` is None, the VMPL is ``privlevel_floor``, which is the guest kernel's own.
        Raises :class:`TsmRequestError` if the interface does not exist, belongs to another kind of
        guest, or refuses the request. Raises :class:`TsmChangedError` if another process wrote to
        the entry meanwhile, and :class:`FormatError` if the result is not a report.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(
                f"report data: expected {REPORT_DATA_SIZE} bytes, found {len(report_data)}"
            )
        if vmpl is not None and not 0 <= vmpl <= VMPL_MAX:
            raise UsageError(f"VMPL: expected 0 to {VMPL_MAX}, found {vmpl}")
        with self._entry() as entry:
            provider = self._text(entry, "provider")
            if provider != PROVIDER:
                raise TsmRequestError(
                    f"{self._root}: expected the provider {PROVIDER!r}, found {provider!r}",
                    errno.ENODEV,
                    "run this inside an SEV-SNP guest; this is another kind of confidential guest",
                )
            before = self._generation(entry)
            writes = 1
            self._write(entry, "inblob", report_data)
            if vmpl is None:
                # If no privlevel is written, the kernel requests VMPL 0. The firmware refuses that
                # unless the guest itself runs at VMPL 0.
                vmpl = self._floor(entry) or None
            if vmpl is not None:
                self._write(entry, "privlevel", str(vmpl).encode("ascii"))
                writes += 1
            auxblob = self._read(entry, "auxblob", LINUX_GUEST_LIMIT)
            outblob = self._read(entry, "outblob", _BLOB_LIMIT)
            after = self._generation(entry)
            if after != before + writes:
                raise TsmChangedError(
                    f"{entry}: expected the generation to rise from {before} to {before + writes}, "
                    f"found {after}",
                    hint="another process wrote to the entry; request the report again",
                )
        if len(outblob) != REPORT_SIZE:
            raise FormatError("outblob", f"expected {REPORT_SIZE} bytes, found {len(outblob)}")
        return TsmReport(outblob, auxblob)

    @contextlib.contextmanager
    def _entry(self) -> Iterator[str]:
        path = self._made()
        try:
            yield path
        finally:
            # An entry that cannot be removed only takes up some of the kernel's memory.
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
        raise TsmRequestError(
            f"{self._root}: all {_ATTEMPTS} random entry names were taken", errno.EEXIST
        )

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
            raise FormatError(name, f"expected at most {limit} bytes, found more")
        return data

    def _text(self, entry: str, name: str) -> str:
        return self._read(entry, name, _TEXT_LIMIT).decode("ascii", "replace").strip()

    def _floor(self, entry: str) -> int:
        """Return the lowest VMPL that may be requested, which is the guest's own; 0 if the kernel
        does not show it.
        """
        try:
            text = self._text(entry, "privlevel_floor")
        except TsmRequestError:
            return 0
        return int(text) if text.isdecimal() and int(text[:3]) <= VMPL_MAX else 0

    def _generation(self, entry: str) -> int:
        text = self._text(entry, "generation")
        # A 64-bit number has at most 20 digits.
        if not text.isdecimal() or len(text) > 20:
            raise FormatError("generation", f"expected a number, found {text[:40]!r}")
        return int(text)


_LOST: Final = "reboot this guest: its VMPCK is destroyed, so it cannot attest until then"
_MEANINGS: Final[dict[int, tuple[str, str | None]]] = {
    errno.ENOENT: ("configfs-tsm is not available", "mount configfs and load sev-guest"),
    errno.EACCES: ("no permission", "run this as root"),
    errno.EPERM: ("no permission", "run this as root"),
    errno.ENOTTY: ("the VMPCK is disabled", NO_KEY),
    errno.ETIMEDOUT: ("the host was busy for a minute", _LOST),
    errno.EBADMSG: ("the answer does not come from the firmware", _LOST),
    errno.EINVAL: (
        "the kernel refused the request",
        "check that the VMPL is at or above privlevel_floor",
    ),
    errno.EIO: (
        "the host or the firmware refused the request",
        "see the guest's kernel log: the host's table may exceed 16 KiB, or the driver may have "
        "destroyed the VMPCK",
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
