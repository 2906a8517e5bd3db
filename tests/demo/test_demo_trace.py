# SPDX-License-Identifier: Apache-2.0
"""The demo's timeline and picture, read back from the files that the command writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from snpcerts.cli.main import main

from ..timelines import assert_perfetto_draws_all

RUNS = ("1. Without the lock", "2. With the lock")
Events = list[dict[str, Any]]


UPDATES = 20


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Events, str]:
    """The timeline and the picture of a demo.

    On a busy machine, a short demo may show no VMM that uses certificates during an update; up to
    two longer demos then follow.
    """
    folder = tmp_path_factory.mktemp("demo")
    trace, picture = folder / "trace.json", folder / "picture.svg"
    for seconds in (1.5, 5, 15):
        options = ["--guests", "2", "--seconds", str(seconds), "--updates", str(UPDATES)]
        assert main(["demo", *options, "--trace", str(trace), "--picture", str(picture)]) == 0
        events: Events = json.loads(trace.read_text("utf-8"))["traceEvents"]
        if overlaps_in_use(events, RUNS[0]):
            break
    return events, picture.read_text("utf-8")


def test_perfetto_draws_all_of_it(written: tuple[Events, str]) -> None:
    assert_perfetto_draws_all(written[0])


def names_of(events: Events, what: str, key: str) -> dict[int, str]:
    return {each[key]: each["args"]["name"] for each in events if each["name"] == what}


def slices(events: Events, run: str, tracks: str, name: str) -> list[tuple[float, float]]:
    """Begin and end of each slice ``name`` on the tracks whose names begin with ``tracks``."""
    groups = names_of(events, "process_name", "pid")
    rows = names_of(events, "thread_name", "tid")
    return [
        (each["ts"], each["ts"] + each["dur"])
        for each in events
        if each["ph"] == "X"
        and each["name"] == name
        and groups[each["pid"]] == run
        and rows[each["tid"]].startswith(tracks)
    ]


def overlaps(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> int:
    return sum(a < d and c < b for a, b in some for c, d in others)


def overlaps_in_use(events: Events, run: str) -> int:
    """How often a VMM used certificates while the writer held the lock."""
    in_use = slices(events, run, "VMM", "certificates in use")
    assert in_use
    return overlaps(slices(events, run, "writer", "lock held"), in_use)


def test_no_hold_of_the_writer_overlaps_a_readers_and_without_the_lock_some_do(
    written: tuple[Events, str],
) -> None:
    events, _ = written
    for run in RUNS:
        writer = slices(events, run, "writer", "lock held")
        assert len(writer) == UPDATES
        held = slices(events, run, "VMM", "lock held")
        assert bool(held) is (run == RUNS[1])
        assert overlaps(writer, held) == 0
    assert overlaps_in_use(events, RUNS[1]) == 0
    assert overlaps_in_use(events, RUNS[0]) > 0


def test_every_participant_has_a_track(written: tuple[Events, str]) -> None:
    events, _ = written
    groups = names_of(events, "process_name", "pid")
    rows = {
        (groups[each["pid"]], each["args"]["name"])
        for each in events
        if each["name"] == "thread_name"
    }
    inside = {"guest 0 vCPU 0 |", "VMM 0 |", "guest 1 vCPU 0 |", "VMM 1 |", "writer", "firmware"}
    wanted = {(run, name) for run in RUNS for name in inside}
    assert rows == wanted | {("before the runs", "key server")}
    for run in RUNS:
        assert slices(events, run, "firmware", "SNP_GUEST_REQUEST")
        assert len(slices(events, run, "firmware", "SNP_CONFIG")) == UPDATES


def arrows(events: Events) -> Iterator[Events]:
    flows: dict[int, Events] = {}
    for each in events:
        if each.get("cat") == "flow":
            flows.setdefault(each["id"], []).append(each)
    yield from flows.values()


def test_an_arrow_leads_from_the_exit_to_the_table_and_to_the_signature(
    written: tuple[Events, str],
) -> None:
    events, _ = written
    rows = names_of(events, "thread_name", "tid")
    whole = 0
    for points in arrows(events):
        assert [each["ph"] for each in points] in (["s", "f"], ["s", "t", "f"])
        times = [each["ts"] for each in points]
        assert times == sorted(times)
        ways = [rows[each["tid"]].split()[0] for each in points]
        assert ways in (["guest", "VMM"], ["guest", "firmware"], ["guest", "VMM", "firmware"])
        whole += len(ways) == 3
    assert whole > 10


def test_the_picture_shows_both_runs_on_light_and_dark_pages(written: tuple[Events, str]) -> None:
    _, picture = written
    root = ElementTree.fromstring(picture)  # noqa: S314 (our own file)
    words = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
    for run in RUNS:
        assert any(each.startswith(f"{run[3:]}, the whole run: ") for each in words)
    assert words.count("signing key") == words.count("writer") == 2
    assert "prefers-color-scheme: dark" in picture


@pytest.mark.parametrize("option", ["--trace", "--picture"])
def test_a_file_that_cannot_be_written_is_an_error_before_the_runs(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", option, "/nowhere/file"]) == 1
    said = capsys.readouterr()
    assert "cannot write /nowhere/file" in said.err
    assert "Without the lock" not in said.out
