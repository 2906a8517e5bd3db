# SPDX-License-Identifier: Apache-2.0
"""The fleet's page shows the true state, and nothing that a host announces becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.mirror.charts import MOST_SQUARES, hosts_per_square
from snpcerts.mirror.fleet_page import HostFilter, fleet_page, host_filter
from snpcerts.mirror.fleet_view import (
    SILENT_AFTER,
    Fleet,
    FleetHost,
    HostState,
    NextState,
    Queue,
    changes,
    span,
    tcb_spread,
)
from snpcerts.mirror.host_page import host_page
from snpcerts.mirror.markup import element
from snpcerts.mirror.page import page_headers
from snpcerts.verify.bulletins import bulletin_data

from .sample_fleet import (
    MILAN,
    NEW,
    NOW,
    OLD,
    announcement,
    file_report,
    fleet,
    history,
    host,
    roll,
)

VOID = {"meta", "link", "input", "br"}
EMPTY = file_report("empty")


class Reader(HTMLParser):
    """Reads a page as a browser would: its elements, its text, and whether tags match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.lines: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.lines).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.lines.append(data)


@pytest.mark.parametrize(
    ("announced", "seen", "state"),
    [
        (announcement("a"), 0, HostState.IN_STEP),
        (announcement("a", OLD, NEW), 0, HostState.BEHIND),
        (announcement("a", OLD, None, file_report("outdated")), 0, HostState.BEHIND),
        (announcement("a", OLD, None, file_report("locked")), 0, HostState.BEHIND),
        (announcement("a", OLD, NEW, file_report("empty")), 0, HostState.EMPTY),
        (announcement("a", OLD, None, file_report(), file_report("missing")), 0, HostState.EMPTY),
        (announcement("a", OLD, None, EMPTY, file_report("wrong")), 0, HostState.WRONG),
        (announcement("a", OLD, None, file_report("foreign")), 0, HostState.WRONG),
        (announcement("a", OLD, None, file_report("unreadable")), 0, HostState.WRONG),
        (announcement("a"), 1, HostState.SILENT),
        (announcement("a", OLD, None, file_report("wrong")), 1, HostState.WRONG),
        (announcement("a", OLD, None, file_report("empty")), 1, HostState.SILENT),
        (replace(announcement("a"), files=()), 0, HostState.EMPTY),
    ],
)  # fmt: skip
def test_the_worst_about_a_host_is_its_state(announced, seen, state) -> None:  # type: ignore[no-untyped-def]
    found = host(announced, seen=SILENT_AFTER + timedelta(seconds=1) if seen else timedelta(0))
    assert found.state(NOW) is state
    assert bool(found.reason(NOW)) == (state is not HostState.IN_STEP)


def test_a_host_below_the_target_of_a_roll_is_behind_though_its_firmware_is_not_loaded() -> None:
    found = host(announcement("a", OLD), target=NEW)
    assert found.state(NOW) is HostState.BEHIND
    assert "not loaded" in found.reason(NOW)
    assert host(announcement("a", NEW), target=OLD).state(NOW) is HostState.IN_STEP


def test_the_page_is_well_formed_and_says_how_many_hosts_are_in_each_state() -> None:
    shown = fleet()
    page = Reader(fleet_page(shown))
    counts = shown.by_state()
    assert f"{counts[HostState.IN_STEP]} of 300 hosts are in step" in page.text
    for state in HostState:
        assert re.search(rf"\b{counts[state]} \S {state.value}", page.text), state


def test_the_page_loads_nothing_from_elsewhere_and_its_policy_names_what_is_in_it() -> None:
    page = fleet_page(fleet())
    policy = page_headers()["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for tag, attributes in Reader(page).tags:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action"):
            link = attributes.get(name) or ""
            assert not link.startswith(("http", "//", "javascript")), (tag, link)


HOSTILE = "</td><script>alert(1)</script>\"'&\u202e\x1b[2J"


@pytest.mark.parametrize("hostile", [HOSTILE, "a" * 5000])
def test_what_a_host_says_of_itself_stays_text(hostile: str) -> None:
    announced = replace(
        announcement("a", OLD, None, file_report("wrong", hostile)),
        host=hostile,
        agent=hostile,
        firmware=hostile,
    )
    bad = host(announced)
    shown = replace(fleet(), hosts=(bad,), queue=Queue({}, 10.0, problem=hostile, upstream=hostile))
    past = replace(history(), host=bad)
    past = replace(past, seen=(*past.seen, replace(past.seen[0], announcement=announced)))
    for page in (fleet_page(shown, HostFilter(text=hostile[:9])), host_page(past)):
        read = Reader(page)
        scripts = [tag for tag, _ in read.tags if tag == "script"]
        assert len(scripts) == 1
        assert not {"\u202e", "\x1b"} & set(page)
    assert hostile[:6] in Reader(host_page(past)).text


@given(st.text(), st.text())
def test_any_text_reads_back_from_an_element(text: str, attribute: str) -> None:
    page = Reader(str(element("p", text, title=attribute)))
    assert [tag for tag, _ in page.tags] == ["p"]
    if text.isprintable():
        assert "".join(page.lines) == text
    if attribute.isprintable():
        assert page.tags[0][1]["title"] == attribute


def test_the_table_lists_the_worst_first_and_only_what_was_asked_for() -> None:
    page = Reader(fleet_page(fleet()))
    hosts = [a["href"] for tag, a in page.tags if tag == "a" and "hosts/" in (a.get("href") or "")]
    assert "milan-40" in page.text
    assert len(hosts) > 100
    only = Reader(fleet_page(fleet(), host_filter({"state": "wrong"})))
    assert "milan-40" in only.text
    assert "milan-41" not in only.text.partition("Search")[2]
    found = Reader(fleet_page(fleet(), host_filter({"q": "GENOA-117"})))
    assert "1 host" in found.text.partition("Search")[2]


def test_every_host_is_on_one_of_the_pages_of_the_table() -> None:
    shown, seen = fleet(), set()
    for page in (1, 2, 3, 99):
        text = fleet_page(shown, host_filter({"page": str(page)})).partition('id="hosts"')[2]
        seen |= set(re.findall(r'href="hosts/\w+/([0-9a-f]+)"', text))
    assert seen == {each.announcement.hwid.hex() for each in shown.hosts}


@pytest.mark.parametrize(
    "query", [{"page": "-1"}, {"page": "²"}, {"page": "9" * 30}, {"state": "<"}]
)
def test_a_query_that_makes_no_sense_is_ignored(query: dict[str, str]) -> None:
    assert host_filter(query) == HostFilter()


def test_tcbs_are_judged_by_the_confirmed_floors_of_their_processor() -> None:
    hosts = [
        host(announcement("old", OLD)),
        host(announcement("new", NEW)),
        host(announcement("unnamed", OLD, cpuid=None)),
        # No known processor of the product Genoa has a Milan's CPUID.
        host(announcement("mixed", OLD, cpuid=MILAN)),
    ]
    groups = {(each.processors, each.tcb): each for each in tcb_spread(hosts, bulletin_data())}
    assert not groups[("genoa",), NEW].below
    below = {each.component: each for each in groups[("genoa",), OLD].below}
    assert below["microcode"].floor == 86
    assert below["snp"].bulletin in ("AMD-SB-3020", "AMD-SB-3023")
    assert groups[(), OLD].hosts == 2
    assert not groups[(), OLD].has_floor
    assert (
        "microcode 84 is below 86" in Reader(fleet_page(replace(fleet(), hosts=tuple(hosts)))).text
    )


@pytest.mark.parametrize(
    ("ready", "says"),
    [
        (NextState.STORED, "1 host can commit"),
        (NextState.QUEUED, "1 host should not commit yet"),
        (NextState.NOT_FOUND, "1 host must not commit yet"),
    ],
)
def test_the_next_safe_action_depends_on_the_next_certificate(ready: NextState, says: str) -> None:
    one = host(announcement("a", OLD, NEW), next_state=ready)
    assert says in Reader(fleet_page(replace(fleet(), hosts=(one,)))).text


def test_a_fleet_without_hosts_says_what_to_do() -> None:
    empty = Fleet(NOW, (), Queue({}, 10.0))
    text = Reader(fleet_page(empty)).text
    assert "No host has announced itself yet" in text
    assert "[mirror]" in text


def test_a_roll_is_drawn_at_its_start_in_its_middle_and_at_its_end() -> None:
    for rolling in (roll(0), replace(roll(0), points=()), roll(150), roll(240)):
        Reader(fleet_page(replace(fleet(), rolls=(rolling,))))
    done = roll(240)
    last = replace(done.points[-1], committed=240, in_step=240)
    done = replace(done, points=(*done.points, last))
    assert "done in 40 min" in Reader(fleet_page(replace(fleet(), rolls=(done,)))).text


def test_a_host_page_tells_its_history_newest_first() -> None:
    text = Reader(host_page(history())).text
    assert text.index("reported TCB: snp 26 → 27") < text.index("current TCB: snp 26 → 27")
    assert "wrong, was right" in text


def test_the_same_announcement_again_is_no_change() -> None:
    announced = announcement("a")
    assert list(changes(announced, replace(announced, guests=7))) == []


def test_ten_thousand_hosts_are_one_page_of_bounded_size() -> None:
    hosts = tuple(host(announcement(f"h{n}")) for n in range(100))
    many: tuple[FleetHost, ...] = hosts * 100
    page = fleet_page(replace(fleet(), hosts=many))
    assert len(page) < 150_000
    assert -(-10_000 // hosts_per_square(10_000)) <= MOST_SQUARES


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 min"),
        (90, "1 min 30 s"),
        (1080, "18 min"),
        (9960, "2 h 46 min"),
        (-5, "0 s"),
        (200000, "2 d 7 h"),
    ],
)
def test_a_span_is_given_in_at_most_two_units(seconds: float, text: str) -> None:
    assert span(timedelta(seconds=seconds)) == text


def test_products_without_a_processor_are_named() -> None:
    one = host(announcement("m", OLD, product=Product.MILAN, cpuid=None))
    assert "Milan, processor not announced" in fleet_page(replace(fleet(), hosts=(one,)))
