# SPDX-License-Identifier: Apache-2.0
"""Remembers facts about the signing keys from one command to the next, on disk.

Each host has one file, which is replaced atomically, and a lock beside it. The firmware is read
under that lock, so that no agent records a state that another one has already changed. The lock is
always taken after the locks of certificate files.

A record that is unusable (missing, torn, from another chip, written by another version) counts as
no record. If a record cannot be written, the facts count as forgotten. A certificate file whose key
is then in doubt stays empty, and a new record is written when the firmware is next read. Decisions
depend on which boot and which load of kvm_amd the record names, not on its times, because a host's
clock may jump.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from snpcerts.abi.guest_message import KeySelect
from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import RefusedError, RetryLaterError, SnpCertsError
from snpcerts.host import remembered
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.initialisation import Initialisation, initialisation
from snpcerts.host.known import KnownKeys, Proof, RememberedVlek
from snpcerts.host.remembered import Remembered
from snpcerts.host.sev import SevError

VERSION: Final = 1
SIZE_LIMIT: Final = 1 << 16
LOCK_WAIT: Final = 5.0
_PAUSE: Final = 0.005

Read = Callable[[], FirmwareState]


class UnusableError(RefusedError):
    """The record is missing or unusable."""

    code = "memory"


class MemoryStore(Protocol):
    """A store for the record of a host's signing keys."""

    def locked(self) -> AbstractContextManager[object]:
        """Exclude other readers and writers. Raises :class:`SnpCertsError` if that fails."""
        ...

    def load(self) -> Remembered:
        """Return the last saved record.

        Raises :class:`UnusableError`, with the reason, if there is none.
        """
        ...

    def save(self, what: Remembered) -> None:
        """Save the record to disk before returning. Raises :class:`SnpCertsError` if that fails."""
        ...


class Memory:
    """The record of one host's keys. Each read of the firmware's status updates it.

    ``problem`` says why the record cannot be written. It is empty if the record can be written.
    """

    def __init__(
        self,
        store: MemoryStore,
        chip: bytes,
        *,
        which: Callable[[], Initialisation] = initialisation,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._chip = chip.hex()
        self._which = which
        self._clock = clock
        self._depth = 0
        self.problem = ""

    def observe(self, read: Read) -> FirmwareState:
        """Read the firmware's status, and add what the record says about its keys."""
        try:
            with self._locked():
                now = self._seen(read)
                try:
                    return self._keep(now)
                except SnpCertsError as error:
                    return self._forgotten(read, error)
        except _LockError as error:
            return self._forgotten(read, error.why)

    def configure(self, read: Read, give: Callable[[], None]) -> None:
        """Issue SNP_SET_CONFIG or SNP_COMMIT, and record its effect."""
        with self._for_a_command():
            self._keep(self._seen(read))
            give()
            self._keep(remembered.configured(self._seen(read)))

    def load_vlek(
        self, read: Read, give: Callable[[], None], tcb: TcbVersion, certificate: bytes
    ) -> None:
        """Issue SNP_VLEK_LOAD for ``tcb``, and record the VLEK with its certificate (DER).

        This first forgets a VLEK that is already loaded: if the command is interrupted, either of
        the two may be loaded.
        """
        with self._for_a_command():
            before = self._seen(read)
            self._keep(before)
            self._keep(remembered.loading(before))
            try:
                give()
            except SevError as error:
                if (
                    error.status is not None
                ):  # the firmware refused, so the loaded VLEK is unchanged
                    self._keep(before)
                raise
            vlek = RememberedVlek(tcb, _digest(certificate), self._clock())
            self._keep(remembered.loaded(self._seen(read), vlek))

    def prove(self, read: Read, taken_in: FirmwareState, proof: Proof) -> None:
        """Record a proof that was made in the state ``taken_in``.

        Raises :class:`RetryLaterError` if the firmware's state has changed since then.
        """
        with self._for_a_command():
            now = self._seen(read)
            if not self._which().certain:
                raise RefusedError(
                    "cannot record a proof, because SNP re-initialisation cannot be detected here",
                    hint="run this command where /sys/module/kvm_amd and "
                    "/proc/sys/kernel/random/boot_id can be read",
                )
            if _bare(now.state) != _bare(taken_in):
                raise RetryLaterError(
                    "the proof was not recorded, because the firmware's state changed while the "
                    "guest requested the report",
                    hint="run the command again",
                )
            self._keep(remembered.proven(now, proof))

    def _seen(self, read: Read) -> Remembered:
        why = ""
        try:
            before: Remembered | None = self._store.load()
        except UnusableError as error:
            before, why = None, error.message
        # The initialisation is read first. If another one happens between the two reads, it is
        # noticed the next time.
        which = self._which()
        now = read()
        if not why:
            return remembered.looked(before, now, self._chip, which)
        return remembered.looked(None, now, self._chip, which, why_nothing=why)

    def _keep(self, what: Remembered) -> FirmwareState:
        try:
            kept: Remembered | None = self._store.load()
        except UnusableError:
            kept = None
        if kept != what:
            self._store.save(what)
        self.problem = ""
        return what.state

    def _forgotten(self, read: Read, error: SnpCertsError) -> FirmwareState:
        """Return what is known about the host without its record, which could not be locked or
        saved.
        """
        self.problem = str(error)
        now = remembered.looked(
            None, read(), self._chip, self._which(), why_nothing=f"{error.message}"
        )
        return now.state

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store's lock. Nested calls take the lock only once."""
        with contextlib.ExitStack() as stack:
            if not self._depth:
                try:
                    stack.enter_context(self._store.locked())
                except SnpCertsError as error:
                    raise _LockError(error) from None
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _for_a_command(self) -> Iterator[None]:
        try:
            with self._locked():
                yield
        except _LockError as error:
            raise error.why from None


class _LockError(Exception):
    def __init__(self, why: SnpCertsError) -> None:
        super().__init__(str(why))
        self.why = why


class MemoryFile:
    """A JSON file that belongs to root, with a lock file beside it."""

    def __init__(
        self,
        path: Path,
        product: Product,
        *,
        lock_wait: float = LOCK_WAIT,
    ) -> None:
        self.path = path
        self._product = product
        self._lock_wait = lock_wait

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold an exclusive lock on the lock file. Wait up to ``lock_wait`` seconds for it."""
        path = self.path.with_name(f".{self.path.name}.lock")
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from None
        try:
            self._wait_for(fd, path)
            with contextlib.suppress(OSError):
                os.unlink(self._new)  # left by an interrupted save
            yield
        finally:
            os.close(fd)

    def _wait_for(self, fd: int, path: Path) -> None:
        deadline = time.monotonic() + self._lock_wait
        while True:
            try:
                fcntl.fcntl(fd, F_OFD_SETLK, EXCLUSIVE)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RetryLaterError(
                        f"{path}: timed out after {self._lock_wait:g} s waiting for the lock",
                        hint="try again: another agent is waiting for the firmware",
                    ) from None
                time.sleep(_PAUSE)
            except OSError as error:
                raise _unwritable(path, error) from None
            else:
                return

    def load(self) -> Remembered:
        """Read the record from the file. If any part is wrong, raise :class:`UnusableError`."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            with os.fdopen(fd, "rb") as file:
                owner = os.fstat(fd).st_uid
                data = file.read(SIZE_LIMIT + 1) or b""
        except FileNotFoundError:
            raise UnusableError("there is no record of this host's keys") from None
        except OSError as error:
            raise UnusableError(f"{self.path}: {error.strerror}") from None
        # A user who can write to the directory can put any file there.
        if owner not in (0, os.geteuid()):
            raise UnusableError(
                f"{self.path}: the file is ignored, because it belongs to user {owner}"
            )
        try:
            return _decode(data, self._product)
        except _DamagedError as error:
            raise UnusableError(f"{self.path}: {error}") from None

    def save(self, what: Remembered) -> None:
        """Replace the file atomically, and sync it to disk."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            # This name may be a hard link to some other file, so remove it, and never write to what
            # it names.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._new)
            with os.fdopen(os.open(self._new, flags, 0o600), "wb") as file:
                file.write(_encode(what))
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._new, self.path)
            _sync_directory(self.path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(self._new)
            raise _unwritable(self.path, error) from None

    @property
    def _new(self) -> Path:
        return self.path.with_name(f".{self.path.name}.new")


def _sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unwritable(path: Path, error: OSError) -> RefusedError:
    return RefusedError(
        f"cannot save the record of the signing keys in {path}: {error.strerror}",
        hint="run this as root, and check the free space and the mount options",
    )


def _digest(certificate: bytes) -> str:
    return hashlib.sha256(certificate).hexdigest()


def _bare(state: FirmwareState) -> FirmwareState:
    return replace(state, guests=0, known=KnownKeys())


# The file is a JSON object. Its "sha256" is the digest of the other members, sorted by name.


class _DamagedError(Exception):
    pass


def _encode(what: Remembered) -> bytes:
    body = {"version": VERSION, **_body(what)}
    return json.dumps(body | {"sha256": _sum(body)}, indent=1).encode() + b"\n"


def _sum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _decode(data: bytes, product: Product) -> Remembered:
    try:
        if len(data) > SIZE_LIMIT:
            raise _DamagedError(f"the file has more than {SIZE_LIMIT} bytes")
        body = json.loads(data)
        digest = body.pop("sha256")
        if body.get("version") != VERSION:
            raise _DamagedError("the record was written by another version of snpcerts")
        if digest != _sum(body):
            raise _DamagedError("the record is damaged or was changed by hand")
        return _remembered(body, product)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, SnpCertsError):
        raise _DamagedError("the record is damaged or was changed by hand") from None


def _body(what: Remembered) -> dict[str, Any]:
    state, known = what.state, what.state.known
    vlek = known.vlek
    return {
        "chip": what.chip,
        "boot": what.initialisation.boot,
        "module": what.initialisation.module,
        "firmware": {
            "current_tcb": state.current.pack().hex(),
            "reported_tcb": state.reported.pack().hex(),
            "vlek_loaded": state.vlek_loaded,
            "mask_chip_id": state.chip_id_masked,
            "mask_chip_key": state.chip_key_masked,
            "initialised": state.initialised,
            "version": state.version,
        },
        "vlek": None
        if vlek is None
        else {
            "tcb": vlek.tcb.pack().hex(),
            "certificate": vlek.certificate,
            "at": vlek.at.isoformat(),
        },
        "vlek_doubt": known.vlek_doubt,
        "vcek_doubt": known.vcek_doubt,
        "lost_masks": list(known.lost_masks),
        "proofs": [
            {
                "key_sel": int(proof.select),
                "kind": proof.kind.value,
                "tcb": proof.tcb.pack().hex(),
                "certificate": proof.certificate,
                "at": proof.at.isoformat(),
            }
            for proof in known.proofs
        ],
    }


def _remembered(body: dict[str, Any], product: Product) -> Remembered:
    def tcb(text: str) -> TcbVersion:
        return TcbVersion.unpack(bytes.fromhex(text), product.tcb_layout)

    vlek, firmware = body["vlek"], body["firmware"]
    known = KnownKeys(
        vlek=None
        if vlek is None
        else RememberedVlek(
            tcb(vlek["tcb"]), str(vlek["certificate"]), datetime.fromisoformat(vlek["at"])
        ),
        vlek_doubt=str(body["vlek_doubt"]),
        vcek_doubt=str(body["vcek_doubt"]),
        lost_masks=tuple(map(str, body["lost_masks"])),
        proofs=tuple(
            Proof(
                KeySelect(each["key_sel"]),
                VekKind(each["kind"]),
                tcb(each["tcb"]),
                str(each["certificate"]),
                datetime.fromisoformat(each["at"]),
            )
            for each in body["proofs"]
        ),
    )
    state = FirmwareState(
        current=tcb(firmware["current_tcb"]),
        reported=tcb(firmware["reported_tcb"]),
        vlek_loaded=bool(firmware["vlek_loaded"]),
        chip_id_masked=bool(firmware["mask_chip_id"]),
        chip_key_masked=bool(firmware["mask_chip_key"]),
        initialised=bool(firmware["initialised"]),
        version=str(firmware["version"]),
        guests=0,
        known=known,
    )
    return Remembered(str(body["chip"]), Initialisation(body["boot"], body["module"]), state)
