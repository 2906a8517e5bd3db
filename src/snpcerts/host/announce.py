# SPDX-License-Identifier: Apache-2.0
"""Announces this host's state to the fleet's mirror. The answer gives the state of the host's
certificates in the mirror.

An announcement is one HTTP request with a limit on time and size. The agent sends it from a
separate thread, so a slow, unreachable or faulty mirror does not delay the agent.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from snpcerts import __version__
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import FormatError, RetryLaterError, SnpCertsError
from snpcerts.host.config import MirrorConfig
from snpcerts.host.event import Event, EventKind, Listener
from snpcerts.host.expected_content import NoKey
from snpcerts.host.file_state import FileState
from snpcerts.host.host_firmware import HostFirmware
from snpcerts.host.host_processor import cpuid_of_host
from snpcerts.mirror.announcement import (
    MAX_NAME,
    MAX_REPORTED_FILES,
    Announcement,
    file_report,
    tcb_of,
    within,
)
from snpcerts.mirror.mirror_client import REQUEST_LIMIT, MirrorClient

_MAX_WANTED: Final = 16

# The state of a certificate in the mirror.
STORED, QUEUED, NOT_FOUND, REFUSED = "stored", "queued", "not-found", "refused"
_STATES: Final = (STORED, QUEUED, NOT_FOUND, REFUSED)


@dataclass(frozen=True, slots=True)
class MirroredCertificate:
    """One of this chip's VCEK certificates, and its state in the mirror.

    ``wait`` is the number of seconds until the mirror expects to have the certificate; None if the
    mirror does not know.
    """

    tcb: TcbVersion
    state: str
    wait: float | None = None


def announcement_of(
    firmware: HostFirmware, file_states: Sequence[FileState], name: str | None = None
) -> Announcement:
    """Return the announcement of this host.

    Raises the same errors as :meth:`HostFirmware.state`.
    """
    state = firmware.state()
    return Announcement(
        host=within(name or socket.gethostname() or "unnamed", MAX_NAME),
        product=firmware.product,
        hwid=firmware.hwid,
        current=state.current,
        reported=state.reported,
        cpuid=cpuid_of_host(),
        agent=f"snpcerts/{__version__}",
        firmware=state.version,
        initialised=state.initialised,
        guests=state.guests,
        vlek_loaded=state.vlek_loaded,
        files=tuple(
            file_report(
                each.file.path,
                each.file.kind,
                each.match.value,
                certificates=each.table is not None and bool(each.table.entries),
                not_after=each.not_after,
                reason=_reason(each),
            )
            for each in file_states[:MAX_REPORTED_FILES]
        ),
    )


def _reason(file_state: FileState) -> str:
    if file_state.problems:
        return "; ".join(file_state.problems)
    return str(file_state.expected) if isinstance(file_state.expected, NoKey) else ""


class Announcer:
    """Sends announcements to one mirror."""

    def __init__(self, mirror: MirrorConfig, *, limit: float = REQUEST_LIMIT) -> None:
        self.mirror = mirror
        self._client = MirrorClient(
            mirror.access,
            access_hint="set token_file in [mirror] to the path of the file that holds the token",
            limit=limit,
        )

    def send(self, announcement: Announcement) -> tuple[MirroredCertificate, ...]:
        """Announce this host; return the state of its certificates in the mirror.

        Raises the same errors as :meth:`MirrorClient.call`, and :class:`RetryLaterError` for an
        answer that cannot be read.
        """
        answer = self._client.call(
            "PUT",
            f"hosts/{announcement.product.value}/{announcement.hwid.hex()}",
            announcement.to_json(),
        )
        return _read_answer(answer, announcement.product)


def _read_answer(answer: bytes, product: Product) -> tuple[MirroredCertificate, ...]:
    try:
        found = json.loads(answer)
        wanted = found["wanted"]
        if not isinstance(wanted, list):
            raise TypeError
        return tuple(_certificate(each, product) for each in wanted[:_MAX_WANTED])
    except (ValueError, KeyError, TypeError, RecursionError, FormatError):
        raise RetryLaterError(
            "the mirror's answer cannot be read",
            hint="check that the URL points to a mirror, and that the mirror runs this "
            "release of snpcerts",
            code="mirror-unavailable",
        ) from None


def _certificate(value: Mapping[str, Any], product: Product) -> MirroredCertificate:
    state, wait = value["state"], value.get("wait_seconds")
    if state not in _STATES:
        raise ValueError(state)
    known = isinstance(wait, int | float) and not isinstance(wait, bool) and 0 <= wait < 1e9
    return MirroredCertificate(tcb_of(value["tcb"], product), state, wait if known else None)


class BackgroundAnnouncer:
    """Sends announcements from a separate thread. Its methods never raise, and only :meth:`finish`
    waits.

    While one announcement is being sent, only the newest of the following ones is kept.
    ``listener`` gets an event for each failure, and for the first success at the start and after
    each failure. ``observe`` is called with each result: ``ok``, or the error's code.
    """

    def __init__(
        self,
        announcer: Announcer,
        listener: Listener,
        observe: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._announcer = announcer
        self._listener = listener
        self._observe = observe
        self._lock = threading.Lock()
        self._next: Announcement | None = None
        self._thread: threading.Thread | None = None
        self._works = False
        self.wanted: tuple[MirroredCertificate, ...] = ()

    @property
    def mirror(self) -> MirrorConfig:
        """The mirror that receives the announcements."""
        return self._announcer.mirror

    def announce(self, announcement: Announcement) -> None:
        """Queue an announcement for sending. It replaces one that is still queued."""
        with self._lock:
            self._next = announcement
            # If a listener raises, the thread ends. The next announcement starts a new thread.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._send_all, name="announce", daemon=True)
                self._thread.start()

    def finish(self, seconds: float = REQUEST_LIMIT) -> None:
        """Wait at most ``seconds`` until all announcements have been sent."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _send_all(self) -> None:
        while True:
            with self._lock:
                announcement, self._next = self._next, None
                if announcement is None:
                    self._thread = None
                    return
            try:
                self.wanted = self._announcer.send(announcement)
            except SnpCertsError as error:
                self.note_failure(str(error), error.code)
            except Exception as error:  # the agent goes on, whatever a library raises
                self.note_failure(f"{type(error).__name__}: {error}", "error")
            else:
                self._observe("ok")
                if not self._works:
                    self._works = True
                    url = self._announcer.mirror.access.url
                    self._listener(Event(EventKind.ANNOUNCED, f"announced to {url}"))

    def note_failure(self, why: str, code: str) -> None:
        """Report that an announcement was not sent or not accepted. ``code`` is the error's."""
        self._works = False
        self._observe(code)
        self._listener(Event(EventKind.NOT_ANNOUNCED, f"not announced: {why}"))
