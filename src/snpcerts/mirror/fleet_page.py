# SPDX-License-Identifier: Apache-2.0
"""Writes the page of the whole fleet, as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from snpcerts.abi.tcb import TcbVersion
from snpcerts.mirror import charts
from snpcerts.mirror.fleet_view import (
    EXPIRES_SOON,
    Expiring,
    Fleet,
    FleetHost,
    HostState,
    NextState,
    Roll,
    TcbGroup,
    span,
    tcb_spread,
)
from snpcerts.mirror.markup import Child, Markup, element
from snpcerts.mirror.page import (
    MARKS,
    badge,
    definitions,
    document,
    in_time,
    processor_text,
    section,
)
from snpcerts.verify.bulletins import BulletinData, bulletin_data

_ROWS: Final = 100  # hosts listed on one page
_MOST_EXPIRING: Final = 8


@dataclass(frozen=True, slots=True)
class HostFilter:
    """Selects the hosts that the page's table lists. ``page`` counts from 1."""

    state: HostState | None = None
    text: str = ""
    page: int = 1

    def accepts(self, host: FleetHost, now: datetime) -> bool:
        """Return whether the table lists a host."""
        if self.state is not None and host.state(now) is not self.state:
            return False
        announcement = host.announcement
        return (
            self.text.lower()
            in f"{announcement.host} {announcement.hwid.hex()} {announcement.product.value}".lower()
        )

    def link(self, **changed: str | int) -> str:
        """Return the URL query for this filter with some parts changed."""
        values: dict[str, str | int] = {
            "state": "" if self.state is None else self.state.slug,
            "q": self.text,
            "page": 1,
        }
        values.update(changed)
        query = {name: values[name] for name in values if values[name] and values[name] != 1}
        return f"?{urlencode(query)}"


def host_filter(query: Mapping[str, str]) -> HostFilter:
    """Parse the filter in a URL's query. Ignore invalid parts."""
    state = next((each for each in HostState if each.slug == query.get("state")), None)
    page = query.get("page", "1")
    number = int(page) if page.isascii() and page.isdecimal() and len(page) < 6 else 1
    return HostFilter(state, query.get("q", "")[:100], max(number, 1))


def fleet_page(
    fleet: Fleet, chosen: HostFilter = HostFilter(), bulletins: BulletinData | None = None
) -> str:
    """Return the page of the whole fleet as HTML."""
    known = bulletins or bulletin_data()
    counts = fleet.by_state()
    total = len(fleet.hosts)
    if not total:
        headline = "No host has announced itself yet"
    elif counts[HostState.IN_STEP] == total:
        headline = f"All {total:,} hosts are in step" if total > 1 else "The one host is in step"
    else:
        headline = f"{counts[HostState.IN_STEP]:,} of {total:,} hosts are in step"
    main = element(
        "main",
        element("h1", headline),
        charts.state_bar(counts),
        _tiles(counts, chosen),
        element("br"),
        _advice(fleet, known),
        *(_roll(roll, fleet.now) for roll in fleet.rolls),
        element("div", _queue(fleet), _expiry(fleet), class_="two"),
        _spread(fleet, known),
        _hosts(fleet, chosen),
    )
    bad = total - counts[HostState.IN_STEP]
    title = f"{bad} not in step - fleet" if bad else "Fleet"
    return document(title, fleet.now, main, _footer(fleet, known), home="./")


def _footer(fleet: Fleet, bulletins: BulletinData) -> Markup:
    stored = ", ".join(f"{count:,} {kind}" for kind, count in fleet.stored.items()) or "nothing"
    several = "1 mirror instance" if fleet.instances == 1 else f"{fleet.instances} mirror instances"
    return element(
        "footer",
        (
            f"Stored: {stored}. {several} running snpcerts {fleet.version}. "
            f"The floors come from AMD's bulletins as of {bulletins.date}; only "
            "confirmed values count."
        ),
    )


def _tiles(counts: Mapping[HostState, int], chosen: HostFilter) -> Markup:
    tiles = []
    for state in reversed(HostState):
        count = counts.get(state, 0)
        on = chosen.state is state
        link = chosen.link(state="" if on else state.slug) + "#hosts"
        content = element(
            "a",
            element("b", f"{count:,}"),
            element("span", f"{MARKS[state]} {state.value}"),
            href=link,
            class_=f"{state.slug}{' chosen' if on else ''}",
        )
        tiles.append(element("li", content, class_="tile" if count else "tile none"))
    return element("ul", tiles, class_="tiles")


def _hosts_word(count: int) -> str:
    return f"{count:,} host" if count == 1 else f"{count:,} hosts"


def _advice(fleet: Fleet, bulletins: BulletinData) -> Markup:
    items = [
        element("li", element("span", MARKS[state], class_=f"badge {state.slug}"), *said)
        for state, said in _advised(fleet, bulletins)
    ]
    return section("What to do next", element("ul", items, class_="advice"))


def _advised(
    fleet: Fleet, bulletins: BulletinData
) -> Iterator[tuple[HostState, tuple[Child, ...]]]:
    """Yield what the operator should do next, the most urgent first."""
    now = fleet.now
    counts = fleet.by_state()
    one = {state: count == 1 for state, count in counts.items()}
    if counts[HostState.WRONG]:
        verb = "holds" if one[HostState.WRONG] else "hold"
        yield (
            HostState.WRONG,
            (
                f"{_hosts_word(counts[HostState.WRONG])} {verb} a file that does not match the "
                "firmware or cannot be read. Run ",
                element("code", "snpcerts host status"),
                " there, which says why.",
            ),
        )
    if counts[HostState.EMPTY]:
        verb = "gives" if one[HostState.EMPTY] else "give"
        yield (
            HostState.EMPTY,
            (
                f"{_hosts_word(counts[HostState.EMPTY])} {verb} guests no certificates. The agent "
                "fills the files as soon as the mirror has the certificates.",
            ),
        )
    if counts[HostState.SILENT]:
        verb = "has" if one[HostState.SILENT] else "have"
        yield (
            HostState.SILENT,
            (
                (
                    f"{_hosts_word(counts[HostState.SILENT])} {verb} not announced "
                    f"{'itself' if one[HostState.SILENT] else 'themselves'} for ten "
                    "minutes. Check that the agent is running and can reach the mirror."
                ),
            ),
        )
    yield from _advised_on_commits(fleet)
    if fleet.queue.problem:
        yield (
            HostState.BEHIND,
            (f"The last request to the key server failed: {fleet.queue.problem}",),
        )
    soon = [each for each in fleet.expiring() if each.at - now < EXPIRES_SOON]
    if soon:
        verb = "expires" if len(soon) == 1 else "expire"
        what = "certificate or list" if len(soon) == 1 else "certificates or lists"
        yield (
            HostState.BEHIND,
            (f"{len(soon):,} {what} {verb} within {EXPIRES_SOON.days} days.",),
        )
    below = sum(each.hosts for each in tcb_spread(fleet.hosts, bulletins) if each.below)
    if below:
        verb = "reports" if below == 1 else "report"
        yield (
            HostState.BEHIND,
            (
                (
                    f"{_hosts_word(below)} {verb} a TCB below a floor of AMD's bulletins. See the "
                    "table of TCBs."
                ),
            ),
        )
    stale = bulletins.age_problem(now.date())
    if stale is not None:
        yield HostState.BEHIND, (f"{stale[0].upper()}{stale[1:]}.",)
    if (
        fleet.hosts
        and all(state is HostState.IN_STEP for state in counts)
        and not soon
        and not below
    ):
        yield (
            HostState.IN_STEP,
            ("Nothing. Every host serves certificates that match its firmware.",),
        )
    if not fleet.hosts:
        yield (
            HostState.SILENT,
            (
                "Name this mirror in ",
                element("code", "[mirror]"),
                " of a host's configuration. The host's agent then announces the host here.",
            ),
        )


def _advised_on_commits(fleet: Fleet) -> Iterator[tuple[HostState, tuple[Child, ...]]]:
    pending = [
        each
        for each in fleet.hosts
        if each.commit_pending and each.state(fleet.now) is HostState.BEHIND
    ]
    ready = sum(each.next_state is NextState.STORED for each in pending)
    if ready:
        yield (
            HostState.BEHIND,
            (
                f"{_hosts_word(ready)} can commit: the next certificate is stored. Run ",
                element("code", "snpcerts host commit"),
                " there.",
            ),
        )
    queued = sum(each.next_state is NextState.QUEUED for each in pending)
    if queued:
        ends = fleet.queue.ends_at
        when = "" if ends is None else f"; the last certificate comes in {span(ends - fleet.now)}"
        yield (
            HostState.BEHIND,
            (
                (
                    f"{_hosts_word(queued)} should not commit yet: the next certificate is "
                    f"queued{when}. "
                ),
                element("code", "snpcerts host commit --wait-for-mirror"),
                " waits by itself.",
            ),
        )
    missing = sum(each.next_state is NextState.NOT_FOUND for each in pending)
    if missing:
        yield (
            HostState.WRONG,
            (
                (
                    f"{_hosts_word(missing)} must not commit yet: the key server does not "
                    "have the next certificate. The mirror will ask again."
                ),
            ),
        )


def _roll(roll: Roll, now: datetime) -> Markup:
    latest = roll.latest
    stored, committed, in_step = latest.stored, latest.committed, latest.in_step
    if roll.done:
        outlook = f"done in {span(latest.at - roll.started_at)}"
    elif stored < roll.hosts and roll.prefetched_at is not None and roll.prefetched_at > now:
        outlook = (
            f"all certificates will be stored in {span(roll.prefetched_at - now)}, at "
            f"{roll.prefetched_at:%H:%M} UTC"
        )
    elif stored < roll.hosts:
        outlook = f"{roll.hosts - stored:,} certificates are not stored yet"
    else:
        outlook = f"all certificates are stored; {_hosts_word(roll.hosts - in_step)} to go"
    end = charts.roll_end(roll, now)
    legend = [
        element("li", element("span", f"{text} {count:,}"), class_=class_)
        for text, count, class_ in (
            ("certificate stored", stored, "stored"),
            ("committed", committed, "committed"),
            ("in step", in_step, "in-step"),
        )
    ]
    return section(
        f"Roll {roll.number}: {roll.product.value} to {roll.tcb}",
        element(
            "p",
            element("span", f"{in_step:,} of {roll.hosts:,}", class_="big"),
            element("span", f" hosts in step; {outlook}", class_="soft"),
        ),
        element(
            "div",
            element("span", _hosts_word(roll.hosts), class_="top"),
            charts.roll_chart(roll, now),
            class_="chart",
        ),
        element(
            "div",
            element("span", f"{roll.started_at:%m-%d %H:%M}"),
            element("span", f"{roll.started_at + (end - roll.started_at) / 2:%H:%M}"),
            element("span", f"{end:%m-%d %H:%M}"),
            class_="scale",
        ),
        element("ul", legend, class_="legend"),
    )


def _queue(fleet: Fleet) -> Markup:
    queue, now = fleet.queue, fleet.now
    if queue.length:
        big = f"{queue.length:,} waiting"
        if queue.ends_at is not None:
            end = f"empty in {span(queue.ends_at - now)}, at {queue.ends_at:%H:%M} UTC"
        else:
            end = "empty after the key server's next answers"
    else:
        big, end = "empty", "no certificate is waiting to be fetched"
    pairs: list[tuple[str, Child]] = []
    if queue.length:
        waiting = (f"{count:,} {name}" for name, count in queue.waiting.items() if count)
        pairs.append(("waiting", ", ".join(waiting)))
    pairs.append(("pace", f"one request every {queue.gap:g} s"))
    pairs.append(("last hour", f"{queue.fetched:,} fetched, {queue.refused:,} refused"))
    if queue.hold_until is not None and queue.hold_until > now:
        held = f"no requests for another {span(queue.hold_until - now)}"
        pairs.append(("held", element("span", held, class_="wrong")))
    if queue.upstream:
        pairs.append(("key server", queue.upstream))
    return section(
        "Queue",
        element("p", element("span", big, class_="big"), " ", element("span", end, class_="soft")),
        definitions(pairs),
    )


def _expiry(fleet: Fleet) -> Markup:
    rows = [
        element(
            "tr",
            element("td", _of_what(found)),
            element("td", f"{found[0].at:%Y-%m-%d}", class_="number"),
            element("td", in_time(found[0].at, fleet.now), class_="number"),
        )
        for found in _by_day(fleet.expiring())
    ]
    if not rows:
        return section("What expires", element("p", "No certificate is stored yet.", class_="soft"))
    more = len(rows) - _MOST_EXPIRING
    return section(
        "What expires first",
        element("table", element("tbody", rows[:_MOST_EXPIRING])),
        element("p", f"and {more:,} more", class_="soft") if more > 0 else None,
    )


def _by_day(found: Sequence[Expiring]) -> list[list[Expiring]]:
    """Combine the hosts' certificates that expire on the same day, and keep the order."""
    groups: dict[object, list[Expiring]] = {}
    for each in found:
        key = (each.what, each.at) if each.host is None else (each.what, each.at.date())
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _of_what(found: Sequence[Expiring]) -> Child:
    first = found[0]
    if first.host is None:
        return first.what
    others = f" and {_hosts_word(len(found) - 1)} more" if len(found) > 1 else ""
    return (f"{first.what} of ", _host_link(first.host), others)


def _spread(fleet: Fleet, bulletins: BulletinData) -> Markup | None:
    groups = tcb_spread(fleet.hosts, bulletins)
    if not groups:
        return None
    rows = []
    for group in groups:
        class_, verdict = _verdict(group)
        bar = charts.share_bar(group.hosts, len(fleet.hosts), class_)
        rows.append(
            element(
                "tr",
                element("td", processor_text(group.product, group.processors), class_="name"),
                element("td", _tcb_text(group.tcb)),
                element("td", _hosts_word(group.hosts), bar),
                element("td", element("span", verdict, class_=class_)),
            )
        )
    head = element(
        "thead",
        element(
            "tr",
            (
                element("th", each)
                for each in ("processor", "reported TCB", "hosts", "newest bulletins")
            ),
        ),
    )
    return section(
        "TCBs, compared with the floors of AMD's bulletins",
        element("table", head, element("tbody", rows), class_="stack spread"),
    )


def _tcb_text(tcb: TcbVersion) -> Markup:
    parts = (f"{name} {value}" for name, value in tcb.components().items())
    return element("code", ((element("span", part), " ") for part in parts), class_="tcb")


def _verdict(group: TcbGroup) -> tuple[str, str]:
    if group.below:
        return "wrong", "; ".join(map(str, group.below))
    if not group.processors:
        return "silent", "unknown, because floors depend on the processor, which is not known"
    if not group.has_floor:
        return "silent", "no confirmed floor is known"
    return "in-step", "meets every confirmed floor"


def _host_link(host: FleetHost) -> Markup:
    announcement = host.announcement
    return element(
        "a", announcement.host, href=f"hosts/{announcement.product.value}/{announcement.hwid.hex()}"
    )


def _hosts(fleet: Fleet, chosen: HostFilter) -> Markup | None:
    if not fleet.hosts:
        return None
    now = fleet.now
    order = list(HostState)
    found = sorted(
        (each for each in fleet.hosts if chosen.accepts(each, now)),
        key=lambda each: (order.index(each.state(now)), each.announcement.host),
    )
    pages = -(-len(found) // _ROWS) or 1
    page = min(chosen.page, pages)
    shown = found[(page - 1) * _ROWS : page * _ROWS]
    each = charts.hosts_per_square(len(fleet.hosts))
    squares = (
        charts.state_squares(fleet.by_state()),
        element("p", f"one square is {_hosts_word(each)}", class_="soft") if each > 1 else None,
    )
    return section(
        "Hosts",
        squares if len(fleet.hosts) > 1 else None,
        _search(chosen, len(found)),
        element(
            "table",
            _HOSTS_HEAD,
            element("tbody", (_host_row(each, now) for each in shown)),
            class_="stack",
        ),
        _pages(chosen, page, pages),
        id_="hosts",
    )


_HOSTS_HEAD: Final = element(
    "thead",
    element(
        "tr", (element("th", name) for name in ("host", "state", "reported TCB", "why", "seen"))
    ),
)


def _search(chosen: HostFilter, count: int) -> Markup:
    of_state = "" if chosen.state is None else f" {chosen.state.value}"
    return element(
        "form",
        element(
            "input",
            type="search",
            name="q",
            value=chosen.text,
            placeholder="name or chip ID",
            aria_label="name or chip ID",
        ),
        element("input", type="hidden", name="state", value=chosen.state.slug)
        if chosen.state
        else None,
        element("button", "Search"),
        element("span", f"{_hosts_word(count)}{of_state}", class_="soft"),
        element("a", "show all", href="./#hosts") if chosen.state or chosen.text else None,
        action="./#hosts",
    )


def _pages(chosen: HostFilter, page: int, pages: int) -> Markup | None:
    if pages == 1:
        return None
    return element(
        "div",
        element("a", "previous", href=chosen.link(page=page - 1) + "#hosts") if page > 1 else None,
        element("span", f"page {page} of {pages}", class_="soft"),
        element("a", "next", href=chosen.link(page=page + 1) + "#hosts") if page < pages else None,
        class_="pages",
    )


def _host_row(host: FleetHost, now: datetime) -> Markup:
    announcement = host.announcement
    return element(
        "tr",
        element(
            "td",
            _host_link(host),
            element("br"),
            element("span", announcement.product.value, class_="soft"),
            class_="name",
        ),
        element("td", badge(host.state(now))),
        element("td", _tcb_text(announcement.reported)),
        element("td", host.reason(now)),
        element("td", f"{span(now - host.seen_at)} ago", class_="soft", data_label="seen"),
    )
