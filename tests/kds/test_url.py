# SPDX-License-Identifier: Apache-2.0
"""The key server's URLs: one spelling written, every spelling read."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, UsageError
from snpcerts.kds.url import (
    ChainResource,
    CrlResource,
    VcekResource,
    checked_base,
    checked_target,
    parse_target,
)
from tests.endorsement.small_ca import PINNED

LEVEL = st.integers(0, 255)


@st.composite
def vceks(draw: st.DrawFn) -> VcekResource:
    product = draw(st.sampled_from(Product))
    size = product.hwid_size
    hwid = draw(st.binary(min_size=size, max_size=size).filter(any))
    tcb = TcbVersion.of({name: draw(LEVEL) for name in product.tcb_layout.components})
    return VcekResource(product, hwid, tcb)


def test_a_milan_url_is_the_one_that_is_in_use() -> None:
    wanted = VcekResource(Product.MILAN, bytes.fromhex("AB" * 64), TcbVersion(4, 0, 24, 219))
    assert wanted.path == (
        "vcek/v1/Milan/" + "ab" * 64 + "?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"
    )


def test_a_turin_url_has_eight_bytes_of_chip_and_fmc_first() -> None:
    wanted = VcekResource(
        Product.TURIN, bytes.fromhex("0123456789abcdef"), TcbVersion(1, 1, 4, 81, fmc=1)
    )
    assert wanted.path == (
        "vcek/v1/Turin/0123456789abcdef?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"
    )


@pytest.mark.parametrize("kind", VekKind)
@pytest.mark.parametrize("product", PINNED)
def test_chains_and_lists_round_trip(product: Product, kind: VekKind) -> None:
    assert ChainResource(product, kind).path == f"{kind.value}/v1/{product.value}/cert_chain"
    assert CrlResource(product, kind).path == f"{kind.value}/v1/{product.value}/crl"
    for resource in (ChainResource(product, kind), CrlResource(product, kind)):
        assert parse_target("/" + resource.path) == resource
        assert parse_target("https://kdsintf.amd.com/" + resource.path) == resource


@given(vceks())
def test_written_state_is_read_back_unchanged(wanted: VcekResource) -> None:
    assert parse_target(wanted.path) == wanted


@given(vceks(), st.randoms(use_true_random=False), st.booleans())
def test_case_padding_and_order_do_not_matter(
    wanted: VcekResource,
    order: random.Random,
    upper: bool,
) -> None:
    path, _, query = wanted.path.partition("?")
    head, _, hwid = path.rpartition("/")
    pairs = [pair.split("=") for pair in query.split("&")]
    order.shuffle(pairs)
    spelled = "&".join(f"{name}={int(value):0{order.choice((1, 2, 3))}}" for name, value in pairs)
    target = f"/{head}/{hwid.upper() if upper else hwid}?{spelled}"
    assert parse_target(target).path == wanted.path


@given(vceks(), vceks())
def test_two_things_never_share_a_url(one: VcekResource, other: VcekResource) -> None:
    assert (one.path == other.path) == (one == other)


@given(
    st.one_of(
        st.text(max_size=300),
        st.builds(
            "/vcek/v1/{}/{}?{}".format,
            st.sampled_from(["Milan", "Turin", "milan"]),
            st.sampled_from(["ab" * 64, "ab" * 8, "zz", "crl", "", "ab" * 63]),
            st.text("blteSPLucodefmsnp=&0123456789٣+%", max_size=80),
        ),
    )
)
def test_garbage_is_refused_as_such(target: str) -> None:
    with contextlib.suppress(FormatError):
        parse_target(target)


GOOD = "blSPL=1&teeSPL=2&snpSPL=3&ucodeSPL=4"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (f"/vcek/v1/Milan/{'ab' * 8}?{GOOD}", "64 bytes"),
        (f"/vcek/v1/Turin/{'ab' * 64}?{GOOD}&fmcSPL=1", "8 bytes"),
        (f"/vcek/v1/Turin/{'ab' * 8}?{GOOD}", "needs fmc"),
        (f"/vcek/v1/Milan/{'ab' * 64}?{GOOD}&fmcSPL=1", "no fmc"),
        (f"/vcek/v1/Milan/{'00' * 64}?{GOOD}", "only zero bytes"),
        (f"/vcek/v1/Milan/{'ab' * 64}?{GOOD}&blSPL=1", "twice"),
        (f"/vcek/v1/Milan/{'ab' * 64}?{GOOD}&x=1", "as the parameter"),
        (f"/vcek/v1/Milan/{'ab' * 64}?blSPL=256&teeSPL=2&snpSPL=3&ucodeSPL=4", "from 0 to 255"),
        (f"/vcek/v1/Milan/{'ab' * 64}?blSPL=-1&teeSPL=2&snpSPL=3&ucodeSPL=4", "from 0 to 255"),
        (f"/vcek/v1/Milan/{'ab' * 64}?blSPL=1&teeSPL=2&snpSPL=3", "ucodeSPL"),
        (f"/vcek/v1/milan/{'ab' * 64}?{GOOD}", "expected a product"),
        (f"/vlek/v1/Milan/{'ab' * 64}?{GOOD}", "expected cert_chain"),
        ("/vcek/v1/Milan/crl?x=1", "no parameters"),
        ("/vcek/v2/Milan/crl", "path"),
        ("/vcek/v1/Milan/" + "ab" * 2000, "characters"),
        ("http://[", "cannot be read"),
    ],
)
def test_problems_are_reported(target: str, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        parse_target(target)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host",
        "https://u:p@host",
        "http://h?q",
        "http://h#f",
        "http://h:x",
        "http://h\n",
        "http://[",
        "http://h o",
    ],
)
def test_what_cannot_be_a_key_server_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        checked_base(url)


def test_a_mirror_may_live_below_a_path() -> None:
    assert checked_base("http://mirror.example:8080/kds/") == "http://mirror.example:8080/kds"


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("http://mirror/a/b", "/c", "http://mirror/c"),
        ("http://mirror/a", "https://mirror/a", "https://mirror/a"),
        ("https://mirror/a", "https://store:444/a?b", "https://store:444/a?b"),
        ("http://127.0.0.1:1/", "http://localhost:2/", "http://localhost:2/"),
    ],
)
def test_a_redirect_leads_there(url: str, location: str, target: str) -> None:
    assert checked_target(url, location) == target


@pytest.mark.parametrize(
    "location",
    [
        "http://mirror/",
        "ftp://mirror/",
        "file:///etc/passwd",
        "https://[",
        "https://mirror:99999/",
        "https://user@mirror/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0/",
        "https://localhost/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://169.254.169.254/latest",
    ],
)
def test_a_redirect_does_not_lead_everywhere(location: str) -> None:
    with pytest.raises(ValueError):
        checked_target("https://kdsintf.amd.com/x", location)


@pytest.mark.parametrize("location", ["http://169.254.169.254/", "http://[fe80::1]/"])
def test_a_server_on_this_machine_does_not_lead_to_its_clouds_metadata(location: str) -> None:
    with pytest.raises(ValueError, match="this machine"):
        checked_target("http://127.0.0.1:8180/x", location)
