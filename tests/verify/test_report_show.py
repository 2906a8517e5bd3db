# SPDX-License-Identifier: Apache-2.0
"""``snpcerts report show`` prints every field and explains its bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.cli.main import main
from snpcerts.endorsement.vek import VekKind
from snpcerts.verify.explain import explain, explained_json
from tests.documented_json import documented
from tests.endorsement.small_ca import SmallCa
from tests.verify.test_evidence import bound, full_table, hcl

CA = SmallCa()


def said(report: bytes) -> dict[str, tuple[str, str]]:
    return {f"{x.section} {x.name}": (x.value, x.meaning) for x in explain(Report.unpack(report))}


@pytest.mark.parametrize(
    ("report", "name", "value", "meaning"),
    [
        (CA.report(), "report product", "Milan", "CPUID"),
        (CA.report(2), "report product", "unknown", "Milan or Genoa"),
        (SmallCa(Product.TURIN).report(2), "report product", "Turin", "short chip ID"),
        (CA.report(2, chip_id=bytes(64)), "report product", "unknown", "hidden"),
        (CA.report(cpuid_model=0x50), "report product", "unknown", "no known product"),
        (CA.report(), "report signed by", "VCEK", "this chip"),
        (SmallCa(kind=VekKind.VLEK).report(), "report signed by", "VLEK", "provider"),
        (CA.report(flags=7 << 2), "report signed by", "NONE", "no key signed"),
        (
            CA.report(flags=7 << 2 | 2),
            "report MASK_CHIP_KEY",
            "1",
            "the host masks the chip's key, and no VLEK signed in its place",
        ),
        (
            SmallCa(kind=VekKind.VLEK).report(flags=1 << 2 | 2),
            "report MASK_CHIP_KEY",
            "1",
            "the host masks the chip's key, but this firmware still signs with the VLEK",
        ),
        (CA.report(flags=5 << 2), "report signed by", "reserved (5)", ""),
        (CA.report(policy=0x30000 | 1 << 19), "guest policy debug", "1", "read and write"),
        (CA.report(policy=0x30133), "guest policy minimum ABI", "1.51", ""),
        (CA.report(platform_info=1 << 5), "platform alias_check_complete", "1", "aliases"),
        (CA.report(platform_info=0x65), "platform other bits", "0x40", "no public name"),
        (CA.report(vmpl=0xFFFFFFFF), "guest VMPL", "4294967295", "by the host"),
        (CA.report(), "TCB reported", "bootloader=4 tee=0 snp=24 microcode=219", "derived"),
        (CA.report(cpuid_model=0x50), "TCB reported", "04000000000018db", ""),
        (CA.report(current_minor=55, current_major=1), "platform firmware", "1.55.0", "now"),
        (CA.report(flags=1 << 31), "wrong FLAGS", "at 0x48", "reserved"),
    ],
)
def test_fields_are_explained_in_words(report: bytes, name: str, value: str, meaning: str) -> None:
    found = said(report)[name]
    assert found[0] == value
    assert meaning in found[1]


def test_json_has_the_bits_by_name() -> None:
    shown = explained_json(Report.unpack(CA.report(policy=0x30000 | 1 << 19, platform_info=4)))
    assert shown["guest_policy"]["debug"] is True
    assert shown["guest_policy"]["smt"] is True
    assert shown["platform_info"]["ecc_en"] is True
    assert shown["tcb"]["reported"]["components"]["microcode"] == 219
    assert explained_json(Report.unpack(bytes(1184)))["malformed"]


def test_a_version_that_no_product_has_is_explained() -> None:
    report = (1).to_bytes(4, "little") + CA.report(2)[4:]
    product, how = said(report)["report product"]
    assert product == "unknown"
    assert "no known product" in how


def test_the_command_shows_reports_tables_and_hcl_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(CA.report() + full_table())
    assert main(["report", "show", str(path)]) == 0
    out = capsys.readouterr().out
    for words in ("measurement", "debugging is not allowed", "certificate table", "vcek"):
        assert words in out
    assert main(["report", "show", str(path), "--json"]) == 0
    assert [
        each["name"] for each in documented("report show", capsys.readouterr().out)["table"]
    ] == [
        "vcek",
        "ask",
        "ark",
    ]
    path.write_bytes(hcl(bound()))
    assert main(["report", "show", str(path)]) == 0
    assert "REPORT_DATA is its digest" in capsys.readouterr().out
    path.write_bytes(hcl(CA.report()))
    assert main(["report", "show", str(path)]) == 0
    assert "REPORT_DATA is not its digest" in capsys.readouterr().out
    path.write_bytes(bytes(100))
    assert main(["report", "show", str(path)]) == 2


def test_genuine_reports_are_explained(vectors: Path) -> None:
    for name, version in (("milan", "2"), ("turin-v5", "5"), ("vlek-milan-v3", "3")):
        found = said((vectors / name / "report.bin").read_bytes())
        assert found["report version"][0] == version
        assert not any(key.startswith("wrong") for key in found)
