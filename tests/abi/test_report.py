# SPDX-License-Identifier: Apache-2.0
"""Reads genuine and malformed reports from bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product, hwid_of_chip_id, product_of_cpuid, product_of_name
from snpcerts.abi.report import REPORT_SIZE, Report, ReportLayout, SigningKey, malformations
from snpcerts.abi.tcb import TcbLayout, TcbVersion
from snpcerts.errors import FormatError, SnpCertsError


def sound(version: int = 3, **fields: object) -> bytes:
    values: dict[str, object] = {
        "version": version,
        "policy": 0x30000,
        "signature_algo": 1,
        "cpuid_family": 0x19 if version > 2 else 0,
        "cpuid_model": 1 if version > 2 else 0,
    }
    return ReportLayout(**(values | fields)).pack()  # type: ignore[arg-type]


def patched(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + bytes([value]) + data[offset + 1 :]


@pytest.mark.parametrize(
    ("name", "version", "product", "key", "tcb"),
    [
        ("milan", 2, None, SigningKey.VCEK, "0300000000000873"),
        ("turin-v5", 5, Product.TURIN, SigningKey.VCEK, "0101010400000051"),
        ("vlek-milan-v3", 3, Product.MILAN, SigningKey.VLEK, "04000000000018d9"),
    ],
)
def test_genuine_reports_are_read(
    vectors: Path, name: str, version: int, product: Product | None, key: SigningKey, tcb: str
) -> None:
    report = Report.unpack((vectors / name / "report.bin").read_bytes())
    assert malformations(report) == ()
    assert report.fields.version == version
    assert report.product is product
    assert report.signing_key is key
    assert report.fields.reported_tcb.hex() == tcb


def test_signature_integers_are_little_endian(vectors: Path) -> None:
    report = Report.unpack((vectors / "milan" / "report.bin").read_bytes())
    r, _ = report.signature
    assert f"{r:096x}".startswith("72827fd0029b56ee")


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_sound_reports_have_no_malformation(version: int) -> None:
    assert malformations(Report.unpack(sound(version))) == ()


@pytest.mark.parametrize(
    ("data", "field", "offset"),
    [
        (sound(1), "VERSION", 0),
        (sound(6), "VERSION", 0),
        (sound(policy=0x10000), "POLICY", 8),
        (sound(policy=0x30000 | 1 << 26), "POLICY", 8),
        (sound(signature_algo=0), "SIGNATURE_ALGO", 0x34),
        (sound(flags=1 << 5), "FLAGS", 0x48),
        (sound(flags=2 << 2), "SIGNING_KEY", 0x48),
        (patched(sound(), 0x4D, 1), "RESERVED", 0x4D),
        (patched(sound(2), 0x188, 1), "RESERVED", 0x188),
        (patched(sound(), 0x18B, 1), "RESERVED", 0x18B),
        (patched(sound(), 0x1EB, 1), "RESERVED", 0x1EB),
        (patched(sound(), 0x1EF, 1), "RESERVED", 0x1EF),
        (patched(sound(3), 0x1F8, 1), "RESERVED", 0x1F8),
        (patched(sound(5), 0x208, 1), "RESERVED", 0x208),
        (patched(sound(), 0x2A0 + 48, 1), "RESERVED", 0x2D0),
        (patched(sound(), 0x2E8 + 48, 1), "RESERVED", 0x318),
        (patched(sound(), 0x49F, 1), "RESERVED", 0x49F),
    ],
)
def test_malformed_fields_are_named_with_their_offset(data: bytes, field: str, offset: int) -> None:
    found = malformations(Report.unpack(data))
    assert [(each.field, each.offset) for each in found] == [(field, offset)]


def test_mitigation_vectors_belong_to_version_5() -> None:
    assert malformations(Report.unpack(sound(5, launch_mit_vector=0x3F))) == ()


def test_bit_6_of_platform_info_is_accepted() -> None:
    """A genuine Turin report has this bit set, although the documents we know call it reserved."""
    assert malformations(Report.unpack(sound(5, platform_info=0x65))) == ()


@pytest.mark.parametrize("size", [0, 1, REPORT_SIZE - 1, REPORT_SIZE + 1, 4000])
def test_another_size_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match="expected 1184 bytes"):
        Report.unpack(bytes(size))


@given(seed=st.randoms(use_true_random=False))
def test_random_reports_are_judged_without_surprise(seed: object) -> None:
    data = seed.randbytes(REPORT_SIZE)  # type: ignore[attr-defined]
    report = Report.unpack(data)
    assert report.raw == data
    assert all(0 <= each.offset < REPORT_SIZE for each in malformations(report))


components = st.integers(0, 255)


@given(
    tcb=st.builds(
        TcbVersion,
        bootloader=components,
        tee=components,
        snp=components,
        microcode=components,
        fmc=st.none() | components,
    )
)
def test_tcb_round_trip(tcb: TcbVersion) -> None:
    assert TcbVersion.unpack(tcb.pack(), tcb.layout) == tcb
    assert tcb.covers(tcb)


@given(data=st.binary(max_size=10), layout=st.sampled_from(TcbLayout))
def test_tcb_of_garbage_is_our_error_or_exact(data: bytes, layout: TcbLayout) -> None:
    try:
        tcb = TcbVersion.unpack(data, layout)
    except SnpCertsError:
        return
    assert tcb.pack() == data


def test_tcb_bytes_of_both_layouts() -> None:
    milan = TcbVersion.unpack(bytes.fromhex("04000000000018db"), TcbLayout.MILAN)
    assert milan == TcbVersion(bootloader=4, tee=0, snp=24, microcode=219)
    turin = TcbVersion.unpack(bytes.fromhex("0101010400000051"), TcbLayout.TURIN)
    assert turin == TcbVersion(fmc=1, bootloader=1, tee=1, snp=4, microcode=81)


def test_milan_bytes_are_not_a_turin_tcb() -> None:
    with pytest.raises(FormatError, match="another product"):
        TcbVersion.unpack(bytes.fromhex("04000000000018db"), TcbLayout.TURIN)


def test_tcbs_compare_component_by_component() -> None:
    low = TcbVersion(bootloader=3, tee=0, snp=8, microcode=115)
    mixed = TcbVersion(bootloader=2, tee=0, snp=9, microcode=200)
    assert not mixed.covers(low)
    assert not low.covers(mixed)
    with pytest.raises(FormatError, match="different layouts"):
        low.covers(TcbVersion(fmc=1, bootloader=3, tee=0, snp=8, microcode=115))


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x01, Product.MILAN),
        (0x19, 0x11, Product.GENOA),
        (0x19, 0xA0, Product.GENOA),
        (0x19, 0xAF, Product.GENOA),
        (0x1A, 0x02, Product.TURIN),
        (0x1A, 0x11, Product.TURIN),
        (0x19, 0x20, None),
        (0x1A, 0x4F, None),
        (0x1A, 0x50, Product.VENICE),
        (0x1A, 0xC7, Product.VENICE),
        (0x1A, 0xB0, None),
        (0x17, 0x01, None),
    ],
)
def test_products_by_cpuid(family: int, model: int, product: Product | None) -> None:
    assert product_of_cpuid(family, model) is product


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("Milan-B0", Product.MILAN),
        ("Genoa", Product.GENOA),
        ("Turin-B1", Product.TURIN),
        ("Rome", None),
        ("", None),
        ("milan", None),
    ],
)
def test_products_by_name(name: str, product: Product | None) -> None:
    assert product_of_name(name) is product


def test_turin_chip_ids_have_eight_significant_bytes() -> None:
    chip_id = bytes(range(1, 65))
    assert hwid_of_chip_id(chip_id, Product.TURIN) == chip_id[:8]
    assert hwid_of_chip_id(chip_id, Product.MILAN) == chip_id
