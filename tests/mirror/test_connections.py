# SPDX-License-Identifier: Apache-2.0
"""Connections: requests that come too slowly, heads that are too long, client certificates."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.key_server_faults import Fault
from snpcerts.emulator.machine.key_server import KeyServer
from snpcerts.emulator.psp.chip import Chip
from snpcerts.errors import RefusedError, RetryLaterError
from snpcerts.mirror.api import Tokens
from snpcerts.mirror.connection import MAX_HEAD, REQUEST_TIME, MirrorConnection
from snpcerts.mirror.mirror_client import MirrorAccess, MirrorClient
from snpcerts.mirror.service import CallerLimits

from .conftest import vcek
from .private_ca import PrivateCa
from .running import RunningMirror
from .test_pace import host

Start = Callable[..., RunningMirror]
HEAD = b"GET /healthz HTTP/1.1\r\nHost: mirror\r\n"


def connect(mirror: RunningMirror) -> socket.socket:
    address, _, port = mirror.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((address, int(port)), timeout=60)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /heal",
        HEAD,
        HEAD + b"X: " + bytes(100),
        b"PUT /api/v1/hosts/milan/00 HTTP/1.1\r\nHost: m\r\nContent-Length: 9\r\n\r\n{",
    ],
    ids=["nothing", "half a line", "half a head", "half a header", "half a body"],
)
def test_a_request_that_stays_incomplete_is_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    mirror = start()
    monkeypatch.setattr(MirrorConnection, "request_time", 0.5)
    with connect(mirror) as slow, contextlib.suppress(ConnectionResetError):
        slow.sendall(sent)
        assert b" 200 " not in slow.recv(4096)
    monkeypatch.setattr(MirrorConnection, "request_time", REQUEST_TIME)
    assert mirror.ask("healthz").status == 200


def test_a_head_that_arrives_in_drips_is_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part arrives in time, but the whole head, the second on its connection, does not."""
    mirror = start()
    with connect(mirror) as slow:
        slow.sendall(HEAD + b"\r\n")
        assert b" 200 " in slow.recv(4096)
        monkeypatch.setattr(MirrorConnection, "request_time", 1.0)
        slow.settimeout(0.2)
        slow.sendall(HEAD)
        assert any(is_ended(slow, b"X: y\r\n") for _ in range(600))


def is_ended(connection: socket.socket, part: bytes) -> bool:
    try:
        connection.sendall(part)
        return not connection.recv(4096)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_the_time_limit_ends_when_a_request_is_complete(
    start: Start, amd: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection of a caller that waits for its certificate stays open."""
    connections: list[MirrorConnection] = []
    begin = MirrorConnection.on_message_begin

    def noted(self: MirrorConnection) -> None:
        connections.append(self)
        begin(self)

    monkeypatch.setattr(MirrorConnection, "on_message_begin", noted)
    mirror = start(limits=CallerLimits(patience=1))
    amd.faults.set(Fault.REFUSE)
    with connect(mirror) as caller:
        caller.sendall(f"GET /{vcek(amd).path} HTTP/1.1\r\nHost: m\r\n\r\n".encode())
        amd.wait_for_requests(bool, 60)
        assert [each._deadline for each in connections] == [None]
        assert b" 503 " in caller.recv(4096)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 2 * MAX_HEAD,
        HEAD + b"X: " + b"a" * 2 * MAX_HEAD,
        HEAD + b"X: y\r\n" * (MAX_HEAD // 3),
    ],
    ids=["line", "header", "headers"],
)
def test_a_head_that_is_too_long_is_refused(start: Start, head: bytes) -> None:
    mirror = start()
    # The mirror may close the connection before it has read everything.
    with connect(mirror) as long, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        long.sendall(head)
        assert long.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert mirror.ask("healthz").status == 200


CHAIN = b"GET /vcek/v1/Milan/cert_chain HTTP/1.1\r\nHost: mirror\r\n\r\n"


def ended(connection: socket.socket, seconds: float) -> bool:
    """Without reading, wait for the other side to end the connection; return whether it did."""
    waiting = select.poll()
    waiting.register(connection, 0)  # POLLERR and POLLHUP always count
    return bool(waiting.poll(seconds * 1000))


@pytest.mark.parametrize("last", [b"", HEAD + b"Connection: close\r\n\r\n"], ids=["", "close"])
def test_a_client_that_does_not_read_its_answers_is_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    mirror = start()
    size = len(mirror.ask("vcek/v1/Milan/cert_chain").body)
    monkeypatch.setattr(MirrorConnection, "answer_time", 0.5)
    with connect(mirror) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # Request more than the socket buffers of both sides can hold.
        deaf.sendall(CHAIN * ((8 << 20) // size) + last)
        assert ended(deaf, 60)
    assert mirror.ask("healthz").status == 200


def test_each_answer_has_its_own_time_to_be_read() -> None:
    timers: list[Callable[[], None]] = []
    ends: list[str] = []
    unread = 9
    connection: Any = MirrorConnection.__new__(MirrorConnection)
    connection.loop = SimpleNamespace(
        call_later=lambda _, then, *given: timers.append(lambda: then(*given))
    )
    connection.transport = SimpleNamespace(
        get_write_buffer_size=lambda: unread,
        get_extra_info=lambda _: SimpleNamespace(setsockopt=lambda *_: ends.append("reset")),
        abort=lambda: ends.append("aborted"),
    )
    connection._expect_reading()
    connection._answers += 1
    timers.pop()()
    assert not ends
    timers.pop()()
    assert ends == ["reset", "aborted"]
    connection._expect_reading()
    unread = 0
    timers.pop()()
    assert ends == ["reset", "aborted"]
    assert not timers


CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * MAX_HEAD


def test_trailers_that_are_too_long_end_the_connection(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = start()
    monkeypatch.setattr(MirrorConnection, "request_time", 600)
    with connect(mirror) as long, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        long.sendall(CHUNKS + b"0\r\n" + b"X: y\r\n" * MAX_HEAD)
        while long.recv(4096):
            pass
    assert mirror.ask("healthz").status == 200


def test_trailers_that_arrive_together_with_their_body_count(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, sent = start(), threading.Event()
    monkeypatch.setattr(MirrorConnection, "request_time", 600)
    with connect(mirror) as long, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        mirror.pause(sent)
        long.sendall(CHUNKS + b"0\r\n" + b"X: y\r\n" * (MAX_HEAD // 4))
        sent.set()
        while long.recv(4096):
            pass


def test_a_body_in_many_chunks_does_not_count_as_head(start: Start) -> None:
    mirror = start()
    with connect(mirror) as many:
        many.sendall(CHUNKS + b"0\r\nX: y\r\n\r\n" + HEAD + b"\r\n")
        found = b""
        while found.count(b" 200 ") < 2:
            data = many.recv(4096)
            assert data, "the mirror must not close the connection"
            found += data


def test_a_large_body_does_not_count_as_head(start: Start) -> None:
    mirror = start(tokens=Tokens(agent=("t" * 16,)))
    found = mirror.ask(
        "api/v1/hosts/milan/00",
        method="PUT",
        body=b"{" + b" " * 2 * MAX_HEAD + b"}",
        headers={"Authorization": f"Bearer {'t' * 16}"},
    )
    assert "400" not in found.text
    assert found.status == 400
    assert json.loads(found.body)["code"] != "error"


@pytest.fixture
def ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrivateCa:
    (tmp_path / "ca").mkdir()
    made = PrivateCa(tmp_path / "ca", "Private CA")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.root))
    return made


@pytest.fixture
def strict(start: Start, ca: PrivateCa) -> RunningMirror:
    """A mirror with TLS that accepts client certificates of the CA, and no tokens."""
    own = str(ca.issue("127.0.0.1"))
    return start(certificate=own, key=own, client_ca=str(ca.root))


def announce(mirror: RunningMirror, name: str, chip: Chip | None = None, **access: object) -> bytes:
    announced = host(chip or Chip.create(Product.MILAN), host=name)
    client = MirrorClient(MirrorAccess(mirror.url, **access), access_hint="")  # type: ignore[arg-type]  # a test's
    path = f"hosts/{announced.product.value.lower()}/{announced.hwid.hex()}"
    return client.call("PUT", path, announced.to_json())


def test_a_host_announces_itself_with_its_certificate(strict: RunningMirror, ca: PrivateCa) -> None:
    own = str(ca.issue("rack1-host7.example"))
    assert b"wanted" in announce(strict, "rack1-host7.example", certificate=own, key=own)
    assert [each.announcement.host for each in strict.mirror.records.fleet().hosts] == [
        "rack1-host7.example"
    ]


def test_a_certificate_speaks_for_its_own_host_alone(strict: RunningMirror, ca: PrivateCa) -> None:
    own = str(ca.issue("rack1-host7.example"))
    with pytest.raises(RefusedError, match="certificate for 'rack1-host8'") as refused:
        announce(strict, "rack1-host8", certificate=own, key=own)
    assert "common name in the client certificate" in str(refused.value.hint)
    assert strict.mirror.records.fleet().hosts == ()


def test_without_a_certificate_nothing_is_announced_but_all_can_be_read(
    strict: RunningMirror, ca: PrivateCa
) -> None:
    with pytest.raises(RefusedError, match="403"):
        announce(strict, "rack1-host7.example")
    context = ssl.create_default_context(cafile=str(ca.root))
    address, _, port = strict.url.removeprefix("https://").rpartition(":")
    with (
        socket.create_connection((address, int(port)), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=address) as tls,
    ):
        tls.sendall(HEAD + b"\r\n")
        assert b" 200 " in tls.recv(4096)


def test_a_certificate_of_another_ca_is_refused(strict: RunningMirror, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    own = str(PrivateCa(tmp_path / "other", "Private CA").issue("rack1-host7.example"))
    with pytest.raises(RetryLaterError, match="no usable answer"):
        announce(strict, "rack1-host7.example", certificate=own, key=own)
    assert strict.mirror.records.fleet().hosts == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"lasts": timedelta(minutes=30)},
        {"starts": timedelta(minutes=30)},
        {"usages": [ExtendedKeyUsageOID.SERVER_AUTH]},
        {"by": "rack1-host8.example"},
    ],
    ids=["expired", "not yet valid", "for servers", "signed by a host"],
)
def test_a_certificate_that_is_not_a_clients_is_refused(
    strict: RunningMirror, ca: PrivateCa, wrong: dict[str, Any]
) -> None:
    if "by" in wrong:
        wrong = {"by": ca.issue(wrong["by"])}
    own = str(ca.issue("rack1-host7.example", **wrong))
    with pytest.raises(RetryLaterError, match="no usable answer"):
        announce(strict, "rack1-host7.example", certificate=own, key=own)
    assert strict.mirror.records.fleet().hosts == ()
    right = str(ca.issue("rack1-host7.example", usages=[ExtendedKeyUsageOID.CLIENT_AUTH]))
    assert b"wanted" in announce(strict, "rack1-host7.example", certificate=right, key=right)


def test_a_host_with_a_certificate_keeps_its_chip(strict: RunningMirror, ca: PrivateCa) -> None:
    own, others = str(ca.issue("host-1")), str(ca.issue("host-2"))
    chip = Chip.create(Product.MILAN)
    announce(strict, "host-1", chip, certificate=own, key=own)
    with pytest.raises(RefusedError, match="this chip belongs to host 'host-1'"):
        announce(strict, "host-2", chip, certificate=others, key=others)
    with pytest.raises(RefusedError, match="has announced another chip"):
        announce(strict, "host-1", certificate=own, key=own)
    assert [each.announcement.host for each in strict.mirror.records.fleet().hosts] == ["host-1"]


def test_a_certificate_starts_no_roll(strict: RunningMirror, ca: PrivateCa) -> None:
    own = str(ca.issue("rack1-host7.example"))
    client = MirrorClient(MirrorAccess(strict.url, certificate=own, key=own), access_hint="")
    with pytest.raises(RefusedError, match="403"):
        client.call("POST", "rolls", {"product": "milan", "tcb": {}})
