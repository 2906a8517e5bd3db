# SPDX-License-Identifier: Apache-2.0
"""Writes dashboard.json beside this file: ``python packaging/monitoring/dashboard.py``.

Import the file into Grafana, or provision it; Grafana then asks for a Prometheus data source. A
panel is a title, a PromQL expression for each line, and a unit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).with_name("dashboard.json")
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH = 24  # columns in a row of Grafana's grid
# A colour for each state of a host and each stage of a roll, as on the mirror's page.
_COLOURS = {
    "in-step": "#15805c",
    "behind": "#b97800",
    "empty": "#4863c9",
    "wrong": "#c9283e",
    "silent": "#8a94a0",
    "all": "#8a94a0",
    "stored": "#8fb0ee",
    "committed": "#7fbfa8",
}


@dataclass(frozen=True)
class Panel:
    """One panel of the dashboard. ``lines`` are pairs of an expression and a legend."""

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    stacked: bool = False

    def to_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        stat = self.kind == "stat"
        options: dict[str, Any] = (
            {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"}
            if stat
            else {"legend": {"displayMode": "list", "placement": "bottom"}}
        )
        custom = {"stacking": {"mode": "normal" if self.stacked else "none"}}
        if self.stacked:
            custom |= {"fillOpacity": 60, "lineWidth": 0}  # type: ignore[dict-item]  # Grafana's
        return {
            "id": number,
            "title": self.title,
            "type": self.kind,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": 4 if stat else 8},
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": _SOURCE,
                    "expr": expression,
                    "legendFormat": legend,
                    "instant": stat,
                }
                for index, (expression, legend) in enumerate(self.lines)
            ],
            "options": options,
            "fieldConfig": {
                "defaults": {"unit": self.unit} | ({} if stat else {"custom": custom}),
                "overrides": [
                    {
                        "matcher": {"id": "byName", "options": name},
                        "properties": [
                            {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}
                        ],
                    }
                    for name, colour in _COLOURS.items()
                ],
            },
        }


def stat(title: str, expression: str, unit: str = "short", width: int = 4) -> Panel:
    """Return a panel that shows one number."""
    return Panel(title, ((expression, ""),), unit, "stat", width)


def rate(counter: str, by: str) -> str:
    """Return PromQL for the increase of a counter over five minutes, summed by a label."""
    return f"sum by ({by}) (increase({counter}[5m]))"


def quantile(histogram: str, q: float = 0.99) -> str:
    """Return PromQL for a quantile of a histogram over five minutes, over all hosts."""
    return f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket[5m])))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Fleet": (
        stat("Hosts in step", 'max(snpcerts_mirror_hosts{state="in-step"})'),
        stat("Hosts with wrong files", 'max(snpcerts_mirror_hosts{state="wrong"})'),
        stat("Below a bulletin's floor", "max(snpcerts_mirror_hosts_below_floor)"),
        stat("Waiting in the queue", "sum(max by (need) (snpcerts_mirror_queue))"),
        stat("Queue empty in", "max(snpcerts_mirror_queue_seconds)", "s"),
        stat("Throttle of the key server ends in", "max(snpcerts_mirror_hold_seconds)", "s"),
        Panel(
            "Hosts by state",
            (("max by (state) (snpcerts_mirror_hosts)", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Roll: hosts by progress",
            (("max by (roll, progress) (snpcerts_mirror_roll_hosts)", "{{roll}} {{progress}}"),),
        ),
    ),
    "Mirror": (
        Panel(
            "Queue by need",
            (("max by (need) (snpcerts_mirror_queue)", "{{need}}"),),
            stacked=True,
        ),
        Panel(
            "Requests to the key server in five minutes",
            ((rate("snpcerts_mirror_upstream_requests_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Answers in five minutes",
            ((rate("snpcerts_mirror_requests_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Time to an answer, 99th percentile",
            (
                (
                    "histogram_quantile(0.99, sum by (le, hit) "
                    "(rate(snpcerts_mirror_request_seconds_bucket[5m])))",
                    "hit {{hit}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Fetched and refused in the last hour",
            (
                ("max(snpcerts_mirror_fetched_last_hour)", "fetched"),
                ("max(snpcerts_mirror_refused_last_hour)", "refused"),
            ),
            width=8,
        ),
        Panel(
            "Stored",
            (("max by (kind) (snpcerts_mirror_certificates)", "{{kind}}"),),
            width=8,
        ),
        Panel(
            "First expiry",
            (("min by (kind) (snpcerts_mirror_expiry_timestamp_seconds) - time()", "{{kind}}"),),
            "s",
            width=8,
        ),
        Panel(
            "Age of revocation lists",
            (("max by (product, kind) (snpcerts_mirror_crl_age_seconds)", "{{product}} {{kind}}"),),
            "s",
            width=8,
        ),
        Panel(
            "Instances, and waiting callers",
            (
                ("max(snpcerts_mirror_instances)", "instances"),
                ("sum(snpcerts_mirror_waiting_callers)", "waiting callers"),
                ("min(snpcerts_mirror_database_up)", "database up"),
                ("max(snpcerts_mirror_upstream_failing)", "key server failing"),
                ("count by (version) (snpcerts_mirror_build_info)", "release {{version}}"),
            ),
            width=8,
        ),
        Panel(
            "Pace: seconds between two VCEKs",
            (("max(snpcerts_mirror_gap_seconds)", "gap"),),
            "s",
            width=8,
        ),
    ),
    "Hosts": (
        Panel("Files not in step", (("snpcerts_in_step == 0", "{{instance}} {{file}}"),)),
        Panel(
            "Time since the last check, and since all files were in step",
            (
                ("max(time() - snpcerts_last_look_timestamp_seconds)", "check"),
                ("max(time() - snpcerts_last_in_step_timestamp_seconds)", "in step"),
            ),
            "s",
        ),
        Panel(
            "Hosts by reported TCB",
            (
                (
                    'count_values by (component) ("value", snpcerts_tcb{tcb="reported"})',
                    "{{component}} {{value}}",
                ),
            ),
        ),
        Panel(
            "Commit pending, and target ready",
            (
                ("sum(snpcerts_commit_pending)", "commit pending"),
                ("sum(snpcerts_target_ready)", "target ready"),
                ("sum(increase(snpcerts_firmware_changes_total[5m]))", "firmware changes"),
                ("count by (version) (snpcerts_firmware_info)", "firmware {{version}}"),
            ),
        ),
        Panel(
            "Problems in the last hour",
            tuple(
                (f"sum(increase(snpcerts_{name}_total[1h]))", name.replace("_", " "))
                for name in (
                    "drift",
                    "garbage",
                    "lapsed",
                    "failures",
                    "signing_key_contradictions",
                )
            ),
        ),
        Panel(
            "Locks and firmware commands, 99th percentile",
            tuple(
                (quantile(f"snpcerts_{name}_seconds"), name.replace("_", " "))
                for name in ("lock_wait", "lock_held", "firmware_command")
            ),
            "s",
        ),
        Panel(
            "Certificates of hosts: first expiry",
            (
                ("min(snpcerts_certificate_expiry_timestamp_seconds) - time()", "certificate"),
                (
                    "min by (kind) (snpcerts_revocation_list_next_update_timestamp_seconds)"
                    " - time()",
                    "list of {{kind}}s",
                ),
            ),
            "s",
        ),
        Panel(
            "Requests by hosts in five minutes",
            (
                (rate("snpcerts_certificate_fetches_total", "result"), "fetch {{result}}"),
                ("sum by (result) (delta(snpcerts_kds_requests[5m]))", "request {{result}}"),
                (rate("snpcerts_announcements_total", "result"), "announcement {{result}}"),
            ),
        ),
        Panel(
            "How the signing key is known",
            (
                ("sum by (basis) (snpcerts_signing_key_basis)", "{{basis}}"),
                ("count(snpcerts_signing_key_proven_timestamp_seconds)", "with a proof"),
            ),
        ),
        Panel(
            "Mitigations that are not verified",
            (
                (
                    'sum by (bit) (snpcerts_mitigation{state="supported"})'
                    ' - sum by (bit) (snpcerts_mitigation{state="verified"})',
                    "bit {{bit}}",
                ),
            ),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the whole dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for panel in row:
            if x + panel.width > _WIDTH:
                x, y = 0, y + height
            made = panel.to_json(len(panels) + 1, x, y)
            panels.append(made)
            x += panel.width
            height = made["gridPos"]["h"]
        y += height
    return {
        "uid": "snpcerts",
        "title": "snpcerts",
        "tags": ["SEV-SNP"],
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                }
            ]
        },
        "panels": panels,
    }


def text() -> str:
    """Return the content of dashboard.json."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text(), encoding="utf-8")
