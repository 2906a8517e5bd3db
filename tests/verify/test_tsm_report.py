# SPDX-License-Identifier: Apache-2.0
"""A tsm-report that we write can be read back and has the form that others publish."""

from __future__ import annotations

import json

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.verify.evidence import Evidence
from snpcerts.verify.tsm_report import PROVIDER, TsmForm, tsm_report
from tests.endorsement.small_ca import SmallCa
from tests.verify.test_documented_reasons import sound_table

REPORT = SmallCa().report()


@pytest.mark.parametrize("form", TsmForm)
@pytest.mark.parametrize("has_table", [True, False])
def test_evidence_reads_back_what_was_written(form: TsmForm, has_table: bool) -> None:
    table = sound_table() if has_table else b""
    read = Evidence.from_bytes(tsm_report(REPORT, table, form))
    assert read.report.raw == REPORT
    assert (b"" if read.table is None else read.table.encode()) == table


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_both_encodings_hold_the_same_bytes(report: bytes, table: bytes) -> None:
    found = json.loads(tsm_report(report, table, TsmForm.JSON))
    assert list(found) == ["auxblob", "outblob", "provider"]
    assert not any("=" in value or "+" in value or "/" in value for value in found.values())
    assert cbor2.loads(tsm_report(report, table, TsmForm.CBOR)) == {
        "auxblob": table,
        "outblob": report,
        "provider": PROVIDER,
    }
