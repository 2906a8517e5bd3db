# SPDX-License-Identifier: Apache-2.0
"""Runs each row of the table in docs/relying-parties.md: three verifiers on the same evidence.

The expected verdicts are only in that table. snpguest and go-sev-guest judge as of now, because
they cannot be given a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snpcerts.endorsement.certificate import load_certificate

from .build import CLIENTS
from .verdicts import Verifiers, cases, genuine

PAGE = Path(__file__).parents[2] / "docs" / "relying-parties.md"
SECTION = (
    PAGE.read_text(encoding="utf-8")
    .partition("## Comparison with other verifiers")[2]
    .partition("##")[0]
)

# Patterns that a tool's output must match: they show that the page gives the verdict's true reason.
WORDS = {
    ("Milan, genuine, certificates in PEM", "go_sev_guest"): "malformed certificate",
    ("Turin, genuine", "go_sev_guest"): r"not an AMD KDS OID: 1\.3\.6\.1\.4\.1\.3704\.1\.3\.9",
    ("VLEK, genuine", "go_sev_guest"): "missing intermediate certificate authority certificate",
    ("a bit after R and S", "ours"): "^report-reserved$",
    ("a bit of the VCEK's signature or hwID", "certs"): "VCEK was not signed by the AMD ASK",
    ("a bit of the VCEK's signature or hwID", "ours"): "leaf-signature",
    ("a bit of the ASK's or ARK's signature", "ours"): "^(ask|ark)-signature$",
    ("a self-made chain with AMD's names", "ours"): "^ark-untrusted$",
    ("a self-made chain with AMD's names", "attestation"): "VEK signed the Attestation Report",
}


def table() -> dict[str, tuple[str, ...]]:
    """Return the verdicts in each row: ours, go-sev-guest's, and those of two snpguest commands."""
    rows: dict[str, tuple[str, ...]] = {}
    for line in SECTION.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("evidence", "---"):
            rows[cells[0]] = (cells[1], cells[2], *cells[3].split(", "))
    return rows


def test_the_page_names_the_versions_that_are_run() -> None:
    text = " ".join(SECTION.split())
    for name in ("go-sev-guest", "snpguest"):
        assert re.search(rf"{name} is [^.]*{re.escape(CLIENTS[name].version)}", text), name


def test_every_row_of_the_page_is_run_and_nothing_else(vectors: Path) -> None:
    assert list(table()) == list(cases(vectors))
    assert all(len(row) == 4 for row in table().values())


@pytest.mark.parametrize("row", list(table()))
def test_verdicts_are_those_of_the_page(
    row: str,
    vectors: Path,
    tmp_path: Path,
    snpguest: Path,
    go_sev_guest: Callable[[str], Path],
) -> None:
    vcek = genuine(vectors, "milan").certificates["vcek"]
    if datetime.now(UTC) > load_certificate(vcek, "VCEK").not_valid_after_utc:
        pytest.skip("the genuine VCEK has expired, and check judges as of now")
    tools = Verifiers(tmp_path, snpguest, go_sev_guest("check"))
    for piece in cases(vectors)[row]:
        found = {
            "ours": tools.ours(piece),
            "go_sev_guest": tools.go_sev_guest(piece),
            "certs": tools.certs(piece),
            "attestation": tools.attestation(piece),
        }
        assert tuple(word for word, _ in found.values()) == table()[row], (piece.name, found)
        for tool, (_, said) in found.items():
            assert re.search(WORDS.get((row, tool), ""), said), (piece.name, tool, said)
