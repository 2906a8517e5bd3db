# SPDX-License-Identifier: Apache-2.0
"""Sample fleets for the tests of the fleet's page: they show every state and every panel."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from snpcerts.abi.product import Cpuid, Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.mirror.announcement import Announcement, FileReport
from snpcerts.mirror.fleet_view import (
    Expiring,
    Fleet,
    FleetHost,
    HostHistory,
    NextState,
    Queue,
    Roll,
    RollPoint,
    Seen,
)

NOW = datetime(2026, 11, 27, 14, 20, tzinfo=UTC)
FILE = "/var/lib/snpcerts/certs.bin"
GENOA, MILAN, TURIN = Cpuid(0x19, 0x11, 1), Cpuid(0x19, 0x01, 1), Cpuid(0x1A, 0x02, 1)
OLD, NEW = TcbVersion(10, 0, 26, 84), TcbVersion(10, 0, 27, 86)
MILAN_TCB = TcbVersion(4, 0, 27, 222)
TURIN_TCB = TcbVersion(1, 1, 4, 81, 1)


def hwid_of(name: str, product: Product) -> bytes:
    """A chip ID that is computed from the name."""
    return hashlib.sha512(name.encode()).digest()[: product.hwid_size]


def file_report(state: str = "right", reason: str = "", *, certificates: bool = True) -> FileReport:
    expires = datetime(2033, 5, 2, tzinfo=UTC)
    return FileReport(
        FILE, VekKind.VCEK, state, certificates, expires if certificates else None, reason
    )


def announcement(
    name: str,
    reported: TcbVersion = NEW,
    current: TcbVersion | None = None,
    *files: FileReport,
    product: Product = Product.GENOA,
    cpuid: Cpuid | None = GENOA,
) -> Announcement:
    return Announcement(
        host=name,
        product=product,
        hwid=hwid_of(name, product),
        current=current or reported,
        reported=reported,
        cpuid=cpuid,
        agent="snpcerts/0.1.0",
        firmware="1.55.39",
        guests=3,
        files=files or (file_report(),),
    )


def host(
    announced: Announcement, *, seen: timedelta = timedelta(seconds=12), **other: object
) -> FleetHost:
    return FleetHost(announced, NOW - seen, NOW - timedelta(days=40), **other)  # type: ignore[arg-type]


def roll(done: int, hosts: int = 240) -> Roll:
    """A roll that gets a certificate every ten seconds, and whose hosts commit in batches."""
    start = NOW - timedelta(seconds=10 * done)
    points = [RollPoint(start, 0, 0, 0)]
    for stored in range(4, done + 1, 4):
        at = start + timedelta(seconds=10 * stored)
        committed = max(stored - 24, 0) // 20 * 20
        points.append(RollPoint(at, stored, committed, max(committed - 4, 0)))
    return Roll(
        3,
        Product.GENOA,
        NEW,
        start,
        hosts,
        tuple(points),
        NOW + timedelta(seconds=10 * (hosts - done)),
    )


def fleet(done: int = 150, hosts: int = 240) -> Fleet:
    """A fleet in the middle of a roll, with a few things wrong."""
    found = []
    rolling = roll(done, hosts)
    latest = rolling.points[-1]
    for number in range(hosts):
        name = f"genoa-{number:03}.rack{number // 20 + 1}"
        if number < latest.in_step:
            found.append(host(announcement(name), target=NEW, next_state=NextState.STORED))
        else:
            ready = NextState.STORED if number < latest.stored else NextState.QUEUED
            announced = announcement(name, OLD, NEW)
            found.append(host(announced, target=NEW, next_state=ready))
    found += [
        host(announcement(f"milan-{n:02}", MILAN_TCB, product=Product.MILAN, cpuid=MILAN))
        for n in range(40)
    ]
    found += [
        host(announcement(f"turin-{n:02}", TURIN_TCB, product=Product.TURIN, cpuid=TURIN))
        for n in range(16)
    ]
    old = replace(MILAN_TCB, microcode=213, snp=24)
    wrong = file_report("wrong", "the firmware reports microcode 213, the certificate is for 211")
    empty = file_report(
        "empty", "empty, but should hold the certificates of the VCEK", certificates=False
    )
    found += [
        host(announcement("milan-40", old, None, wrong, product=Product.MILAN, cpuid=MILAN)),
        host(announcement("milan-41", old, None, empty, product=Product.MILAN, cpuid=MILAN)),
        host(announcement("milan-42", old, None, empty, product=Product.MILAN, cpuid=None)),
        host(
            announcement("milan-43", MILAN_TCB, product=Product.MILAN, cpuid=MILAN),
            seen=timedelta(hours=3),
        ),
    ]
    waiting = hosts - done
    return Fleet(
        now=NOW,
        hosts=tuple(found),
        queue=Queue(
            {"guest": 0, "roll": waiting, "refresh": 2},
            gap=10.0,
            ends_at=NOW + timedelta(seconds=10 * waiting),
            fetched=349,
            refused=1,
            upstream="https://kdsintf.amd.com",
        ),
        rolls=(rolling,),
        stored={"VCEKs": 436, "chains": 3, "revocation lists": 3},
        lists=(
            Expiring("revocation list of Milan's VCEKs", datetime(2026, 12, 9, tzinfo=UTC)),
            Expiring("revocation list of Genoa's VCEKs", datetime(2027, 3, 20, tzinfo=UTC)),
        ),
        instances=2,
        version="0.1.0",
    )


def history() -> HostHistory:
    """The history of a host that went through an update."""
    name = "genoa-007.rack1"
    empty = file_report(
        "empty", "empty, but should hold the certificates of the VCEK", certificates=False
    )
    wrong = file_report("wrong", "another program changed the firmware")
    past = (
        (30, announcement(name, OLD)),
        (9, announcement(name, OLD, None, wrong)),
        (8, announcement(name, OLD, None, empty)),
        (7.5, announcement(name, OLD)),
        (3, announcement(name, OLD, NEW)),
        (1, announcement(name)),
    )
    seen = tuple(Seen(NOW - timedelta(days=days), announced) for days, announced in past)
    return HostHistory(NOW, host(announcement(name), target=NEW, next_state=NextState.STORED), seen)
