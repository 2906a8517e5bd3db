# SPDX-License-Identifier: Apache-2.0
"""Writes the page of one host, as HTML."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from snpcerts.mirror import charts
from snpcerts.mirror.fleet_view import (
    FleetHost,
    HostHistory,
    HostState,
    NextState,
    changes,
    floors_of,
    processors_of,
    shortfalls,
    span,
)
from snpcerts.mirror.markup import Child, Markup, element
from snpcerts.mirror.page import badge, definitions, document, in_time, processor_text, section
from snpcerts.verify.bulletins import BulletinData, bulletin_data


def host_page(history: HostHistory, bulletins: BulletinData | None = None) -> str:
    """Return the page of one host as HTML."""
    known = bulletins or bulletin_data()
    host, now = history.host, history.now
    announcement = host.announcement
    state = host.state(now)
    main = element(
        "main",
        element("h1", announcement.host, " ", badge(state)),
        element("p", host.reason(now), class_="soft") if host.reason(now) else None,
        element("div", _facts(host, now), _tcbs(host, known), class_="two"),
        _host_files(host, now),
        _host_history(history),
    )
    return document(f"{announcement.host}: {state.value}", now, main, None, home="../../")


def _facts(host: FleetHost, now: datetime) -> Markup:
    announcement = host.announcement
    ready = {
        NextState.NONE: "nothing newer is running or announced",
        NextState.STORED: "stored",
        NextState.QUEUED: "queued",
        NextState.NOT_FOUND: "not available from the key server",
    }
    pairs: list[tuple[str, Child]] = [
        ("processor", processor_text(announcement.product, processors_of(announcement))),
        ("chip ID", element("code", announcement.hwid.hex())),
        ("firmware", announcement.firmware or "?"),
        (
            "SNP",
            "initialised"
            if announcement.initialised
            else element("span", "not initialised", class_="wrong"),
        ),
        ("guests", f"{announcement.guests:,}"),
        ("VLEK", "loaded" if announcement.vlek_loaded else "none"),
        ("agent", announcement.agent or "?"),
        ("last seen", f"{span(now - host.seen_at)} ago"),
        ("first seen", f"{host.first_seen_at:%Y-%m-%d %H:%M} UTC"),
        ("next certificate", ready[host.next_state]),
    ]
    return section("Host", definitions(pairs))


def _tcbs(host: FleetHost, bulletins: BulletinData) -> Markup:
    announcement = host.announcement
    floors = floors_of(processors_of(announcement), bulletins)
    columns = [("reported", announcement.reported), ("current", announcement.current)]
    if announcement.committed is not None:
        columns.append(("committed", announcement.committed))
    if host.target is not None:
        columns.append(("roll", host.target))
    rows = []
    for name in announcement.reported.components():
        floor = floors.get(name)
        rows.append(
            element(
                "tr",
                element("th", name),
                (
                    element(
                        "td",
                        str(tcb.components().get(name, "")),
                        class_="number wrong"
                        if floor is not None and tcb.components().get(name, 0) < floor[0]
                        else "number",
                    )
                    for _, tcb in columns
                ),
                element(
                    "td", "" if floor is None else f"{floor[0]} ({floor[1]})", class_="number soft"
                ),
            )
        )
    head = element(
        "thead",
        element(
            "tr",
            element("th", ""),
            (element("th", name, class_="number") for name, _ in columns),
            element("th", "floor", class_="number"),
        ),
    )
    below = shortfalls(announcement.reported, processors_of(announcement), bulletins)
    return section(
        "TCB",
        element("table", head, element("tbody", rows)),
        element("p", "; ".join(map(str, below)), class_="wrong") if below else None,
    )


_FILE_STATES: Final = {
    "right": HostState.IN_STEP,
    "outdated": HostState.BEHIND,
    "locked": HostState.BEHIND,
    "empty": HostState.EMPTY,
    "missing": HostState.EMPTY,
}


def _host_files(host: FleetHost, now: datetime) -> Markup:
    rows = []
    for file in host.announcement.files:
        state = _FILE_STATES.get(file.state, HostState.WRONG)
        holds = file.kind.name if file.certificates else "the empty table"
        rows.append(
            element(
                "tr",
                element("td", element("code", file.path)),
                element("td", badge(state, file.state)),
                element("td", holds),
                element(
                    "td",
                    ""
                    if file.not_after is None
                    else (f"{file.not_after:%Y-%m-%d}, ", in_time(file.not_after, now)),
                ),
                element("td", file.reason),
            )
        )
    if not rows:
        return section("Certificate files", element("p", "none is configured", class_="soft"))
    head = element(
        "thead",
        element(
            "tr", (element("th", name) for name in ("file", "state", "holds", "valid until", "why"))
        ),
    )
    return section(
        "Certificate files", element("table", head, element("tbody", rows), class_="stack")
    )


def _host_history(history: HostHistory) -> Markup | None:
    if not history.seen:
        return None
    start = history.seen[0].at
    rows = []
    before = None
    for seen in history.seen:
        if before is None:
            said: Child = "oldest kept announcement"
        else:
            said = [element("div", each) for each in changes(before, seen.announcement)]
        rows.append(
            element(
                "tr",
                element("td", f"{seen.at:%Y-%m-%d %H:%M:%S}", class_="name"),
                element("td", badge(history.state_at(seen))),
                element("td", said),
            )
        )
        before = seen.announcement
    rows.reverse()
    head = element(
        "thead",
        element("tr", (element("th", name) for name in ("when (UTC)", "state", "what changed"))),
    )
    return section(
        "History",
        charts.history_strip(history),
        element(
            "div",
            element("span", f"{start:%Y-%m-%d %H:%M}"),
            element("span", "now"),
            class_="scale",
        ),
        element("br"),
        element("table", head, element("tbody", rows), class_="stack"),
        id_="history",
    )
