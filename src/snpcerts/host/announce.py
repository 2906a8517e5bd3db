# SPDX-License-Identifier: Apache-2.0
"""Tells the fleet's mirror how this host is, and hears which certificates it has for it.

An announcement is one HTTP request with a limit on time and size. The agent sends it from a thread
of its own: a mirror that is slow, gone or wrong delays no round, and costs one event in the log.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from snpcerts import __version__
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import FormatError, InputError, RefusedError, RetryLaterError, SnpCertsError
from snpcerts.host.config import MirrorConfig
from snpcerts.host.event import Event, EventKind, Listener
from snpcerts.host.expected_content import NoKey
from snpcerts.host.file_state import FileState
from snpcerts.host.host_firmware import HostFirmware
from snpcerts.host.host_processor import cpuid_of_host
from snpcerts.kds.proxy import proxy_for
from snpcerts.kds.request_deadline import cut_off_at
from snpcerts.kds.trust import trusted
from snpcerts.mirror.announcement import (
    MAX_NAME,
    MAX_REPORTED_FILES,
    Announcement,
    file_report,
    tcb_of,
    within,
)
from snpcerts.printable import printable

if TYPE_CHECKING:
    import httpx2

REQUEST_LIMIT: Final = 10.0  # seconds of one announcement, its answer included
_MAX_ANSWER: Final = 64 << 10
_MAX_TOKEN: Final = 4096
_MAX_WANTED: Final = 16

# How a certificate stands with the mirror.
STORED, QUEUED, NOT_FOUND, REFUSED = "stored", "queued", "not-found", "refused"
_STATES: Final = (STORED, QUEUED, NOT_FOUND, REFUSED)


@dataclass(frozen=True, slots=True)
class MirroredCertificate:
    """A VCEK certificate of this chip that the mirror has, or will fetch.

    ``wait`` is how many seconds that will take, None where it does not know.
    """

    tcb: TcbVersion
    state: str
    wait: float | None = None


def announcement_of(
    firmware: HostFirmware, file_states: Sequence[FileState], name: str | None = None
) -> Announcement:
    """Return what the mirror is told of this host. Raises as :meth:`HostFirmware.state`."""
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
        self._limit = limit

    def send(self, told: Announcement) -> tuple[MirroredCertificate, ...]:
        """Announce this host; return how its certificates stand with the mirror.

        Takes ``limit`` seconds at most. Raises :class:`RetryLaterError` where the mirror cannot be
        reached or has a problem of its own, :class:`RefusedError` where it refuses, and
        :class:`InputError` where the token or the client certificate cannot be read.
        """
        import httpx2

        product, hwid = told.product, told.hwid.hex()
        url = f"{self.mirror.url}/api/v1/hosts/{product.value}/{hwid}"
        body = json.dumps(told.to_json(), ensure_ascii=False).encode("utf-8", "replace")
        try:
            status, answer = self._put(url, body)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            said = str(error) or type(error).__name__
            raise RetryLaterError(
                f"the mirror {self.mirror.url} does not answer: {said}",
                hint="is 'snpcerts mirror serve' running there?",
                code="mirror-unavailable",
            ) from None
        if status == 200:
            return _read_answer(answer, product)
        why = _error_of(answer)
        if status in (401, 403):
            hint = "is the token right? [mirror] token_file names the file it is read from"
        else:
            hint = "is the URL a mirror's? [mirror] url names it"
        if status >= 500 or status in (408, 429):
            raise RetryLaterError(
                f"the mirror {self.mirror.url} answered {status}{why}", code="mirror-unavailable"
            )
        raise RefusedError(
            f"the mirror {self.mirror.url} refuses the announcement: {status}{why}",
            hint=hint,
            code="mirror-refused",
        )

    def _put(self, url: str, body: bytes) -> tuple[int, bytes]:
        import httpx2

        deadline = time.monotonic() + self._limit
        with self._client(url) as client, cut_off_at(deadline) as trace:
            with client.stream(
                "PUT",
                url,
                content=body,
                headers=self._headers(),
                timeout=self._limit,
                extensions={"trace": trace.event},
            ) as response:
                answer = bytearray()
                for part in response.iter_raw():
                    answer += part
                    if len(answer) > _MAX_ANSWER:
                        raise httpx2.ReadError(f"its answer has more than {_MAX_ANSWER} bytes")
            if time.monotonic() >= deadline:
                raise httpx2.ReadTimeout(f"it took longer than {self._limit:g} s")
            return response.status_code, bytes(answer)

    def _headers(self) -> dict[str, str]:
        headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": f"snpcerts/{__version__}",
        }
        if self.mirror.token_file is not None:
            headers["Authorization"] = f"Bearer {read_token(self.mirror.token_file)}"
        return headers

    def _client(self, url: str) -> httpx2.Client:
        """Return a client that follows no redirect: the token is for the mirror alone."""
        import httpx2

        proxy = proxy_for(url, os.environ)
        tls = url.startswith("https:")
        context = trusted(os.environ) if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        certificate, key = self.mirror.certificate, self.mirror.key
        if tls and certificate is not None:
            try:
                context.load_cert_chain(certificate, key, password="")  # never asks
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise InputError(
                    f"{certificate}, {key}: not a client certificate and its key: {error}",
                    hint="both are PEM files, and the key has no passphrase",
                ) from None
        return httpx2.Client(
            follow_redirects=False,
            trust_env=False,
            proxy=None if proxy is None else proxy.url,
            verify=context,
        )


def read_token(path: str) -> str:
    """Return the token in a file: its first line. Raises :class:`InputError`."""
    try:
        # Non-blocking, so that a FIFO cannot hold the agent up.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            data = file.read(_MAX_TOKEN + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read the mirror's token: {error.strerror}") from None
    data = data or b""
    token = data.partition(b"\n")[0].strip()
    if len(data) > _MAX_TOKEN or not re.fullmatch(rb"[\x21-\x7e]+", token):
        raise InputError(
            f"{path}: holds no token",
            hint="its first line must be the token: letters, digits and signs without spaces",
        )
    return token.decode("ascii")


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
            hint="is it another server, or a mirror of another version?",
            code="mirror-unavailable",
        ) from None


def _certificate(value: Mapping[str, Any], product: Product) -> MirroredCertificate:
    state, wait = value["state"], value.get("wait_seconds")
    if state not in _STATES:
        raise ValueError(state)
    known = isinstance(wait, int | float) and not isinstance(wait, bool) and 0 <= wait < 1e9
    return MirroredCertificate(tcb_of(value["tcb"], product), state, wait if known else None)


def _error_of(answer: bytes) -> str:
    """Return the reason that an answer names, for people; empty if it names none."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return ""
    said = found.get("error") if isinstance(found, dict) else None
    return f", {printable(said, 200)}" if isinstance(said, str) else ""


class BackgroundAnnouncer:
    """Announces from a thread of its own; never raises, and never waits but in :meth:`finish`.

    While one announcement is being sent, only the newest of the others waits. ``listener`` hears
    of each failure, and when announcing begins to work. ``observe`` is called with each result:
    ``ok``, or the error's code.
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
        """The mirror that it announces to."""
        return self._announcer.mirror

    def announce(self, told: Announcement) -> None:
        """Send an announcement soon."""
        with self._lock:
            self._next = told
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="announce", daemon=True)
                self._thread.start()

    def finish(self, seconds: float = REQUEST_LIMIT) -> None:
        """Wait for what is being sent, at most ``seconds``."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _send_all(self) -> None:
        while True:
            with self._lock:
                told, self._next = self._next, None
                if told is None:
                    self._thread = None
                    return
            try:
                self.wanted = self._announcer.send(told)
            except SnpCertsError as error:
                self._failed(str(error), error.code)
            except Exception as error:  # whatever a library raises, the agent goes on
                self._failed(f"{type(error).__name__}: {error}", "error")
            else:
                self._observe("ok")
                if not self._works:
                    self._works = True
                    url = self._announcer.mirror.url
                    self._listener(Event(EventKind.ANNOUNCED, f"announced to {url}"))

    def _failed(self, why: str, code: str) -> None:
        self._works = False
        self._observe(code)
        self._listener(Event(EventKind.NOT_ANNOUNCED, f"not announced: {why}"))
