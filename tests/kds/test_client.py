# SPDX-License-Identifier: Apache-2.0
"""The client against a key server that throttles, fails, lies about itself, and stalls."""

from __future__ import annotations

import contextlib
import math
import socket
import time

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.key_server_faults import Fault
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, RetryLaterError
from snpcerts.kds.body import MAX_BODY, read_chain, read_vcek
from snpcerts.kds.client import KdsClient
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError
from snpcerts.kds.retry import RetryPolicy
from snpcerts.kds.url import ChainResource

from .answering import Answering, ok
from .conftest import Host, SkippingClock

CHAIN = ChainResource(Product.MILAN, VekKind.VCEK)


def anything(body: bytes) -> bytes:
    return body


def test_a_certificate_arrives(host: Host) -> None:
    client = host.client()
    leaf = client.get(host.resource(), read_vcek)
    assert leaf.not_valid_after_utc.year > 2026
    assert client.results == {"ok": 1}


def test_the_content_type_does_not_matter(host: Host) -> None:
    host.server.faults.set(Fault.CONTENT_TYPE)
    assert host.client().get(host.resource(), read_vcek)


def test_throttling_is_waited_out_for_as_long_as_the_server_says(host: Host) -> None:
    host.server.faults.next(Fault.TOO_MANY, times=2)
    client = host.client()
    assert client.get(host.resource(), read_vcek)
    assert len(host.waits) == 2
    assert 9.9 <= host.waits[0] <= 12.0
    assert 19.9 <= host.waits[1] <= 24.0, "a second refusal in a row must double the wait"
    assert client.results == {"throttled": 2, "ok": 1}


def test_a_date_to_come_back_at_is_honoured_too(host: Host) -> None:
    host.server.faults.next(Fault.TOO_MANY_DATE)
    assert host.client().get(host.resource(), read_vcek)
    assert len(host.waits) == 1
    assert 8.0 <= host.waits[0] <= 12.0


@pytest.mark.parametrize("status", [429, 503])
def test_the_server_says_how_long_to_wait(status: int) -> None:
    head = f"HTTP/1.1 {status} x\r\nRetry-After: 23\r\nContent-Length: 0\r\n\r\n".encode()
    clock = SkippingClock()
    with Answering(lambda _: head) as server:
        client = KdsClient(server.url, policy=RetryPolicy(attempts=2), clock=clock)
        with pytest.raises(KdsUnavailableError) as caught:
            client.get(CHAIN, anything)
    assert len(clock.waits) == 1
    assert 22.9 <= clock.waits[0] <= 23.0 * 1.2
    # A second 429 in a row doubles the wait that the server names; a second 503 does not.
    least = 46 if status == 429 else 23
    assert least <= (caught.value.retry_after or 0) <= math.ceil(least * 1.2)


@pytest.mark.parametrize("named", ["0", "Wed, 01 Jan 2020 00:00:00 GMT"])
def test_a_429_with_a_present_or_past_time_still_causes_a_wait(named: str) -> None:
    head = f"HTTP/1.1 429 x\r\nRetry-After: {named}\r\nContent-Length: 0\r\n\r\n".encode()
    clock = SkippingClock()
    with Answering(lambda _: head) as server:
        client = KdsClient(server.url, policy=RetryPolicy(attempts=3), clock=clock)
        with pytest.raises(KdsUnavailableError) as caught:
            client.get(CHAIN, anything)
        assert len(server.targets) == 3
    assert [9 < wait <= 12 or 19 < wait <= 24 for wait in clock.waits] == [True, True]
    assert 40 <= (caught.value.retry_after or 0) <= 48


def test_throttling_without_a_time_is_given_ten_seconds(host: Host) -> None:
    host.server.faults.next(Fault.TOO_MANY_SILENT)
    assert host.client().get(host.resource(), read_vcek)
    assert 9.9 <= host.waits[0] <= 12.0


@pytest.mark.parametrize("fault", [Fault.TOO_MANY, Fault.TOO_MANY_SILENT])
def test_throttling_that_does_not_end_says_when_to_come_back(host: Host, fault: Fault) -> None:
    host.server.faults.set(fault)
    with pytest.raises(KdsUnavailableError) as caught:
        host.client().get(host.resource(), read_vcek)
    assert 40 <= (caught.value.retry_after or 0) <= 48, "the wait must double with each refusal"
    assert f"try again in {caught.value.retry_after:.0f} s" in (caught.value.hint or "")
    assert host.leaf_requests() == 3


def test_a_wait_longer_than_the_budget_is_left_to_the_caller(host: Host) -> None:
    host.policy = RetryPolicy(budget=5.0)
    host.server.faults.set(Fault.TOO_MANY)
    with pytest.raises(KdsUnavailableError) as caught:
        host.client().get(host.resource(), read_vcek)
    assert 10 <= (caught.value.retry_after or 0) <= 12
    assert host.waits == []
    assert host.leaf_requests() == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault.SERVER_ERROR,
        Fault.UNAVAILABLE,
        Fault.REFUSE,
        Fault.CUT,
        Fault.CUT_SILENT,
        Fault.HTML,
        Fault.EMPTY,
    ],
)
def test_a_passing_fault_is_tried_again(host: Host, fault: Fault) -> None:
    host.server.faults.next(fault, times=2)
    assert host.client().get(host.resource(), read_vcek)
    assert [round(wait) for wait in host.waits] in ([1, 2],)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.SERVER_ERROR,
        Fault.UNAVAILABLE,
        Fault.REFUSE,
        Fault.CUT,
        Fault.CUT_SILENT,
        Fault.HTML,
        Fault.EMPTY,
        Fault.HUGE,
        Fault.FORBIDDEN,
        Fault.REDIRECT,
    ],
)
def test_a_lasting_fault_is_unavailable_and_never_bad_evidence(host: Host, fault: Fault) -> None:
    host.server.faults.set(fault)
    with pytest.raises(KdsUnavailableError) as caught:
        host.client().get(host.resource(), read_vcek)
    assert isinstance(caught.value, RetryLaterError)
    assert caught.value.exit_code == 3
    assert host.leaf_requests() <= host.policy.attempts


def test_404_is_asked_once_and_not_taken_for_the_truth(host: Host) -> None:
    host.server.faults.set(Fault.NOT_FOUND)
    with pytest.raises(KdsNotFoundError, match="404 for valid chips"):
        host.client().get(host.resource(), read_vcek)
    assert host.leaf_requests() == 1
    assert host.waits == []


def test_a_redirect_is_followed_to_another_server_too(host: Host) -> None:
    """A mirror may keep its files on another server; whatever comes is verified anyway."""
    host.server.faults.next(Fault.REDIRECT_HERE)
    assert host.client().get(host.resource(), read_vcek)
    target = f"{host.server.url}/{host.resource().path}"
    redirect = f"HTTP/1.1 302 x\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    with Answering(lambda _: redirect) as mirror:
        assert KdsClient(mirror.url).get(host.resource(), read_vcek)
    host.server.faults.set(Fault.REDIRECT_HERE)
    with pytest.raises(KdsUnavailableError, match="redirected more than"):
        host.client().get(host.resource(), read_vcek)


def test_a_redirect_that_is_not_followed_is_refused_for_good() -> None:
    head = b"HTTP/1.1 302 x\r\nLocation: ftp://mirror/x\r\nContent-Length: 0\r\n\r\n"
    clock = SkippingClock()
    with Answering(lambda _: head) as mirror:
        with pytest.raises(KdsUnavailableError, match="not an http or https URL"):
            KdsClient(mirror.url, clock=clock).get(CHAIN, anything)
        assert (len(mirror.targets), clock.waits) == (1, [])


def test_a_body_is_read_up_to_a_limit(host: Host) -> None:
    with Answering(lambda _: ok(bytes(MAX_BODY))) as server:
        assert len(KdsClient(server.url).get(CHAIN, anything)) == MAX_BODY
        server.reply = lambda _: ok(bytes(MAX_BODY + 1))
        with pytest.raises(KdsUnavailableError, match="more than"):
            KdsClient(server.url).get(CHAIN, anything)


def test_compressed_bombs_are_not_unpacked() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
    with Answering(lambda _: head + b"\x1f\x8b\x08\x00") as server:
        assert KdsClient(server.url).get(CHAIN, anything) == b"\x1f\x8b\x08\x00"


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_bytes_that_drip_in_for_ever_end_with_the_budget(first: bytes) -> None:
    """Each byte restarts the time limits of the HTTP library, in the headers and in the body."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(first)
        connection.settimeout(0.02)
        for _ in range(300):
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return

    policy = RetryPolicy(budget=0.5, attempts=1)
    with Answering(lambda _: b"", drip) as server:
        started = time.monotonic()
        with pytest.raises(KdsUnavailableError, match="took longer"):
            KdsClient(server.url, policy=policy).get(CHAIN, read_chain)
        assert time.monotonic() - started < 3


def test_silence_is_not_waited_out() -> None:
    def silent(connection: socket.socket) -> None:
        connection.recv(1)

    policy = RetryPolicy(silence=0.1, attempts=1)
    with Answering(lambda _: b"", silent) as server, pytest.raises(KdsUnavailableError):
        KdsClient(server.url, policy=policy).get(CHAIN, read_chain)


def test_a_request_that_used_up_the_time_is_not_blamed_on_other_processes() -> None:
    def silent(connection: socket.socket) -> None:
        connection.recv(1)

    policy = RetryPolicy(budget=0.3)
    with (
        Answering(lambda _: b"", silent) as server,
        pytest.raises(KdsUnavailableError, match="took longer") as caught,
    ):
        KdsClient(server.url, policy=policy).get(CHAIN, read_chain)
    assert "other processes" not in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\0" * 100,
        b"HTTP/9.9 xyz\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA" + b"b" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 302 x\r\nLocation: http://[\r\n\r\n",
        b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:99999999/\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_http_is_unavailable(reply: bytes) -> None:
    with Answering(lambda _: reply) as server:
        client = KdsClient(server.url, clock=SkippingClock())
        with pytest.raises(KdsUnavailableError):
            client.get(CHAIN, read_chain)


def test_a_server_that_does_not_listen_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    clock = SkippingClock()
    client = KdsClient(f"http://127.0.0.1:{port}", clock=clock)
    with pytest.raises(KdsUnavailableError, match="refused"):
        client.get(CHAIN, anything)
    assert len(clock.waits) == client.policy.attempts - 1
    assert client.results == {"unreachable": client.policy.attempts}


def test_every_wait_is_announced(host: Host) -> None:
    said: list[str] = []
    host.server.faults.next(Fault.UNAVAILABLE)
    client = KdsClient(host.server.url, notice=said.append, clock=host.clock)
    client.get(host.resource(), read_vcek)
    assert len(said) == 1
    assert "503" in said[0]
    assert "trying again in 1 s" in said[0]


def test_unreadable_bodies_are_distinguished_from_readable_ones(host: Host) -> None:
    def never(_body: bytes) -> None:
        raise FormatError("thing", "no good")

    with pytest.raises(KdsUnavailableError, match="no good"):
        host.client().get(host.resource(), never)
