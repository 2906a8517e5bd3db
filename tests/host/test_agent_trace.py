# SPDX-License-Identifier: Apache-2.0
"""The timeline of ``host sync --watch --trace``, read back from the file."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.cli.main import main
from snpcerts.trace import Timeline, TimelineStream

from ..emulated import Emulated
from ..forked_commands import Commands
from ..keys import prepare_platform
from ..timelines import assert_perfetto_draws_all
from .site import LOWER, PATIENCE, Lines, Site, key_server, watching


@pytest.fixture
def host(tmp_path: Path, forked: Commands) -> Iterator[Site]:
    emulated = Emulated(tmp_path / "platform", tmp_path / "certs", forked)
    prepare_platform(emulated.directory, Product.MILAN)
    emulated.issue_certificates()
    with key_server(emulated) as url:
        yield Site(emulated, tmp_path, url)


def slices(events: list[dict[str, Any]], track: str) -> list[tuple[str, float, float]]:
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return [
        (e["name"], e["ts"], e["ts"] + e["dur"])
        for e in events
        if e["ph"] == "X" and rows[e["tid"]] == track
    ]


@pytest.mark.slow
def test_an_update_that_the_agent_repairs_is_in_the_timeline(host: Site) -> None:
    path = host.folder / "trace.json"
    with watching(host, "--trace", str(path)) as agent:
        lines = Lines(agent)
        lines.until("published")
        host.change_firmware_without_lock(LOWER)
        lines.until("drift")
        lines.until("published")
        agent.send_signal(signal.SIGTERM)
        lines.until("stopped")
        assert agent.wait(PATIENCE) == 0
    events: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    assert_perfetto_draws_all(events)
    asked = slices(events, "key server")
    assert len(asked) == 2
    held = [each for each in slices(events, "agent") if each[0] == "lock held"]
    assert held
    for _, start, end in asked:
        assert not any(a < end and start < b for _, a, b in held), "must fetch nothing under a lock"
    statuses = [each for each in slices(events, "firmware") if each[0] == "SNP_PLATFORM_STATUS"]
    changes = [each for each in slices(events, "agent") if each[0] == "change"]
    for _, start, end in changes:
        assert any(start <= a and b <= end for _, a, b in statuses), "its status decides"
    assert {"drift", "published", "stopped"} <= {e["name"] for e in events if e["ph"] == "i"}


def test_a_timeline_that_was_cut_off_lacks_only_its_end() -> None:
    parts: list[str] = []
    stream = TimelineStream(Timeline("x"), parts.append)
    track = stream.timeline.track("agent")
    stream.timeline.instant(track, "one", 1.0)
    stream.flush()
    stream.timeline.instant(track, "two", 2.0)
    stream.flush()
    cut_off = "".join(parts)
    events = json.loads(cut_off + "]")
    assert [each["name"] for each in events if each["ph"] == "i"] == ["one", "two"]
    stream.close()
    assert json.loads("".join(parts)) == events


def test_two_threads_write_one_timeline() -> None:
    """The announcer's thread also adds events; those added after close() are dropped."""
    parts: list[str] = []

    def write(text: str) -> None:
        if not parts:
            stream.timeline.instant(track, "two", 2.0)
            other.start()
            other.join(0.2)
        parts.append(text)

    stream = TimelineStream(Timeline("x"), write)
    other = threading.Thread(target=stream.flush)
    track = stream.timeline.track("agent")
    stream.timeline.instant(track, "one", 1.0)
    stream.flush()
    other.join()
    stream.close()
    stream.timeline.instant(track, "late", 3.0)
    stream.flush()
    events = json.loads("".join(parts))
    assert [each["name"] for each in events if each["ph"] == "i"] == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--trace", "x.json"), 2, "--trace can only be used with"),
        (("--watch", "--trace", "/nowhere/x.json"), 1, "cannot write /nowhere/x.json"),
    ],
)
def test_wrong_use_is_one_line(
    options: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["host", "sync", *options]) == code
    assert said in capsys.readouterr().err
