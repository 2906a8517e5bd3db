# SPDX-License-Identifier: Apache-2.0
"""Measures our verifier against the raw P-384 verification of its library, and against peers.

The evidence comes from an emulated host. The verifier remembers the chain after the first report,
so the chain is known in most figures. Two more figures are for a new VCEK below a known ASK and ARK
(a new chip, or a new TCB), and for a chain of three new certificates. Even for that chain, the
ARK's signature on itself is not checked again, because the anchor was made from that ARK earlier,
as every relying party's anchor is.

Figures for one core are processor time, which other work on the machine hardly changes. Figures
for all cores are elapsed time, and need a quiet machine.

Peers verify the same evidence in loops in their own languages, in one thread each. "whole" is the
function that verifies a report with its certificates. Neither peer remembers anything between
calls, but go-sev-guest gets an ASK and ARK that are parsed already. "known VCEK" is the function
that checks a report's signature, with a VCEK that is parsed already and is not verified.
go-sev-guest compares certificates' names, so this emulated chain has AMD's names. A peer is left
out if its toolchain is not installed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from tests.clients.amd_names import renamed_chain

import snpcerts.verify.judging as verify_module
from bench.compare import Skip, compare
from bench.peers import GO_SEV_GUEST, VIRTEE_SEV
from snpcerts.abi.guest_message import REPORT_AT, MessageType, ReportRequest, SecretsPage
from snpcerts.abi.kvm import PageType
from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.message_seal import header_for, open_sealed, seal
from snpcerts.endorsement.anchors import Anchor, anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.judge import JudgeMemory
from snpcerts.verify.bulk import verify_many
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy
from snpcerts.verify.verdict import Status

COUNT = 300
BULK = (200, 2000)
KNOWN, NEW_VCEK = "verify()", "verify(), VCEK never seen"


def main() -> None:
    """Print microseconds per report, the ratio to the raw rate, and reports per second."""
    with tempfile.TemporaryDirectory() as folder:
        home = PlatformHome(Path(folder, "platform"))
        home.prepare(Product.MILAN)
        chain = renamed_chain(Path(folder, "platform"))
        firmware = home.firmware()
        report = _report(firmware)
        Path(folder, "evidence").write_bytes(report.raw + chain.table)
        Path(folder, "bundle").write_bytes(chain.bundle)
        _measure(Path(folder), firmware, report, chain.table)


def _measure(folder: Path, firmware: Firmware, report: Report, table: bytes) -> None:
    evidence = Evidence.from_parts(report.raw, table)
    ark = evidence.collateral.ark
    assert ark is not None
    anchors = (anchor_from_certificate(load_certificate(ark, "ARK")),)
    now = datetime.now(UTC)
    signature = encode_dss_signature(*report.signature)
    key = firmware.signing_public_key()
    assert key is not None
    policy = Policy(
        report_data=b"\0",
        measurements=(report.fields.measurement,),
        vmpls=(report.fields.vmpl,),
        host_data=report.fields.host_data,
    )

    def raw() -> None:
        key.verify(signature, report.signed_bytes, ec.ECDSA(SHA384()))

    def ours(asked: Policy | None) -> Callable[[], None]:
        def judge() -> None:
            verdict = verify(evidence, policy=asked, anchors=anchors, at=now)
            assert verdict.status is Status.VERIFIED, verdict.reasons

        return judge

    subjects = {
        "raw P-384 verify": _timed(raw),
        KNOWN: _timed(ours(None)),
        "verify(), four more demands": _timed(ours(policy)),
        NEW_VCEK: _timed(_forgetting(ours(None), authorities=False)),
        "verify(), nothing seen before": _timed(_forgetting(ours(None), authorities=True)),
    } | _peers(folder)
    medians = compare("verifying one report", subjects, unit="us", scale=1e6)
    for name, median in medians.items():
        print(f"  {name:<34} {1 / median:>10.0f} per second")
    print("how many times as fast ours is, per core")
    for name, median in medians.items():
        for mode, mine in (("known VCEK", KNOWN), ("whole", NEW_VCEK)):
            if name.endswith(mode):
                print(f"  {mine:<26} against {name:<34} {median / medians[mine]:.2f}")
    _bulk(evidence, anchors, now)


def _peers(folder: Path) -> dict[str, Callable[[], float]]:
    evidence = folder / "evidence"
    subjects: dict[str, Callable[[], float]] = {}
    for peer, files in ((GO_SEV_GUEST, [evidence, folder / "bundle"]), (VIRTEE_SEV, [evidence])):
        try:
            for mode, label in (("known", "known VCEK"), ("whole", "whole")):
                subjects[f"{peer.name}, {label}"] = peer.timer(mode, files, COUNT)
        except Skip as reason:
            print(f"{peer.name}: left out, {reason}")
    return subjects


def _timed(subject: Callable[[], None]) -> Callable[[], float]:
    def seconds() -> float:
        start = time.process_time()
        for _ in range(COUNT):
            subject()
        return (time.process_time() - start) / COUNT

    return seconds


def _forgetting(subject: Callable[[], None], *, authorities: bool) -> Callable[[], None]:
    def judge() -> None:
        fresh = JudgeMemory()
        if not authorities:
            fresh._authorities = verify_module.MEMORY._authorities
        verify_module.MEMORY = fresh
        subject()

    return judge


def _bulk(evidence: Evidence, anchors: tuple[Anchor, ...], now: datetime) -> None:
    """Measure with one process and with one for each core, including the time to start them."""
    cores = len(os.sched_getaffinity(0))

    def many(count: int, jobs: int) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            verdicts = verify_many([evidence] * count, anchors=anchors, at=now, jobs=jobs)
            assert sum(verdict.status is Status.VERIFIED for verdict in verdicts) == count
            return (time.perf_counter() - start) / count

        return seconds

    for count in BULK:
        subjects = {f"{jobs} processes": many(count, jobs) for jobs in dict.fromkeys((1, cores))}
        title = f"{count} reports, including the start of processes"
        compare(title, subjects, unit="us", scale=1e6, rounds=3)


def _report(firmware: Firmware) -> Report:
    """Return a report that is requested from the firmware directly, without a guest."""
    context = firmware.launch_start(0x30000)
    page = firmware.launch_update(context, 0x1000, PageType.SECRETS, bytes(4096))
    assert page is not None
    firmware.launch_finish(context)
    key = SecretsPage.unpack(page).vmpck0
    message = seal(key, header_for(MessageType.REPORT_REQ, 1, 0), ReportRequest().pack())
    _, answer = open_sealed(key, firmware.guest_request(context, message))
    return Report.unpack(answer[REPORT_AT:])
