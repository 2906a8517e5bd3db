# SPDX-License-Identifier: Apache-2.0
"""snpcerts has none of these defects. "Elsewhere" is another tool that has or had the defect."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, ENTRY_SIZE, VCEK_GUID, CertTable
from snpcerts.abi.product import Product
from snpcerts.endorsement.vek import AMD_ARC, VekKind
from snpcerts.errors import FormatError
from snpcerts.kds.url import VcekResource
from snpcerts.verify.choosing import Part
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import verify
from snpcerts.verify.sources import CollateralRequest, verify_with
from snpcerts.verify.verdict import Status
from tests.endorsement.small_ca import (
    NOON,
    TCBS,
    SmallCa,
    flipped,
    integer,
)
from tests.keys import rsa_key
from tests.verify.test_verify import anchors, codes, collateral

from .slots import with_slot

CA = SmallCa()


def entry(guid: bytes, offset: int, length: int) -> bytes:
    return struct.pack("<16sII", guid, offset, length)


def evidence_with(table: bytes) -> Evidence:
    return Evidence.from_parts(CA.report(), table)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0xFFFFFFE8, 0x48), (0x30, 0xFFFFFFFF), (0xFFFFFFFF, 1), (0x80000000,) * 2],
)
def test_offset_and_length_do_not_wrap_at_32_bits(offset: int, length: int) -> None:
    """Elsewhere, a sum of two u32 wrapped and passed the bounds check; a panic followed."""
    with pytest.raises(FormatError, match="extends past the table"):
        evidence_with(entry(VCEK_GUID.bytes, offset, length) + bytes(ENTRY_SIZE) + bytes(64))


def test_overlapping_blobs_are_not_copied_again_and_again() -> None:
    """Elsewhere, 64 KiB of entries for the same bytes took 179 MB, and 1 MiB took 46 GiB."""
    count = (64 << 10) // ENTRY_SIZE - 1
    header = ENTRY_SIZE * (count + 1)
    entries = (entry(index.to_bytes(16, "big"), header, 1000) for index in range(1, count + 1))
    table = b"".join(entries) + bytes(ENTRY_SIZE) + bytes(1000)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            evidence_with(table)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(table)


@pytest.mark.parametrize("size", [1, 23, 24, 47, 480])
def test_a_table_without_its_end_is_not_walked_past_its_bytes(size: int) -> None:
    """Elsewhere, a walk to the zero GUID read memory beyond the table."""
    table = entry(VCEK_GUID.bytes, 48, 1) * 20
    with pytest.raises(FormatError, match="without the zero entry"):
        evidence_with(table[:size])


@pytest.mark.parametrize("guids", [(VCEK_GUID, VCEK_GUID), (ASK_GUID, ARK_GUID, ASK_GUID)])
def test_a_guid_that_is_there_twice_is_an_error(guids: tuple[object, ...]) -> None:
    """Some tools take the first entry, others the last, so they judge different certificates."""
    header = ENTRY_SIZE * (len(guids) + 1)
    entries = b"".join(
        entry(guid.bytes, header + index, 1)  # type: ignore[attr-defined]  # they are UUIDs
        for index, guid in enumerate(guids)
    )
    with pytest.raises(FormatError, match="twice"):
        evidence_with(entries + bytes(ENTRY_SIZE) + b"abc")


@pytest.mark.parametrize("slot", ["vcek", "ask", "ark"])
def test_each_signature_of_the_chain_can_fail_the_verdict(slot: str) -> None:
    """Elsewhere, every chain passed: a flag started as true and was only ever or-ed."""
    parts = collateral()
    data = getattr(parts, slot)
    broken = with_slot(parts, slot, flipped(data, len(data) - 1))
    verdict = verify(CA.report(), broken, anchors=anchors(), at=NOON)
    place = {"vcek": "leaf", "ask": "ask", "ark": "ark"}[slot]
    assert codes(verdict) == [f"{place}-signature"]
    assert verdict.status is Status.REFUSED
    with pytest.raises(TypeError):
        bool(verdict)


def test_a_self_made_chain_with_the_right_names_is_not_trusted() -> None:
    """Elsewhere, the root in the host's table was trusted."""
    ca = SmallCa(suffix="", ark_key="another")
    verdict = verify(Evidence(ca.report(), collateral(ca)), at=NOON)
    assert codes(verdict) == ["ark-untrusted"]


@pytest.mark.parametrize(
    ("product", "other"), [(Product.MILAN, Product.TURIN), (Product.TURIN, Product.MILAN)]
)
def test_a_tcb_is_never_read_with_the_layout_of_another_product(
    product: Product, other: Product
) -> None:
    """Elsewhere, Milan's levels were read as Turin's, which made an FMC of 219."""
    ca = SmallCa(product)
    verdict = verify(ca.report(), collateral(ca), anchors=anchors(ca), at=NOON)
    assert verdict.tcbs.reported == TCBS[product]
    with pytest.raises(FormatError):
        type(TCBS[product]).unpack(TCBS[product].pack(), other.tcb_layout)
    crossed = SmallCa(product, tcb=TCBS[product]).leaf.with_extension(
        f"{AMD_ARC}.1", integer(int(product is not Product.TURIN))
    )
    found = verify(ca.report(), collateral(ca, crossed), anchors=anchors(ca), at=NOON)
    assert codes(found) == ["leaf-profile"]


@pytest.mark.parametrize("model", [0xA0, 0xA1, 0xAA, 0xAF, 0x10, 0x11, 0x1F])
def test_zen_4c_is_genoa_with_all_its_models(model: int) -> None:
    """Elsewhere, Bergamo and Siena were unknown, and an off-by-one error left out model 0xaf."""
    ca = SmallCa(Product.GENOA)
    report = ca.report(cpuid_family=0x19, cpuid_model=model)
    assert codes(verify(report, collateral(ca), anchors=anchors(ca), at=NOON)) == []


@pytest.mark.parametrize("model", [0x00, 0x02, 0x10, 0x11])
def test_turin_dense_is_turin(model: int) -> None:
    ca = SmallCa(Product.TURIN)
    report = ca.report(5, cpuid_model=model)
    assert codes(verify(report, collateral(ca), anchors=anchors(ca), at=NOON)) == []


@pytest.mark.parametrize("model", [0x50, 0x57, 0x90, 0xAF, 0xC0, 0xC7, 0x12, 0xFF])
def test_the_product_after_turin_is_not_taken_for_turin(model: int) -> None:
    """Elsewhere, Venice is read as Turin. No root of Venice is known, so no report verifies."""
    ca = SmallCa(Product.TURIN)
    found = verify(ca.report(5, cpuid_model=model), collateral(ca), anchors=anchors(ca), at=NOON)
    assert codes(found) == ["product-unknown"]
    assert f"model {model:#x}" in found.reasons[0].message


def test_the_signature_is_over_the_bytes_that_came_not_over_fields_written_again() -> None:
    """Elsewhere, the mitigation vectors of version 4 were lost, and its reports refused."""
    report = CA.report(4, launch_mit_vector=7, current_mit_vector=1 << 40)
    assert codes(verify(report, collateral(), anchors=anchors(), at=NOON)) == []


def test_a_masked_report_of_version_2_can_be_read() -> None:
    """Elsewhere, such a report, which names no processor and no chip, could not be parsed."""
    report = CA.report(2, chip_id=bytes(64))
    found = verify(report, collateral(), anchors=anchors(), at=NOON)
    assert codes(found) == ["chip-id-masked"]
    assert found.tcbs.reported == TCBS[Product.MILAN]


def test_a_turin_vcek_is_looked_up_by_its_fmc_too() -> None:
    """Elsewhere, the cache's key had no FMC, so the cache gave another firmware's certificate."""
    tcb = TCBS[Product.TURIN]
    other = replace(tcb, fmc=2)
    hwid = bytes(range(1, 9))
    paths = {VcekResource(Product.TURIN, hwid, each).path for each in (tcb, other)}
    assert len(paths) == 2
    asked: list[CollateralRequest] = []

    class Asked:
        def collateral(self, request: CollateralRequest) -> Collateral:
            asked.append(request)
            return Collateral()

    for each in (tcb, other):
        ca = SmallCa(Product.TURIN, tcb=each)
        verify_with(Evidence(ca.report()), [Asked()], anchors=anchors(ca), at=NOON)
    assert [request.tcb(Product.TURIN) for request in asked] == [tcb, other]
    assert all(Part.LEAF in request.missing for request in asked)


def test_an_extension_that_is_missing_is_not_passed_over() -> None:
    """Elsewhere, levels that the certificate does not name were skipped."""
    for suffix in ("3.1", "3.2", "3.3", "3.8", "4"):
        leaf = CA.leaf.without_extension(f"{AMD_ARC}.{suffix}")
        found = verify(CA.report(), collateral(leaf=leaf), anchors=anchors(), at=NOON)
        assert codes(found) == ["leaf-profile"]


def test_the_chip_of_a_vcek_is_compared() -> None:
    """Elsewhere, the chip ID was never compared: every leaf was taken for an intermediate."""
    other = SmallCa(chip_id=bytes(range(2, 66)))
    found = verify(CA.report(), collateral(leaf=other.leaf), anchors=anchors(), at=NOON)
    assert codes(found) == ["chip-id-mismatch"]


def test_the_key_that_the_report_names_decides_which_leaf_is_used() -> None:
    """Elsewhere, a VLEK that was present was used for a report that a VCEK had signed."""
    vlek = SmallCa(kind=VekKind.VLEK)
    only = replace(collateral(), vcek=None, vlek=vlek.leaf.make())
    assert codes(verify(CA.report(), only, anchors=anchors(), at=NOON)) == ["vcek-missing"]


def test_a_short_write_is_not_a_success(tmp_path: Path) -> None:
    """Elsewhere, a write that wrote only some of the bytes was taken for a success."""
    source, target = tmp_path / "table.bin", tmp_path / "ark.der"
    ark = CA.ark.make()
    assert len(ark) > 1000
    source.write_bytes(entry(ARK_GUID.bytes, 48, len(ark)) + bytes(ENTRY_SIZE) + ark)
    target.write_bytes(b"as it was")
    table = [sys.executable, "-m", "snpcerts", "table"]
    argv: list[str | Path] = [*table, "extract", source, tmp_path]
    full = subprocess.run(
        argv,
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert full.returncode == 1, full.stderr
    assert "cannot write" in full.stderr
    assert target.read_bytes() == b"as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"table.bin", "ark.der"}


def test_an_authority_of_1024_bits_signs_nothing() -> None:
    weak = CA.ask.but(key=rsa_key("weak", 1024))
    leaf = CA.leaf.but(signer=rsa_key("weak", 1024))
    parts = replace(collateral(leaf=leaf), ask=weak.make())
    assert codes(verify(CA.report(), parts, anchors=anchors(), at=NOON)) == ["ask-key"]


def test_mixed_endian_guids_are_read_with_a_warning() -> None:
    """Both byte orders occur. Elsewhere, certificates in the other order were not found."""
    leaf = CA.leaf.make()
    table = entry(VCEK_GUID.bytes_le, 48, len(leaf)) + bytes(ENTRY_SIZE) + leaf
    evidence = evidence_with(table)
    assert evidence.collateral.vcek == leaf
    assert len(evidence.warnings) == 1
    assert CertTable.decode(table).get(VCEK_GUID) == leaf
