# SPDX-License-Identifier: Apache-2.0
"""The page for relying parties lists every reason code, and its examples run."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snpcerts.cli.main import main
from snpcerts.endorsement.reason import ReasonCode
from snpcerts.verify.policy import Policy
from snpcerts.verify.policy_file import read_policy
from tests.endorsement.small_ca import CrlRecipe, SmallCa
from tests.verify.test_evidence import table

PAGE = Path(__file__).parents[2] / "docs" / "relying-parties.md"
TEXT = PAGE.read_text(encoding="utf-8")
CA = SmallCa()
FAR = datetime(2049, 1, 1, tzinfo=UTC)
NONCE = bytes.fromhex("0123456789abcdef")

# Valid whenever the examples run.
CHAIN = {
    name: recipe.but(not_after=FAR).make()
    for name, recipe in (("vcek", CA.leaf), ("ask", CA.ask), ("ark", CA.ark))
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


def sound_report() -> bytes:
    tcb = bytes((4, 0, 0, 0, 0, 0, 24, 219))
    return CA.report(
        report_data=NONCE.ljust(64, b"\0"),
        measurement=bytes(range(48)),
        platform_info=1 << 5,
        launch_tcb=tcb,
        committed_tcb=tcb,
        current_major=1,
        current_minor=55,
        current_build=29,
        committed_major=1,
        committed_minor=55,
        committed_build=29,
    )


def sound_table() -> bytes:
    from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID

    guids = {"vcek": VCEK_GUID, "ask": ASK_GUID, "ark": ARK_GUID}
    return table(*((guids[name], data) for name, data in CHAIN.items()))


def test_the_page_has_the_codes() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \| ([a-z-]+) \|$", TEXT, re.M)
    expected = [(code.value, code.description, code.next_step.value) for code in ReasonCode]
    assert rows == expected


def test_the_policy_example_can_be_read_and_the_page_names_all_other_fields() -> None:
    example, *others = blocks("toml")
    policy = read_policy(example)
    assert all(read_policy(other) != Policy() for other in others)
    assert policy.report_data == NONCE
    shown = {name for name in Policy.__slots__ if re.search(rf"^\[?{name}\b", example, re.M)}
    section = TEXT.partition("the example does not show are")[2].partition("##")[0]
    assert {*re.findall(r"`(\w+)`", section)} | shown == set(Policy.__slots__)


def test_the_examples_in_the_shell_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "report.bin": sound_report(),
        "table.bin": sound_table(),
        "evidence.bin": sound_report() + sound_table(),
        "policy.toml": blocks("toml")[0].partition("[minimum_launch_tcb")[0].encode(),
        "milan.crl": CrlRecipe(CA, next_update=FAR).make(),
        "root.der": CHAIN["ark"],
        "archive/x.bin": sound_report(),
        "archive/x.table": sound_table(),
    } | {f"amd/{name}.der": data for name, data in CHAIN.items()}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        _, *argv = shlex.split(line.partition(" > ")[0])
        trust = ["--anchor", "root.der"] if argv[0] == "verify" else []
        assert main([*argv, *trust]) == 0, (line, capsys.readouterr())
