# SPDX-License-Identifier: Apache-2.0
"""The emulated key server answers as AMD's does, and fails as configured."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import (
    Fault,
    Faults,
    Throttle,
    Throttled,
    ThrottleMemory,
    faults_of_names,
)
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.crl import load_crl
from snpcerts.endorsement.signature import authority_key, is_signed
from snpcerts.endorsement.vek import EndorsementCert
from snpcerts.errors import FormatError, UsageError
from snpcerts.kds.body import read_chain, same_key
from snpcerts.kds.url import VcekResource

from .conftest import MILAN_TCB, TURIN_TCB, Host


@pytest.fixture
def web() -> Iterator[httpx2.Client]:
    with httpx2.Client(trust_env=False) as client:
        yield client


def url_of(host: Host, product: Product = Product.MILAN) -> str:
    return f"{host.server.url}/{host.resource(product).path}"


@pytest.mark.parametrize("product", [Product.MILAN, Product.TURIN])
def test_every_resource_is_served_in_its_form(
    host: Host, web: httpx2.Client, product: Product
) -> None:
    leaf = EndorsementCert.from_bytes(web.get(url_of(host, product)).content)
    assert (leaf.product, leaf.hwid) == (product, host.resource(product).hwid)
    for kind, middle in (("vcek", "SEV-"), ("vlek", "SEV-VLEK-")):
        base = f"{host.server.url}/{kind}/v1/{product.value}"
        pair = read_chain(web.get(f"{base}/cert_chain").content)
        assert f"CN={middle}{product.value}" in pair.intermediate.subject.rfc4514_string()
        assert pair.root == host.server.lines[product].authority.ark
        assert load_crl(web.get(f"{base}/crl").content).issuer_common_name is not None


def test_other_spellings_get_the_same_key(host: Host, web: httpx2.Client) -> None:
    first = web.get(url_of(host)).content
    hwid = host.resource().hwid.hex().upper()
    query = "ucodeSPL=219&snpSPL=24&teeSPL=0&blSPL=4"
    second = web.get(f"{host.server.url}/vcek/v1/Milan/{hwid}?{query}").content
    assert first != second, "must make a new certificate each time, as AMD's does"
    assert same_key(first, second)
    assert host.server.requests == {host.resource().path: 2}


def test_unknown_resources_are_404(host: Host, web: httpx2.Client) -> None:
    chip = Chip.create(Product.MILAN)
    stranger = VcekResource(Product.MILAN, chip.hwid, MILAN_TCB).path
    for path in (stranger, "vcek/v1/Genoa/cert_chain", "", "vlek/v1/Milan/cert?blSPL=1"):
        assert web.get(f"{host.server.url}/{path}").status_code == 404
    long_turin = f"vcek/v1/Turin/{'ab' * 64}?fmcSPL=1&blSPL=1&teeSPL=1&snpSPL=1&ucodeSPL=1"
    assert web.get(f"{host.server.url}/{long_turin}").status_code == 404


@pytest.mark.parametrize("by", Throttled)
@pytest.mark.parametrize("lengthens", [False, True])
def test_throttling_is_by_address_or_also_by_certificate(
    milan: EmulatedAuthority, web: httpx2.Client, by: Throttled, lengthens: bool
) -> None:
    now = [100.0]
    chip = Chip.create(Product.MILAN)
    throttle = Throttle(10, by, lengthens)
    line = ProductLine(milan, (chip,))
    with KeyServer([line], throttle=throttle, clock=lambda: now[0]) as server:
        one = f"{server.url}/{VcekResource(Product.MILAN, chip.hwid, MILAN_TCB).path}"
        other = one.replace("snpSPL=24", "snpSPL=25")
        assert web.get(one).status_code == 200
        now[0] += 4
        refused = web.get(one)
        wait = "10" if lengthens else "6"
        assert (refused.status_code, refused.headers["retry-after"]) == (429, wait)
        assert web.get(other).status_code == (429 if by is Throttled.ADDRESS else 200)
        for unthrottled in ("cert_chain", "crl"):
            assert web.get(f"{server.url}/vcek/v1/Milan/{unthrottled}").status_code == 200
        now[0] += 6
        assert web.get(one).status_code == (429 if lengthens else 200)
        now[0] += 10
        assert web.get(one).status_code == 200


def test_the_throttle_forgets_no_more_than_it_must() -> None:
    memory = ThrottleMemory(Throttle(10))
    for index in range(10_000):
        assert memory.wait(str(index), "certificate", float(index)) == 0
    assert memory.wait("9999", "another", 9999.5) == pytest.approx(9.5)


def test_faults_may_be_asked_for_in_the_query(host: Host, web: httpx2.Client) -> None:
    assert web.get(url_of(host) + "&fault=503").status_code == 503
    page = web.get(url_of(host) + "&fault=html")
    assert page.headers["content-type"] == "text/html"
    assert b"<html>" in page.content
    assert web.get(url_of(host)).status_code == 200


HARMLESS = {Fault.SLOW, Fault.DRIP, Fault.CONTENT_TYPE}


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_spoils_an_answer(host: Host, web: httpx2.Client, fault: Fault) -> None:
    """Answers are judged as by a client: by status, signature and content of the certificate."""

    def sound() -> bool:
        try:
            answer = web.get(url_of(host), timeout=20)
            leaf = EndorsementCert.from_bytes(answer.content)
        except (httpx2.HTTPError, FormatError):
            return False
        wanted = host.resource()
        ours = host.server.lines[Product.MILAN]
        key = ours.chips[0].vcek_key(wanted.tcb).public_key()
        issuer = authority_key(ours.authority.ask)
        assert issuer is not None
        read = leaf.certificate
        return (
            answer.status_code == 200
            and is_signed(read.tbs_certificate_bytes, read.signature, issuer)
            and (leaf.hwid, leaf.tcb, leaf.public_key) == (wanted.hwid, wanted.tcb, key)
            and read.not_valid_after_utc > datetime.now(UTC)
        )

    host.server.faults.next(fault)
    assert sound() == (fault in HARMLESS)
    assert sound()


def test_stats_count_the_requests(host: Host, web: httpx2.Client) -> None:
    web.get(url_of(host))
    web.get(f"{host.server.url}/nothing")
    stats = json.loads(web.get(f"{host.server.url}/stats").content)
    assert stats == {
        "total": 2,
        "requests": {host.resource().path: 1, "other": 1},
        "statuses": {"200": 1, "404": 1},
    }


def test_many_ask_at_once(host: Host) -> None:
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(httpx2.get(url_of(host, Product.TURIN), trust_env=False).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8


def test_unknown_faults_are_refused_with_a_list() -> None:
    assert faults_of_names(["html", "429"]) == {Fault.HTML, Fault.TOO_MANY}
    with pytest.raises(UsageError, match=r"wrong-root.*redirect"):
        faults_of_names(["bad"])


@given(st.lists(st.sampled_from(Fault), max_size=3), st.integers(0, 3))
def test_faults_spoken_for_come_first_then_the_usual_ones(always: list[Fault], times: int) -> None:
    faults = Faults(always)
    faults.next(Fault.HTML, times=times)
    assert [faults.take() for _ in range(times)] == [frozenset({Fault.HTML})] * times
    assert faults.take() == frozenset(always)


def test_two_authorities_for_one_product_are_refused(milan: EmulatedAuthority) -> None:
    with pytest.raises(UsageError):
        KeyServer([ProductLine(milan, ()), ProductLine(milan, ())])


def test_a_port_in_use_is_an_error(host: Host, milan: EmulatedAuthority) -> None:
    port = int(host.server.url.rsplit(":", 1)[1])
    with pytest.raises(UsageError, match="cannot listen"):
        KeyServer([ProductLine(milan, ())], port=port)


def test_tcbs_have_the_layout_of_their_product(host: Host, web: httpx2.Client) -> None:
    turin = web.get(url_of(host, Product.TURIN)).content
    assert EndorsementCert.from_bytes(turin).tcb == TURIN_TCB
