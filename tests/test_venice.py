# SPDX-License-Identifier: Apache-2.0
"""Venice: its TCB is read and written everywhere; the refusal of its evidence names Venice.

No genuine evidence is public. The TCB layout follows virtee/sev: in pull request 396 it has no
bootloader and no microcode, and in release 8.0.0 the other three components are in the same bytes
as on Turin. Chip IDs have 8 bytes, as in virtee/snpguest, pull request 159.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from click.testing import CliRunner

from snpcerts.abi.product import Product, products_of_chip_id
from snpcerts.abi.tcb import TcbLayout, TcbVersion
from snpcerts.cli.main import cli
from snpcerts.endorsement.anchors import AMD_ANCHORS
from snpcerts.endorsement.vek import PRODUCT_NAME, EndorsementCert, VekKind
from snpcerts.errors import FormatError, UsageError
from snpcerts.host.host_processor import product_of_host
from snpcerts.kds.source import open_certificate_source
from snpcerts.kds.store import place_of, resource_at
from snpcerts.kds.url import ChainResource, VcekResource, parse_target
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.policy import Policy, TcbFloor
from snpcerts.verify.policy_file import read_policy
from snpcerts.verify.sources import CollateralRequest, verify_with
from snpcerts.verify.verdict import Status, Verdict
from tests.documented_json import documented
from tests.endorsement.small_ca import NOON, SmallCa, ia5

RAW = bytes((5, 0, 6, 7, 0, 0, 0, 0))
TCB = TcbVersion.unpack(RAW, TcbLayout.VENICE)
HWID = bytes(range(1, 9))
VCEK = VcekResource(Product.VENICE, HWID, TCB)


def report(model: int = 0x50, tcb: bytes = RAW) -> bytes:
    """A report that names Venice, signed with another key."""
    levels = dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), tcb)
    return SmallCa(Product.TURIN).report(5, cpuid_model=model, **levels)


def run(*argv: object, code: int) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in argv])
    assert result.exit_code == code, result.output
    return result.output


def test_the_eight_bytes() -> None:
    assert TCB.components() == {"fmc": 5, "tee": 6, "snp": 7}
    assert (TCB.bootloader, TCB.microcode) == (None, None)
    assert TCB.layout is TcbLayout.VENICE
    assert TCB.pack() == RAW


@pytest.mark.parametrize("index", [1, 4, 5, 6, 7])
def test_the_bytes_of_bootloader_and_microcode_must_be_zero(index: int) -> None:
    data = bytearray(RAW)
    data[index] = 1
    with pytest.raises(FormatError, match=r"reserved byte .* venice layout"):
        TcbVersion.unpack(bytes(data), TcbLayout.VENICE)


@pytest.mark.parametrize(
    "text", ["fmc=5 tee=6 snp=7", "fmc=5,tee=6,snp=7", '{"fmc": 5, "tee": 6, "snp": 7}', RAW.hex()]
)
def test_every_form_that_is_printed_or_typed(text: str) -> None:
    assert TcbVersion.parse(text, TcbLayout.VENICE) == TCB


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bl=1,tee=6,snp=7,ucode=2", "needs fmc and has no bootloader, microcode"),
        ("fmc=5,bl=1,tee=6,snp=7,ucode=2", "has no bootloader, microcode"),
        ("fmc=5,tee=6", "snp is missing"),
        ("fmc=5,tee=6,snp=7,ucode=2", "bl is missing"),
    ],
)
def test_the_tcb_of_another_product_is_refused(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        TcbVersion.parse(text, TcbLayout.VENICE)


@pytest.mark.parametrize("names", [("fmc", "bootloader"), ("microcode",), ("bootloader",)])
def test_no_tcb_lacks_other_components(names: tuple[str, ...]) -> None:
    components = TcbVersion(1, 2, 3, 4, fmc=5).components()
    with pytest.raises(FormatError, match="missing"):
        TcbVersion.of({name: components[name] for name in components if name not in names})


def test_its_tcbs_are_compared_with_each_other_alone() -> None:
    assert TCB.covers(TCB)
    assert not TCB.covers(replace(TCB, tee=7))
    with pytest.raises(FormatError, match="different layouts"):
        TCB.covers(TcbVersion(0, 0, 0, 0, fmc=0))


def test_its_url() -> None:
    assert VCEK.path == "vcek/v1/Venice/0102030405060708?fmcSPL=05&teeSPL=06&snpSPL=07"
    assert parse_target(VCEK.path) == VCEK


@pytest.mark.parametrize("more", ["&blSPL=0", "&ucodeSPL=0", "&blSPL=1&ucodeSPL=2"])
def test_a_url_with_bootloader_or_microcode_is_refused(more: str) -> None:
    with pytest.raises(FormatError, match="a TCB of Venice has no"):
        parse_target(VCEK.path + more)


def test_its_place_in_the_store() -> None:
    place = place_of(VCEK)
    assert place == PurePosixPath("vcek/0102030405060708/tee06_snp07_fmc05_vcek.der")
    assert resource_at(place, Product.VENICE) == VCEK
    for product in set(Product) - {Product.VENICE}:
        assert resource_at(place, product) is None


def test_a_policy_may_have_its_floor() -> None:
    policy = read_policy("[minimum_tcb.venice]\nfmc = 5\ntee = 6\nsnp = 7\n")
    assert policy.minimum_tcb == TcbFloor(venice=TCB)
    with pytest.raises(UsageError, match="a TCB of Venice has no bootloader, microcode"):
        TcbFloor(venice=TcbVersion(1, 2, 3, 4, fmc=5))


def test_a_report_is_refused_by_name_for_that_one_reason() -> None:
    ca = SmallCa(Product.TURIN)
    whole = Collateral(vcek=ca.leaf.make(), ask=ca.ask.make(), ark=ca.ark.make())
    for certificates in (Collateral(), whole):
        found = judged(report(), certificates)
        assert [each.code.value for each in found.reasons] == ["product-unknown"]
        assert (
            "model 0x50 belongs to Venice: snpcerts has no pinned AMD root key for Venice"
            in found.reasons[0].message
        )
        assert found.product is Product.VENICE
        assert found.tcbs.reported == TCB


def judged(read: bytes, certificates: Collateral, policy: Policy | None = None) -> Verdict:
    class Source:
        def collateral(self, request: CollateralRequest) -> Collateral:
            raise AssertionError(f"no source can help: {request.kind} must not be asked for")

    evidence = Evidence(read, certificates)
    found = verify_with(evidence, [Source()], policy, at=NOON)
    assert found.status is Status.REFUSED
    return found


@pytest.mark.parametrize("model", [0x50, 0x5F, 0x90, 0xA0, 0xAF, 0xC0, 0xCF])
def test_its_floors_are_judged_too(model: int) -> None:
    policy = Policy(minimum_tcb=TcbFloor(venice=replace(TCB, snp=8)))
    found = judged(report(model), Collateral(), policy)
    assert [each.code.value for each in found.reasons] == ["product-unknown", "policy-reported-tcb"]


def test_a_report_of_version_2_is_never_taken_for_one() -> None:
    """Venice's chip IDs are as long as Turin's, but version 2 was replaced before Venice."""
    assert products_of_chip_id(HWID.ljust(64, b"\0")) == (Product.TURIN,)


def test_no_root_is_pinned_and_no_certificate_read() -> None:
    assert all(anchor.product is not Product.VENICE for anchor in AMD_ANCHORS)
    ca = SmallCa(Product.TURIN)
    leaf = ca.leaf.without_extension(PRODUCT_NAME).with_extension(PRODUCT_NAME, ia5("Venice"))
    with pytest.raises(FormatError, match="no pinned AMD root key for Venice"):
        EndorsementCert.from_bytes(leaf.make())


def test_no_certificate_is_asked_for(tmp_path: Path) -> None:
    source = open_certificate_source(cache=tmp_path, url="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="no pinned AMD root key for Venice"):
        source.vcek(Product.VENICE, HWID, TCB)
    with pytest.raises(UsageError, match="no pinned AMD root key for Venice"):
        source.chain(Product.VENICE)
    with pytest.raises(UsageError, match="no pinned AMD root key for Venice"):
        source.crl(Product.VENICE)
    assert ChainResource(Product.VENICE, VekKind.VCEK).path == "vcek/v1/Venice/cert_chain"


@pytest.mark.parametrize(
    "argv",
    [
        ("kds", "fetch", "chain", "--product", "venice", "-o", "out"),
        ("kds", "fetch", "crl", "--product", "Venice", "-o", "out"),
        ("emulate", "--product", "VENICE", "status"),
        ("host", "status", "--product", "venice"),
    ],
)
def test_commands_refuse_it_by_name(argv: tuple[str, ...]) -> None:
    assert "no pinned AMD root key for Venice" in " ".join(run(*argv, code=2).split())


def test_a_report_is_shown_with_its_tcbs(tmp_path: Path) -> None:
    place = tmp_path / "report.bin"
    place.write_bytes(report())
    shown: Any = documented("report show", run("report", "show", place, "--json", code=0))
    assert shown["product"] == "Venice"
    assert "fmc=5 tee=6 snp=7" in run("report", "show", place, code=0)
    verdict = json.loads(run("verify", place, "--json", code=1))
    documented("verify", json.dumps(verdict))


def test_a_host_of_it_is_refused_by_name(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 80\n")
    with pytest.raises(Exception, match="no pinned AMD root key for Venice"):
        product_of_host(str(info))
