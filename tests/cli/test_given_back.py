# SPDX-License-Identifier: Apache-2.0
"""Values that commands print about a report are valid arguments of other commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.cli.main import main
from tests.endorsement.small_ca import PINNED, TCBS, SmallCa

OFFLINE = 3  # exit code: the arguments are valid, but the cache lacks the certificate


Run = Callable[..., tuple[int, str]]  # the exit code and all that is printed


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def command(*argv: str) -> tuple[int, str]:
        code = main(list(argv))
        out, err = capsys.readouterr()
        return code, out + err

    return command


def printed(run: Run, product: Product) -> tuple[str, dict[str, object], str]:
    """Return what ``report show`` prints, as text and as JSON, and the report's chip ID."""
    Path("report.bin").write_bytes(SmallCa(product).report(3))
    code, text = run("report", "show", "report.bin")
    assert code == 0, text
    shown = json.loads(run("report", "show", "report.bin", "--json")[1])
    return text, shown, SmallCa(product).report_chip_id.hex()


def asked(run: Run, product: str, hwid: str, tcb: str) -> int:
    argv = ["kds", "fetch", "vcek", "--product", product, "--hwid", hwid, "--tcb", tcb]
    return run(*argv, "--offline", "--cache", "cache", "-o", "out")[0]


def spellings(tcb: TcbVersion) -> list[str]:
    components = tcb.components()
    short = {"bootloader": "bl", "microcode": "ucode"}
    return [
        str(tcb),
        json.dumps(components),
        json.dumps(components, indent=2),
        ",".join(f"{short.get(name, name)}={value}" for name, value in components.items()),
        ", ".join(f"{name}: {value}" for name, value in components.items()),
        tcb.pack().hex(),
        "0x" + tcb.pack().hex().upper(),
    ]


@pytest.mark.parametrize("product", PINNED)
def test_the_tcb_in_every_form(run: Run, product: Product) -> None:
    text, shown, chip = printed(run, product)
    assert str(TCBS[product]) in " ".join(text.split())
    assert TCBS[product].components() in [
        each["components"] for each in _dicts(shown) if "components" in each
    ]
    for spelling in spellings(TCBS[product]):
        assert asked(run, product.value, chip, spelling) == OFFLINE, spelling
        argv = ["verify", "report.bin", "--min-tcb", f"{product.keyword}:{spelling}"]
        code, said = run(*argv, "--offline", "--cache", "cache")
        assert code != 2, (spelling, said)


def _dicts(value: object) -> list[dict[str, object]]:
    if isinstance(value, dict):
        return [value, *(found for each in value.values() for found in _dicts(each))]
    if isinstance(value, list):
        return [found for each in value for found in _dicts(each)]
    return []


@pytest.mark.parametrize("product", PINNED)
def test_the_chip_id_in_every_form(run: Run, product: Product) -> None:
    _, _, chip = printed(run, product)
    tcb = str(TCBS[product])
    significant = chip[: 2 * product.hwid_size]
    for spelling in (chip, chip.upper(), f"0x{chip}", significant, f"0X{significant}"):
        assert asked(run, product.value, spelling, tcb) == OFFLINE, spelling


@pytest.mark.parametrize(
    "name",
    [
        *(form for each in PINNED for form in (each.value, each.name, each.keyword)),
        "Milan-B0",
        "Genoa-X",
        "genoa_x",
        "Bergamo",
        "siena",
        "SIENA",
        "Turin Dense",
        "turin-dense",
    ],
)
def test_every_name_of_a_product(run: Run, name: str) -> None:
    argv = ["kds", "fetch", "chain", "--product", name]
    code, said = run(*argv, "--offline", "--cache", "cache", "-o", "out")
    assert code == OFFLINE, said
    code, said = run("policy", "floors", "--bulletin", "AMD-SB-3023", "--product", name)
    assert code == 0, said


@pytest.mark.parametrize("product", PINNED)
def test_the_measurement_and_the_nonce(run: Run, product: Product) -> None:
    text, shown, _ = printed(run, product)
    hexadecimal = re.compile(r"[0-9a-f]{96}")
    measurement = shown["measurement"]
    assert isinstance(measurement, str)
    assert hexadecimal.fullmatch(measurement)
    assert measurement in "".join(text.split())
    for spelling in (measurement, measurement.upper(), f"0x{measurement}"):
        argv = ["verify", "report.bin", "--measurement", spelling, "--offline"]
        code, said = run(*argv, "--cache", "cache")
        assert code != 2, said
