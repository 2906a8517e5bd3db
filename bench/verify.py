# SPDX-License-Identifier: Apache-2.0
"""Verifying reports: ours against the raw P-384 verify rate of the same library, and a peer.

The evidence is of an emulated host. The chain is known after the first report,
as it is to anyone who verifies more than one; a second figure is for a chain never
seen before. go-sev-guest, which remembers no chain, verifies the same evidence with
the same root in a loop of its own language. It compares names, so this emulated
chain has AMD's; it is left out where Go is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from tests.clients.amd_names import renamed_chain

import snpcerts.verify.verify as verify_module
from bench.compare import Skip, compare
from snpcerts.abi.guest_message import REPORT_AT, MessageType, ReportRequest, SecretsPage
from snpcerts.abi.kvm import PageType
from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.emulator.firmware import Firmware
from snpcerts.emulator.home import PlatformHome
from snpcerts.emulator.message_seal import header_for, open_sealed, seal
from snpcerts.endorsement.anchors import Anchor, anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.verify.bulk import verify_many
from snpcerts.verify.endorsement_check import EndorsementMemory
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.policy import Policy
from snpcerts.verify.verdict import Status
from snpcerts.verify.verify import verify

COUNT = 300
BULK = 4000


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
        "verify()": _timed(ours(None)),
        "verify(), four demands more": _timed(ours(policy)),
        "verify(), chain never seen": _timed(_forgetting(ours(None))),
    }
    try:
        subjects["go-sev-guest"] = _go_sev_guest(folder)
    except Skip as reason:
        print(f"go-sev-guest: left out, {reason}")
    medians = compare("verifying one report, chain known", subjects, unit="us", scale=1e6)
    for name, median in medians.items():
        print(f"  {name:<34} {1 / median:>10.0f} per second")
    _bulk(evidence, anchors, now)


def _timed(subject: Callable[[], None]) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(COUNT):
            subject()
        return (time.perf_counter() - start) / COUNT

    return seconds


def _forgetting(subject: Callable[[], None]) -> Callable[[], None]:
    def judge() -> None:
        verify_module._memory = EndorsementMemory()
        subject()

    return judge


def _go_sev_guest(folder: Path) -> Callable[[], float]:
    """The peer in one thread; what it takes to start is not in it."""
    if shutil.which("go") is None:
        raise Skip("no go on this machine")
    program = folder / "go-sev-guest"
    source = Path(__file__).parent / "go_sev_guest"
    try:
        subprocess.run(
            ["go", "build", "-o", program, "."],
            cwd=source,
            check=True,
            capture_output=True,
            timeout=600,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise Skip(f"it cannot be built: {error}") from None

    def seconds() -> float:
        words = [program, folder / "evidence", folder / "bundle", str(COUNT)]
        ran = subprocess.run(
            words, capture_output=True, text=True, check=True, env=os.environ | {"GOMAXPROCS": "1"}
        )
        return float(ran.stdout)

    return seconds


def _bulk(evidence: Evidence, anchors: tuple[Anchor, ...], now: datetime) -> None:
    """All cores: what it takes to start the processes is in it."""
    cores = len(os.sched_getaffinity(0))
    print(f"{BULK} reports, processes and their start")
    for jobs in dict.fromkeys((1, cores)):
        start = time.perf_counter()
        many = (evidence for _ in range(BULK))
        verdicts = verify_many(many, anchors=anchors, at=now, jobs=jobs)
        verified = sum(verdict.status is Status.VERIFIED for verdict in verdicts)
        took = time.perf_counter() - start
        assert verified == BULK
        print(f"  {jobs} processes {'':<21} {BULK / took:>10.0f} per second")


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
