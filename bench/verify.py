# SPDX-License-Identifier: Apache-2.0
"""Verifying reports: ours against the raw P-384 verify rate of the same library.

The evidence is of an emulated Milan host. The chain is known after the first
report, as it is to anyone who verifies more than one.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from bench.compare import compare
from snpcerts.abi.guest_message import REPORT_AT, MessageType, ReportRequest, SecretsPage
from snpcerts.abi.kvm import PageType
from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.demo.host import EmulatedHost
from snpcerts.emulator.firmware import Firmware
from snpcerts.emulator.message_seal import header_for, open_sealed, seal
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.verdict import Status
from snpcerts.verify.verify import verify

COUNT = 300


def main() -> None:
    """Print microseconds per report, and the ratio."""
    host = EmulatedHost.create(Product.MILAN)
    report = _report(host.firmware)
    collateral = Collateral.from_table(host.table())
    anchors = (host.anchor,)
    now = datetime.now(UTC)
    signature = encode_dss_signature(*report.signature)
    key = host.firmware.signing_public_key()

    def raw() -> float:
        start = time.perf_counter()
        for _ in range(COUNT):
            key.verify(signature, report.signed_bytes, ec.ECDSA(SHA384()))
        return (time.perf_counter() - start) / COUNT

    def ours() -> float:
        start = time.perf_counter()
        for _ in range(COUNT):
            verdict = verify(report.raw, collateral, anchors=anchors, at=now)
            assert verdict.status is Status.VERIFIED, verdict.reasons
        return (time.perf_counter() - start) / COUNT

    medians = compare(
        "verifying one report, chain known",
        {"raw P-384 verify": raw, "verify()": ours},
        unit="us",
        scale=1e6,
    )
    for name, median in medians.items():
        print(f"  {name:<34} {1 / median:>10.0f} per second")


def _report(firmware: Firmware) -> Report:
    """One report, asked for without any guest in between."""
    context = firmware.launch_start(0x30000)
    page = firmware.launch_update(context, 0x1000, PageType.SECRETS, bytes(4096))
    assert page is not None
    firmware.launch_finish(context)
    key = SecretsPage.unpack(page).vmpck0
    message = seal(key, header_for(MessageType.REPORT_REQ, 1, 0), ReportRequest().pack())
    _, answer = open_sealed(key, firmware.guest_request(context, message))
    return Report.unpack(answer[REPORT_AT:])
