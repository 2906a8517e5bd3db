# SPDX-License-Identifier: Apache-2.0
"""Only what verifies is returned and kept; the cache works without the key server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID
from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import Fault, Faults
from snpcerts.emulator.amd.signing import sign_again
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.endorsement import structure
from snpcerts.endorsement.crl import load_crl
from snpcerts.endorsement.encoding import to_pem
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import RefusedError, RetryLaterError, UsageError
from snpcerts.kds.body import same_key
from snpcerts.kds.client import KdsClient
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError, KdsUntrustedError
from snpcerts.kds.retry import RetryPolicy
from snpcerts.kds.source import CertificateSource, open_certificate_source
from snpcerts.kds.store import Store
from snpcerts.kds.url import ChainResource, CrlResource
from tests.endorsement.small_ca import flipped

from .answering import Answering, ok
from .conftest import MILAN_TCB, TURIN_TCB, Host, SkippingClock

PRODUCTS = (Product.MILAN, Product.TURIN)
YEAR = timedelta(days=365)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_vcek_is_of_the_chip_and_tcb_and_makes_a_table(host: Host, product: Product) -> None:
    found = host.vcek(product)
    read = EndorsementCert.from_bytes(found.leaf)
    wanted = host.resource(product)
    assert (read.product, read.hwid, read.tcb) == (product, wanted.hwid, wanted.tcb)
    table = found.table()
    assert (table.get(VCEK_GUID), table.get(ASK_GUID), table.get(ARK_GUID)) == (
        found.leaf,
        found.intermediate,
        found.root,
    )
    assert found.not_after == read.certificate.not_valid_after_utc
    assert host.kept(product).read_bytes() == found.leaf
    assert host.warnings == []


@pytest.mark.parametrize("folder", ["milan", "turin-v5"])
def test_genuine_certificates_pass_with_amds_anchors(
    vectors: Path, folder: str, tmp_path: Path
) -> None:
    parts = {name: (vectors / folder / f"{name}.der").read_bytes() for name in ("ask", "ark")}
    vcek = (vectors / folder / "vcek.der").read_bytes()
    pem = b"".join(to_pem(part, crl=False) for part in parts.values())
    read = EndorsementCert.from_bytes(vcek)
    at = read.certificate.not_valid_before_utc + timedelta(days=1)
    assert read.hwid is not None
    with Answering(lambda target: ok(pem if target.endswith("cert_chain") else vcek)) as server:
        source = CertificateSource(Store(tmp_path), KdsClient(server.url))
        found = source.vcek(read.product, read.hwid, read.tcb, at=at)
    assert (found.leaf, found.intermediate, found.root) == (vcek, parts["ask"], parts["ark"])
    offline = CertificateSource(Store(tmp_path), None)
    assert offline.vcek(read.product, read.hwid, read.tcb, at=at) == found


def test_cached_resources_are_not_requested_again(host: Host) -> None:
    first = host.vcek()
    assert host.vcek() == first
    assert host.server.requests == {
        host.resource().path: 1,
        ChainResource(Product.MILAN, VekKind.VCEK).path: 1,
    }


def test_offline_cached_resources_are_used_and_others_unavailable(host: Host) -> None:
    found = host.vcek()
    offline = host.source(offline=True)
    assert host.fetch_from(offline) == found
    with pytest.raises(KdsUnavailableError, match="offline"):
        host.fetch_from(offline, Product.TURIN)
    assert host.server.requests.keys() == {
        host.resource().path,
        ChainResource(Product.MILAN, VekKind.VCEK).path,
    }


def test_each_component_of_the_tcb_is_part_of_the_key(host: Host) -> None:
    """This includes Turin's FMC: without it, the cache would return another VCEK's certificate."""
    source = host.source()
    hwid = host.resource(Product.TURIN).hwid
    tcbs = [TURIN_TCB] + [
        replace(TURIN_TCB, **{name: value + 1}) for name, value in TURIN_TCB.components().items()
    ]
    for _ in range(2):
        for tcb in tcbs:
            assert EndorsementCert.from_bytes(source.vcek(Product.TURIN, hwid, tcb).leaf).tcb == tcb
    assert sum(host.server.requests.values()) == len(tcbs) + 1


LIES = {
    Fault.WRONG_CHIP: "chip-id-mismatch",
    Fault.WRONG_TCB: "tcb-mismatch",
    Fault.WRONG_ROOT: "ark-untrusted",
    Fault.EXPIRED: "leaf-expired",
}


@pytest.mark.parametrize(("fault", "reason"), LIES.items())
@pytest.mark.parametrize("product", PRODUCTS)
def test_lies_are_refused_with_the_reason_and_not_kept(
    host: Host, product: Product, fault: Fault, reason: str
) -> None:
    host.server.faults.set(fault)
    with pytest.raises(KdsUntrustedError) as caught:
        host.vcek(product)
    assert any(each.startswith(reason) for each in caught.value.reasons)
    assert reason in str(caught.value)
    assert not host.kept(product).exists()
    host.server.faults.clear()
    assert host.vcek(product)


def test_a_leaf_of_an_unpinned_root_is_refused_when_the_chain_is_genuine(host: Host) -> None:
    host.source().chain(Product.MILAN)
    host.server.faults.set(Fault.WRONG_ROOT)
    with pytest.raises(KdsUntrustedError):
        host.vcek()
    assert not host.kept().exists()
    host.server.faults.clear()
    assert host.fetch_from(host.source())


def test_another_platforms_root_is_not_an_anchor(host: Host) -> None:
    source = CertificateSource(Store(host.cache), host.client())
    with pytest.raises(KdsUntrustedError, match="ark-untrusted"):
        host.fetch_from(source)
    assert [*host.cache.rglob("*.der"), *host.cache.rglob("*.pem")] == []


def test_unavailable_is_never_refused(host: Host) -> None:
    host.server.faults.set(Fault.TOO_MANY)
    with pytest.raises(RetryLaterError) as caught:
        host.vcek()
    assert not isinstance(caught.value, RefusedError)


@pytest.mark.parametrize(
    "fault", [Fault.NOT_FOUND, Fault.UNAVAILABLE, Fault.TOO_MANY, Fault.HTML, Fault.WRONG_CHIP]
)
def test_a_valid_cached_certificate_wins_over_any_answer(host: Host, fault: Fault) -> None:
    found = host.vcek()
    host.server.faults.set(fault)
    assert host.vcek() == found
    assert host.vcek(refresh=True) == found
    assert any("stays in use" in warning for warning in host.warnings)
    assert host.kept().read_bytes() == found.leaf


def test_a_certificate_issued_again_has_other_bytes_and_the_same_key(host: Host) -> None:
    first = host.vcek()
    second = host.vcek(refresh=True)
    assert first.leaf != second.leaf
    assert same_key(first.leaf, second.leaf)
    assert host.kept().read_bytes() == second.leaf


def test_the_same_key_means_extensions_too(host: Host, milan: EmulatedAuthority) -> None:
    chip = host.server.lines[Product.MILAN].chips[0]
    key = chip.vcek_key(MILAN_TCB).public_key()
    other = milan.issue_vcek(chip.hwid, replace(MILAN_TCB, snp=23), key)
    assert not same_key(host.vcek().leaf, other.public_bytes(Encoding.DER))


def test_another_key_for_the_same_chip_does_not_replace_a_cached_one(host: Host) -> None:
    found = host.vcek()
    host.server.faults.set(Fault.WRONG_KEY)
    assert host.vcek(refresh=True) == found
    assert "leaf-key" in host.warnings[0]


def test_near_its_end_a_certificate_is_renewed(host: Host) -> None:
    found = host.vcek()
    soon = found.not_after - timedelta(days=5)
    host.server.faults.set(Fault.UNAVAILABLE)
    source = host.source()
    assert host.fetch_from(source, at=soon) == found
    asked = host.leaf_requests()
    assert asked == 2, "must try the renewal only once"
    assert host.fetch_from(source, at=soon) == found
    assert host.leaf_requests() == asked, "must not repeat a failed renewal at once"
    host.server.faults.clear()
    assert host.vcek(at=soon).leaf != found.leaf


def test_a_renewal_does_not_wait_for_its_turn(host: Host) -> None:
    found = host.vcek()
    host.server.faults.set(Fault.TOO_MANY)
    assert host.vcek(at=found.not_after - timedelta(days=5)) == found
    assert host.waits == []


def test_a_wrong_clock_is_named_as_a_possible_cause(host: Host) -> None:
    for at in (datetime.now(UTC) - YEAR, datetime.now(UTC) + 8 * YEAR):
        with pytest.raises(KdsUntrustedError, match="clock"):
            host.source().vcek(Product.MILAN, host.resource().hwid, MILAN_TCB, at=at)
    assert not host.kept().exists()


def _flip_a_bit(data: bytes) -> bytes:
    return flipped(data, len(data) // 2)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "bit": _flip_a_bit,
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "zeros": lambda data: bytes(len(data)),
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_file_is_reported_replaced_and_never_served(
    host: Host, damage: Callable[[bytes], bytes]
) -> None:
    found = host.vcek()
    host.kept().write_bytes(damage(found.leaf))
    with pytest.raises(KdsUnavailableError):
        host.fetch_from(host.source(offline=True))
    assert str(host.kept()) in host.warnings[0]
    again = host.vcek()
    assert same_key(again.leaf, found.leaf)
    assert host.kept().read_bytes() == again.leaf


def test_another_chips_certificate_under_this_ones_name_is_not_served(host: Host) -> None:
    source = host.source()
    hwid = host.resource().hwid
    host.vcek()
    other = source.vcek(Product.MILAN, hwid, replace(MILAN_TCB, snp=25))
    host.kept().write_bytes(other.leaf)
    assert EndorsementCert.from_bytes(host.vcek().leaf).tcb == MILAN_TCB
    assert "tcb-mismatch" in host.warnings[0]


def test_a_damaged_chain_is_replaced(host: Host) -> None:
    found = host.vcek()
    place = Store(host.cache).path_of(ChainResource(Product.MILAN, VekKind.VCEK))
    place.write_bytes(b"rubbish")
    assert host.vcek() == found
    assert str(place) in host.warnings[0]
    assert place.read_bytes() == host.server.lines[Product.MILAN].authority.chain_pem()


def test_a_new_ask_is_fetched_when_a_leaf_needs_it(
    host: Host, milan: EmulatedAuthority, tmp_path: Path
) -> None:
    """AMD has replaced Genoa's ASK once, while cached chains were still valid."""
    host.vcek()
    newer = _with_new_ask(milan)
    chip = host.server.lines[Product.MILAN].chips[0]
    with KeyServer([ProductLine(newer, (chip,))]) as server:
        host.url = server.url
        tcb = replace(MILAN_TCB, snp=25)
        found = host.source().vcek(Product.MILAN, chip.hwid, tcb)
        assert found.intermediate == newer.ask.public_bytes(Encoding.DER)
        assert server.requests[ChainResource(Product.MILAN, VekKind.VCEK).path] == 1


def _with_new_ask(authority: EmulatedAuthority) -> EmulatedAuthority:
    """The same authority with a new ASK below the same ARK. The new ASK has the ASVK's key."""
    key = authority.asvk_signer.key
    tbs = structure.read(structure.TbsCertificate, authority.ask.tbs_certificate_bytes)
    tbs.serial_number += 0x10000
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    tbs.subject_public_key_info = structure.read(asn1.TLV, spki)
    ask = sign_again(tbs, authority.ark_signer.key)
    return replace(authority, ask_signer=replace(authority.ask_signer, certificate=ask, key=key))


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_chain_of_a_vlek_is_asvk_and_ark(host: Host, product: Product) -> None:
    authority = host.server.lines[product].authority
    expected = tuple(each.public_bytes(Encoding.DER) for each in (authority.asvk, authority.ark))
    assert host.source().chain(product, VekKind.VLEK) == expected
    assert host.source(offline=True).chain(product, VekKind.VLEK) == expected


def test_a_vlek_chain_is_not_a_vcek_chain(host: Host, milan: EmulatedAuthority) -> None:
    with Answering(lambda _: ok(milan.chain_pem(vlek=True))) as server:
        host.url = server.url
        with pytest.raises(KdsUntrustedError, match="ask-name"):
            host.source().chain(Product.MILAN)


def test_a_chain_of_another_product_is_refused(host: Host, turin: EmulatedAuthority) -> None:
    with Answering(lambda _: ok(turin.chain_pem())) as server:
        host.url = server.url
        with pytest.raises(KdsUntrustedError, match="chain-product"):
            host.source().chain(Product.MILAN)


def test_a_revocation_list_is_kept_until_its_own_end(host: Host) -> None:
    source = host.source()
    first = source.crl(Product.MILAN)
    assert source.crl(Product.MILAN) == first
    path = CrlResource(Product.MILAN, VekKind.VCEK).path
    assert host.server.requests[path] == 1
    after = load_crl(first).next_update + timedelta(days=1)
    with pytest.raises(KdsUnavailableError):
        host.source(offline=True).crl(Product.MILAN, at=after)
    with pytest.raises(KdsUntrustedError, match="crl-expired"):
        source.crl(Product.MILAN, at=after)
    assert host.server.requests[path] == 2


def test_an_older_revocation_list_does_not_replace_a_newer_one(
    host: Host, milan: EmulatedAuthority
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    lists = {age: milan.crl((age,), last_update=now - timedelta(days=age)).der for age in (10, 20)}
    path = CrlResource(Product.MILAN, VekKind.VCEK).path
    age = 10

    def reply(target: str) -> bytes:
        return ok(lists[age] if target.endswith("crl") else milan.chain_pem())

    with Answering(reply) as server:
        host.url = server.url
        assert host.source().crl(Product.MILAN) == lists[10]
        age = 20
        assert host.source().crl(Product.MILAN, refresh=True) == lists[10]
        assert "crl-older" in host.warnings[0]
        assert server.targets.count(f"/{path}") == 2


def test_a_revocation_list_of_some_age_is_asked_for_anew_once_and_briefly(host: Host) -> None:
    path = CrlResource(Product.MILAN, VekKind.VCEK).path
    day = timedelta(days=1)
    source = host.source()
    first = source.crl(Product.MILAN, max_age=day)
    assert source.crl(Product.MILAN, max_age=day) == first
    assert host.server.requests[path] == 1
    kept = Store(host.cache).path_of(CrlResource(Product.MILAN, VekKind.VCEK))
    os.utime(kept, (0, 0))
    source.crl(Product.MILAN, max_age=day)
    assert host.server.requests[path] == 2
    # A file that was written while the clock was ahead must not count as new.
    os.utime(kept, (time.time() + 86400,) * 2)
    source.crl(Product.MILAN, max_age=day)
    assert host.server.requests[path] == 3
    os.utime(kept, (0, 0))
    host.server.faults.set(Fault.UNAVAILABLE)
    assert host.source().crl(Product.MILAN, max_age=day, budget=3.0)
    assert host.waits == [], "must not wait and ask again"
    kept.unlink()
    with pytest.raises(KdsUnavailableError):
        host.source().crl(Product.MILAN, max_age=day, budget=3.0)
    assert host.waits == []
    assert host.server.requests[path] == 5


def test_a_withdrawn_chain_is_replaced_with_the_leaf_below_it(
    host: Host, milan: EmulatedAuthority
) -> None:
    chip = host.server.lines[Product.MILAN].chips[0]
    revoked = (milan.ask.serial_number,)
    source = host.source(heed_revocation=True)
    old = host.fetch_from(source)
    host.server.lines[Product.MILAN] = ProductLine(milan, (chip,), revoked)
    source.crl(Product.MILAN)
    with pytest.raises(KdsUntrustedError, match="ask-revoked"):
        host.fetch_from(source)
    # Callers that judge revocation themselves still get the certificate.
    assert host.vcek().intermediate == old.intermediate
    host.server.lines[Product.MILAN] = ProductLine(milan.with_new_ask(), (chip,), revoked)
    new = host.fetch_from(host.source(heed_revocation=True))
    assert new.intermediate != old.intermediate
    assert new.leaf != old.leaf
    assert same_key(new.leaf, old.leaf)


def test_a_strangers_revocation_list_is_refused(host: Host, turin: EmulatedAuthority) -> None:
    host.source().chain(Product.MILAN)
    with Answering(lambda _: ok(turin.crl().der)) as server:
        host.url = server.url
        with pytest.raises(KdsUntrustedError, match="crl-issuer"):
            host.source().crl(Product.MILAN)
    assert not (host.cache / "crl").exists()


@pytest.mark.parametrize("how", ["a file where the cache should be", "disk full"])
def test_without_a_usable_cache_certificates_still_come(
    host: Host, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "disk full":

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
    else:
        host.cache.write_bytes(b"")
    source = host.source()
    found = host.fetch_from(source)
    assert any("could not be cached" in warning for warning in host.warnings)
    assert host.fetch_from(source) == found
    assert sum(host.server.requests.values()) == 2, "must keep the certificates in memory instead"


class Gated(Faults):
    """Holds every answer back until a test releases it."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(faults)
        self.asked = threading.Event()
        self.gate = threading.Event()

    def take(self) -> frozenset[Fault]:
        self.asked.set()
        assert self.gate.wait(30)
        return super().take()


def _together(
    host: Host, sources: list[CertificateSource], everybody_waits: Callable[[int], bool]
) -> list[object]:
    """Fetch the same VCEK from all sources at once. Return what each gives: a VCEK or an error."""
    host.source().chain(Product.MILAN)
    gated = host.server.faults = Gated(*host.server.faults.take())
    results: list[object] = [None] * len(sources)

    def fetch(index: int) -> None:
        try:
            results[index] = host.fetch_from(sources[index])
        except (KdsUnavailableError, KdsNotFoundError, KdsUntrustedError) as error:
            results[index] = error

    threads = [threading.Thread(target=fetch, args=(index,)) for index in range(len(sources))]
    threads[0].start()
    assert gated.asked.wait(30)
    for thread in threads[1:]:
        thread.start()
    pause = threading.Event()
    for _ in range(3000):
        if everybody_waits(len(sources) - 1):
            break
        pause.wait(0.01)
    gated.gate.set()
    for thread in threads:
        thread.join()
    return results


def test_ten_threads_make_one_request(host: Host) -> None:
    source = host.source()
    source.chain(Product.MILAN)

    def joined(count: int) -> bool:
        asked = dict(source._fetch._asking).items()
        future = next((each for what, each in asked if what[0] == host.resource()), None)
        # Each thread that waits for a future adds a waiter to its condition.
        return future is not None and len(future._condition._waiters) >= count  # type: ignore[attr-defined]

    results = _together(host, [source] * 10, joined)
    assert len({found.leaf for found in results if hasattr(found, "leaf")}) == 1
    assert None not in results
    assert host.leaf_requests() == 1


class WaitingClock(SkippingClock):
    """Really waits, and remembers which threads have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: set[int] = set()
        self._never = threading.Event()

    def sleep(self, seconds: float) -> None:
        self.waiting.add(threading.get_ident())
        self._never.wait(seconds)


@pytest.fixture
def waiting(host: Host) -> set[int]:
    """The threads that have waited for their turn."""
    host.clock = clock = WaitingClock()
    return clock.waiting


def test_ten_agents_that_share_a_cache_make_one_request(host: Host, waiting: set[int]) -> None:
    sources = [host.source() for _ in range(10)]
    results = _together(host, sources, lambda count: len(waiting) >= count)
    assert len({found.leaf for found in results if hasattr(found, "leaf")}) == 1
    assert None not in results
    assert host.leaf_requests() == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.TOO_MANY, KdsUnavailableError),
        (Fault.NOT_FOUND, KdsNotFoundError),
        (Fault.WRONG_CHIP, KdsUntrustedError),
    ],
)
def test_waiting_processes_share_an_error_too(
    host: Host, waiting: set[int], fault: Fault, kind: type[Exception]
) -> None:
    host.policy = RetryPolicy(attempts=1)
    host.server.faults.next(Fault.SLOW)  # for the chain
    host.server.faults.next(fault)
    sources = [host.source() for _ in range(5)]
    results = _together(host, sources, lambda count: len(waiting) >= count)
    assert [type(result) for result in results] == [kind] * 5
    assert len({str(result) for result in results}) == 1
    assert host.leaf_requests() == 1


def test_a_later_process_waits_as_long_as_an_earlier_one_was_asked_to(host: Host) -> None:
    host.policy = RetryPolicy(budget=5.0)
    host.server.faults.next(Fault.CONTENT_TYPE)  # for the chain
    host.server.faults.next(Fault.TOO_MANY)
    with pytest.raises(KdsUnavailableError):
        host.vcek()
    with pytest.raises(KdsUnavailableError) as caught:
        host.vcek()
    assert 8 <= (caught.value.retry_after or 0) <= 12
    assert host.leaf_requests() == 1
    host.policy = RetryPolicy()
    assert host.vcek()
    assert 8 <= host.waits[0] <= 12


def test_a_throttled_server_gets_no_requests_for_other_resources_either(
    host: Host,
) -> None:
    host.policy = RetryPolicy(budget=5.0)
    host.server.faults.next(Fault.CONTENT_TYPE)  # for the chain
    host.server.faults.next(Fault.TOO_MANY)
    with pytest.raises(KdsUnavailableError):
        host.vcek()
    for fetch in (
        lambda: host.source().crl(Product.MILAN),
        lambda: host.vcek(Product.TURIN),
    ):
        with pytest.raises(KdsUnavailableError, match="asked for a pause") as caught:
            fetch()
        assert 8 <= (caught.value.retry_after or 0) <= 12
    assert sum(host.server.requests.values()) == 2


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=40,
)
@given(data=st.data())
def test_hostile_bodies_raise_our_errors_and_are_never_cached(
    host: Host, milan: EmulatedAuthority, data: st.DataObject
) -> None:
    chip = host.server.lines[Product.MILAN].chips[0]
    good = milan.issue_vcek(chip.hwid, MILAN_TCB, chip.vcek_key(MILAN_TCB).public_key())
    genuine = good.public_bytes(Encoding.DER)
    body = data.draw(
        st.one_of(
            st.binary(max_size=4000),
            st.builds(
                flipped,
                st.just(genuine),
                st.integers(0, len(genuine) - 1),
                st.integers(0, 7),
            ),
            st.integers(0, len(genuine) - 1).map(lambda end: genuine[:end]),
            st.binary(min_size=1, max_size=20).map(lambda tail: genuine + tail),
            st.just(milan.chain_pem()),
            st.just(milan.ask.public_bytes(Encoding.DER)),
        )
    )

    def reply(target: str) -> bytes:
        return ok(milan.chain_pem() if target.endswith("cert_chain") else body)

    with Answering(reply) as server:
        host.url, host.policy = server.url, RetryPolicy(attempts=2)
        with pytest.raises((KdsUnavailableError, KdsUntrustedError)):
            host.vcek()
    assert not host.kept().exists()


def test_arguments_that_cannot_be_are_usage_errors(host: Host) -> None:
    source = host.source()
    hwid = host.resource().hwid
    for product, chip, tcb in (
        (Product.MILAN, hwid[:8], MILAN_TCB),
        (Product.MILAN, bytes(64), MILAN_TCB),
        (Product.MILAN, hwid, TURIN_TCB),
        (Product.TURIN, hwid[:8], MILAN_TCB),
        (Product.TURIN, hwid, TURIN_TCB),
    ):
        with pytest.raises(UsageError):
            source.vcek(product, chip, tcb)
    with pytest.raises(UsageError, match="time zone"):
        source.chain(Product.MILAN, at=datetime(2026, 1, 1))
    assert host.server.requests == {}


def test_open_source_is_offline_or_has_a_server(tmp_path: Path) -> None:
    offline = open_certificate_source(cache=tmp_path, offline=True)
    assert offline.client is None
    online = open_certificate_source(cache=tmp_path)
    assert online.client is not None
    assert online.client.url == "https://kdsintf.amd.com"
    with pytest.raises(UsageError):
        open_certificate_source(cache=tmp_path, url="http://mirror", offline=True)
