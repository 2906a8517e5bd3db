# SPDX-License-Identifier: Apache-2.0
"""The mirror's answers: to each spelling of AMD's URLs, to conditional and to bad requests."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.key_server_faults import Fault, Throttle, ThrottleMemory
from snpcerts.emulator.machine.key_server import KeyServer
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.kds.body import read_chain
from snpcerts.kds.url import VcekResource
from snpcerts.mirror.service import CallerLimits
from snpcerts.mirror.waiting import WaitingCallers
from snpcerts.mirror.wanted import WantedQueue

from ..sizes import sized
from .conftest import MILAN_TCB, vcek
from .running import RunningMirror


def test_a_certificate_is_asked_for_once_and_then_comes_from_the_database(
    amd: KeyServer, mirror: RunningMirror
) -> None:
    path = vcek(amd).path
    first, second = mirror.ask(path), mirror.ask(path)
    assert (first.status, second.status) == (200, 200)
    assert first.body == second.body
    load_certificate(first.body, "VCEK")
    assert first.headers["content-type"] == "application/octet-stream"
    assert "immutable" in first.headers["cache-control"]
    assert first.headers["access-control-allow-origin"] == "*"
    assert amd.requests == {path: 1, "vcek/v1/Milan/cert_chain": 1}


def test_callers_that_ask_at_once_share_one_request(amd: KeyServer, mirror: RunningMirror) -> None:
    path = vcek(amd).path
    amd.faults.next(Fault.SLOW)
    statuses: list[int] = []
    callers = [
        threading.Thread(target=lambda: statuses.append(mirror.ask(path).status)) for _ in range(20)
    ]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert statuses == [200] * 20
    assert amd.requests[path] == 1


def test_chains_and_lists_have_their_types(amd: KeyServer, mirror: RunningMirror) -> None:
    chain = mirror.ask("vcek/v1/Milan/cert_chain")
    assert chain.headers["content-type"] == "application/x-pem-file"
    read_chain(chain.body)
    for kind in ("vcek", "vlek"):
        crl = mirror.ask(f"{kind}/v1/Milan/crl")
        assert (crl.status, crl.headers["content-type"]) == (200, "application/pkix-crl")
    assert mirror.ask("vlek/v1/Turin/cert_chain").status == 200


SPELLINGS: dict[str, Callable[[VcekResource], str]] = {
    "snpguest, snphost: two digits": lambda r: r.path,
    "go-sev-guest: no padding": lambda r: (
        f"vcek/v1/Milan/{r.hwid.hex()}?blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"
    ),
    "another order": lambda r: (
        f"vcek/v1/Milan/{r.hwid.hex()}?ucodeSPL=219&snpSPL=24&teeSPL=00&blSPL=04"
    ),
    "hexadecimal in upper case": lambda r: r.path.replace(r.hwid.hex(), r.hwid.hex().upper()),
    "the product in lower case": lambda r: r.path.replace("Milan", "milan"),
    "below a prefix, as behind a proxy": lambda r: f"amd/kds/{r.path}",
    "a base URL that ends in a slash": lambda r: f"/{r.path}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_clients_spelling_names_the_same_certificate(
    amd: KeyServer, mirror: RunningMirror, spelling: str
) -> None:
    resource = vcek(amd)
    expected = mirror.ask(resource.path)
    found = mirror.ask("/" + SPELLINGS[spelling](resource))
    assert (found.status, found.body) == (200, expected.body)
    assert amd.requests[resource.path] == 1


def test_a_turin_chip_may_be_named_by_the_64_bytes_of_a_report(
    amd: KeyServer, mirror: RunningMirror
) -> None:
    resource = vcek(amd, Product.TURIN)
    padded = resource.path.replace(resource.hwid.hex(), resource.hwid.hex() + "00" * 56)
    assert mirror.ask(padded).status == mirror.ask(resource.path).status == 200
    assert amd.requests[resource.path] == 1
    other = resource.path.replace(resource.hwid.hex(), resource.hwid.hex() + "01" + "00" * 55)
    assert mirror.ask(other).status == 400


def test_a_known_etag_saves_the_body(amd: KeyServer, mirror: RunningMirror) -> None:
    path = vcek(amd).path
    etag = mirror.ask(path).headers["etag"]
    for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        found = mirror.ask(path, headers={"If-None-Match": value})
        assert (found.status, found.body, found.headers["etag"]) == (304, b"", etag)
    assert mirror.ask(path, headers={"If-None-Match": '"other"'}).status == 200


def test_head_returns_only_the_headers(amd: KeyServer, mirror: RunningMirror) -> None:
    path = vcek(amd).path
    whole, head = mirror.ask(path), mirror.ask(path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    assert head.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE"])
def test_certificates_can_only_be_read(amd: KeyServer, mirror: RunningMirror, method: str) -> None:
    found = mirror.ask(vcek(amd).path, method=method)
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert amd.requests == {}


BAD = {
    "no chip": "vcek/v1/Milan/",
    "no parameters": "vcek/v1/Milan/" + "ab" * 64,
    "a short chip ID": "vcek/v1/Milan/abcd?blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=1",
    "not hexadecimal": "vcek/v1/Milan/" + "zz" * 64 + "?blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=1",
    "a chip ID of zeros": "vcek/v1/Milan/" + "00" * 64 + "?blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=1",
    "an unknown product": "vcek/v1/Naples/cert_chain",
    "an unknown parameter": "vcek/v1/Milan/cert_chain?url=http://localhost/",
    "another version": "vcek/v1/v2/Milan/cert_chain",
    "traversal": "../vcek/v1/Milan/cert_chain",
    "traversal within the path": "vcek/v1/../cert_chain",
    "encoded": "vcek/v1/%4dilan/cert_chain",
    "encoded twice": "vcek/v1/%254dilan/cert_chain",
    "a number too large": "vcek/v1/Milan/" + "ab" * 64 + "?blSPL=256&teeSPL=0&snpSPL=1&ucodeSPL=1",
    "a number below zero": "vcek/v1/Milan/" + "ab" * 64 + "?blSPL=-1&teeSPL=0&snpSPL=1&ucodeSPL=1",
    "a repeated parameter": "vcek/v1/Milan/"
    + "ab" * 64
    + "?blSPL=1&blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=1",
    "a host in the path": "vcek/v1/Milan/cert_chain@evil.example/crl",
    "huge": "vcek/v1/Milan/" + "ab" * 4000,
    "many parameters": "vcek/v1/Milan/cert_chain?" + "&".join("a=1" for _ in range(400)),
    "a NUL": "vcek/v1/Milan/%00",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_url_gets_an_answer_that_says_why(
    amd: KeyServer, mirror: RunningMirror, name: str
) -> None:
    found = mirror.ask(BAD[name])
    assert found.status in (400, 414)
    assert "key server URL" in json.loads(found.body)["error"]
    assert amd.requests == {}


@pytest.mark.parametrize("name", ["cert", "hash_stick"])
def test_a_vleks_certificate_is_private(amd: KeyServer, mirror: RunningMirror, name: str) -> None:
    found = mirror.ask(f"vlek/v1/Milan/{name}?blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=1")
    assert (found.status, json.loads(found.body)["code"]) == (403, "private")
    assert amd.requests == {}


def test_404_is_remembered_for_minutes(amd: KeyServer, mirror: RunningMirror) -> None:
    path = VcekResource(Product.MILAN, b"\x01" * 64, MILAN_TCB).path
    first, second = mirror.ask(path), mirror.ask(path)
    assert (first.status, second.status) == (404, 404)
    assert 0 < int(second.headers["retry-after"]) <= 600
    assert amd.requests[path] == 1


def test_a_caller_waits_even_if_the_queue_is_checked_before_its_resource_is_in_it(
    amd: KeyServer, mirror: RunningMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = threading.Event()

    def look(waiting: WaitingCallers, resources: list[str]) -> set[str]:
        found = queued(waiting, resources)
        checked.set()
        return found

    def want_late(queue: WantedQueue, *arguments: Any, **named: Any) -> bool:
        assert checked.wait(60)
        return want(queue, *arguments, **named)

    queued, want = WaitingCallers._queued, WantedQueue.want
    monkeypatch.setattr(WaitingCallers, "_queued", look)
    monkeypatch.setattr(WantedQueue, "want", want_late)
    found = mirror.ask(vcek(amd).path)
    assert found.status == 200, found.body


UNTRUSTED = [Fault.WRONG_CHIP, Fault.WRONG_TCB, Fault.WRONG_ROOT, Fault.EXPIRED]


@pytest.mark.parametrize("fault", UNTRUSTED, ids=lambda fault: fault.value)
def test_what_does_not_verify_is_neither_stored_nor_given(
    amd: KeyServer, mirror: RunningMirror, fault: Fault
) -> None:
    assert mirror.ask("vcek/v1/Milan/cert_chain").status == 200
    amd.faults.set(fault)
    path = vcek(amd).path
    found = mirror.ask(path)
    assert (found.status, json.loads(found.body)["code"]) == (502, "refused")
    assert b"CERTIFICATE" not in found.body
    with mirror.mirror.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT resource FROM certificate").all()
    assert [row[0] for row in rows] == ["vcek/v1/Milan/cert_chain"]


UNUSABLE = [
    Fault.HTML,
    Fault.EMPTY,
    Fault.HUGE,
    Fault.CUT,
    Fault.CUT_SILENT,
    Fault.REFUSE,
    Fault.SERVER_ERROR,
    Fault.UNAVAILABLE,
    Fault.FORBIDDEN,
    Fault.TOO_MANY,
    Fault.TOO_MANY_SILENT,
    Fault.TOO_MANY_DATE,
    Fault.REDIRECT,
]


@pytest.mark.parametrize("fault", UNUSABLE, ids=lambda fault: fault.value)
def test_without_a_usable_answer_the_caller_is_told_to_come_again(
    amd: KeyServer, start: Callable[..., RunningMirror], fault: Fault
) -> None:
    mirror = start(limits=CallerLimits(patience=0.3))
    amd.faults.set(fault)
    found = mirror.ask(vcek(amd).path)
    assert found.status == 503
    assert int(found.headers["retry-after"]) >= 1
    with mirror.mirror.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT resource FROM certificate").all()
        kept = connection.exec_driver_sql("SELECT resource FROM queue").all()
    assert rows == []
    assert [row[0] for row in kept] == [vcek(amd).path]


def test_after_trouble_upstream_the_certificate_still_comes(
    amd: KeyServer, start: Callable[..., RunningMirror]
) -> None:
    mirror = start(limits=CallerLimits(patience=20))
    amd.faults.next(Fault.SERVER_ERROR, times=sized(1, 2))
    assert mirror.ask(vcek(amd).path).status == 200


def test_a_caller_may_prefer_not_to_wait(
    amd: KeyServer, start: Callable[..., RunningMirror]
) -> None:
    amd._throttle = ThrottleMemory(Throttle(1.0))
    mirror = start(gap=300.0)
    paths = [vcek(amd, index=index).path for index in range(3)]
    assert mirror.ask(paths[0]).status == 200
    found = [mirror.ask(path, headers={"Prefer": "wait=0"}) for path in paths[1:]]
    assert [each.status for each in found] == [503, 503]
    waits = [int(each.headers["retry-after"]) for each in found]
    assert 290 <= waits[0] <= 301
    assert 590 <= waits[1] <= 602


def test_a_caller_over_its_own_budget_gets_429(
    amd: KeyServer, start: Callable[..., RunningMirror]
) -> None:
    mirror = start(gap=300.0, limits=CallerLimits(budget=2))
    assert mirror.ask(vcek(amd).path).status == 200
    strangers = [VcekResource(Product.MILAN, bytes([n]) * 64, MILAN_TCB).path for n in (1, 2, 3)]
    found = [mirror.ask(path, headers={"Prefer": "wait=0"}) for path in strangers]
    assert [each.status for each in found] == [503, 503, 429]
    assert 290 <= int(found[2].headers["retry-after"]) <= 301
    # A repeated request for a certificate that is already in the queue takes no budget.
    assert mirror.ask(strangers[0], headers={"Prefer": "wait=0"}).status == 503


def test_if_only_enrolled_chips_are_served_others_are_not_fetched(
    amd: KeyServer, start: Callable[..., RunningMirror]
) -> None:
    mirror = start(limits=CallerLimits(enrolled_only=True))
    found = mirror.ask(vcek(amd).path)
    assert (found.status, json.loads(found.body)["code"]) == (403, "not-enrolled")
    assert mirror.ask("vcek/v1/Milan/cert_chain").status == 200


def test_a_mirror_of_a_mirror_serves_the_same_bytes(
    amd: KeyServer, mirror: RunningMirror, start: Callable[..., RunningMirror], tmp_path: object
) -> None:
    second = start(database=f"sqlite:///{tmp_path}/second.db", upstream=mirror.url)
    path = vcek(amd).path
    assert second.ask(path).body == mirror.ask(path).body
    assert amd.requests[path] == 1


def test_a_compressed_answer_of_upstream_is_not_stored(
    amd: KeyServer, start: Callable[..., RunningMirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror asks for an uncompressed answer, but a proxy may compress it anyway."""
    plain = amd.answer

    def compressed(target: str, client: str) -> Any:
        answer, faults = plain(target, client)
        headers = (*answer.headers, ("Content-Encoding", "gzip"))
        return replace(answer, body=gzip.compress(answer.body), headers=headers), faults

    mirror = start(limits=CallerLimits(patience=5))
    monkeypatch.setattr(amd, "answer", compressed)
    found = mirror.ask(vcek(amd).path, headers={"Prefer": "wait=1"})
    assert found.status == 503
    assert "unexpected content" in json.loads(found.body)["error"]
    monkeypatch.undo()
    assert mirror.ask(vcek(amd).path).status == 200


def test_a_chain_that_upstream_lacks_is_not_taken_for_a_missing_vcek(
    amd: KeyServer, start: Callable[..., RunningMirror]
) -> None:
    mirror = start(limits=CallerLimits(patience=1))
    amd.faults.next(Fault.NOT_FOUND)
    found = mirror.ask(vcek(amd).path)
    assert found.status == 503
    assert "chain" in json.loads(found.body)["error"]
    assert amd.requests == {"vcek/v1/Milan/cert_chain": 1}
