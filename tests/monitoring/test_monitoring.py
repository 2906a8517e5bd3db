# SPDX-License-Identifier: Apache-2.0
"""Rules and dashboard name every exported metric and no other; each alert fires and ends."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snpcerts.host.metrics import Metrics
from snpcerts.mirror.announcement import Announcement
from snpcerts.mirror.api import Tokens

from ..mirror.running import RunningMirror
from ..mirror.sample_fleet import MILAN, MILAN_TCB, announcement

FOLDER = Path(__file__).parents[2] / "packaging" / "monitoring"
RULES = FOLDER / "rules.yaml"
RULES_TESTS = [FOLDER / name for name in ("rules_test.yaml", "rules_test_days.yaml")]
DASHBOARD = FOLDER / "dashboard.json"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
_FETCHED = Path(os.environ.get("SNPCERTS_MONITORING") or _CACHE / "snpcerts" / "monitoring")
PROMTOOL = _FETCHED / "promtool" / "usr" / "bin" / "promtool"
NAME = re.compile(r"\bsnpcerts_[a-z0-9_]+")
ALERT = re.compile(r"- alert: (\w+)")
AGENT, ADMIN = "a" * 32, "b" * 32


def families(exposition: str) -> set[str]:
    """The names of the exported metrics. A histogram counts once, without suffixes like _bucket."""
    found = set()
    for line in exposition.splitlines():
        match = re.fullmatch(r"# TYPE (snpcerts_\w+) (\w+)", line)
        if match and not match[1].endswith("_created"):
            found.add(match[1])
    return found


def named(text: str) -> set[str]:
    """The metrics that a file names. A histogram counts once, without suffixes like _bucket."""
    found = set()
    for name in NAME.findall(text):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        found.add(base)
    return found


@pytest.fixture
def of_host() -> set[str]:
    """The metrics of an agent."""
    from prometheus_client import generate_latest

    return families(generate_latest(Metrics().registry).decode())


@pytest.fixture
def of_mirror(start: Callable[..., RunningMirror]) -> set[str]:
    """The metrics of a mirror with one announced host."""
    mirror = start(tokens=Tokens((AGENT,), (ADMIN,)))
    sent: Announcement = announcement("m", MILAN_TCB, product=_milan(), cpuid=MILAN)
    answer = mirror.ask(
        f"api/v1/hosts/Milan/{sent.hwid.hex()}",
        method="PUT",
        body=json.dumps(sent.to_json()).encode(),
        headers={"Authorization": f"Bearer {AGENT}"},
    )
    assert answer.status == 200, answer.text
    return families(mirror.ask("metrics").text)


def _milan() -> Any:
    from snpcerts.abi.product import Product

    return Product.MILAN


def test_every_metric_that_is_named_is_exported_and_vice_versa(
    of_host: set[str], of_mirror: set[str]
) -> None:
    exported = of_host | of_mirror
    in_files = named(RULES.read_text()) | named(DASHBOARD.read_text())
    assert in_files - exported == set()
    assert exported - in_files == set()


def test_the_rules_tests_use_metrics_that_are_exported(
    of_host: set[str], of_mirror: set[str]
) -> None:
    for each in RULES_TESTS:
        assert named(each.read_text()) - of_host - of_mirror == set()


def test_the_dashboard_is_what_its_program_writes() -> None:
    spec = importlib.util.spec_from_file_location("dashboard", FOLDER / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = program  # its dataclasses look for it there
    try:
        spec.loader.exec_module(program)
    finally:
        del sys.modules["dashboard"]
    assert DASHBOARD.read_text(encoding="utf-8") == program.text()


def expressions(value: Any) -> Iterator[str]:
    """Every expression of the dashboard."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "expr":
                yield each
            yield from expressions(each)
    elif isinstance(value, list):
        for each in value:
            yield from expressions(each)


def test_no_two_panels_of_the_dashboard_overlap_or_share_a_number() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_alert_is_tested() -> None:
    texts = "".join(each.read_text() for each in RULES_TESTS)
    tested = set(re.findall(r"alertname: (\w+)", texts))
    assert set(ALERT.findall(RULES.read_text())) == tested


@pytest.fixture
def promtool() -> Path:
    if not PROMTOOL.exists():
        pytest.skip("no promtool: tests/monitoring/fetch.sh fetches it")
    return PROMTOOL


def test_promtool_accepts_the_rules(promtool: Path) -> None:
    run(promtool, "check", "rules", "rules.yaml")


def test_each_alert_fires_when_it_should_and_only_then(promtool: Path) -> None:
    run(promtool, "test", "rules", *(each.name for each in RULES_TESTS))


def test_promtool_can_read_every_expression_of_the_dashboard(
    promtool: Path, tmp_path: Path
) -> None:
    """The expressions are put into recording rules, because promtool reads rules only."""
    found = list(expressions(json.loads(DASHBOARD.read_text())))
    rules = [{"record": f"snpcerts:panel{n}", "expr": each} for n, each in enumerate(found)]
    path = tmp_path / "panels.yaml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    run(promtool, "check", "rules", str(path))


def run(promtool: Path, *argv: str) -> None:
    made = subprocess.run(
        [promtool, *argv], cwd=FOLDER, capture_output=True, text=True, timeout=240
    )
    assert made.returncode == 0, made.stdout + made.stderr
