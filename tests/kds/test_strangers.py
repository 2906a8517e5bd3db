# SPDX-License-Identifier: Apache-2.0
"""Strangers' reports cost a bounded number of requests and cache files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from snpcerts.kds.failed_requests import LIMIT
from snpcerts.kds.verifier_sources import KdsCertificates
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.sources import verify_with
from snpcerts.verify.verdict import Status
from tests.endorsement.small_ca import SmallCa
from tests.kds.conftest import MILAN_TCB, Host


def files(cache: Path) -> int:
    return sum(path.is_file() for path in cache.rglob("*"))


def test_bogus_reports_cost_a_bounded_number_of_requests_and_no_file_each(host: Host) -> None:
    """Earlier versions made a request and left a cache file for every such report."""
    chip = host.resource().hwid

    def judged(report: bytes) -> Status:
        source = KdsCertificates(host.source())
        return verify_with(Evidence(report), [source], at=datetime.now(UTC)).status

    levels = SmallCa(chip_id=chip, tcb=MILAN_TCB)
    # The key server has a VCEK for this chip and TCB, but another key signed the report.
    assert judged(levels.report()) is Status.REFUSED
    assert not host.kept().exists()
    before = files(host.cache)
    statuses = [
        judged(SmallCa(chip_id=number.to_bytes(64, "little")).report())
        for number in range(1, LIMIT + 4)
    ]
    assert statuses == [Status.REFUSED] * (LIMIT - 1) + [Status.UNDECIDED] * 4
    asked = sum(count for path, count in host.server.requests.items() if "cert_chain" not in path)
    assert asked == LIMIT
    assert files(host.cache) == before
    assert list((host.cache / "vcek").iterdir()) == []
