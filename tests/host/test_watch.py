# SPDX-License-Identifier: Apache-2.0
"""What the watch reports to logs, metrics and the service manager."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest

from snpcerts.abi.psp import SnpConfig
from snpcerts.errors import RefusedError
from snpcerts.host.event import Event, EventKind
from snpcerts.host.log import json_log, text_log, without_repeats
from snpcerts.host.metrics import Metrics
from snpcerts.host.notify import ServiceManager
from snpcerts.host.plan import carry_out, set_config
from snpcerts.host.watch import Signals, watch

from .rig import Rig


def test_a_warning_is_repeated_only_after_another_one(rig: Rig) -> None:
    said: list[str] = []
    listen = without_repeats(lambda event: said.append(event.message))
    failed = Event(EventKind.FAILED, "no room", "a")
    for event in (failed, failed, Event(EventKind.FAILED, "no room", "b"), failed):
        listen(event)
    assert said == ["no room", "no room"]
    listen(Event(EventKind.PUBLISHED, "well again", "a"))
    listen(failed)
    assert said[-2:] == ["well again", "no room"]


def test_a_mirror_that_fails_again_is_reported_again() -> None:
    """Other warnings do not count as news about the mirror."""
    said: list[str] = []
    listen = without_repeats(lambda event: said.append(event.message))
    failed = Event(EventKind.NOT_ANNOUNCED, "no mirror")
    for event in (failed, Event(EventKind.FAILED, "no room"), failed):
        listen(event)
    assert said == ["no mirror", "no room"]
    for event in (Event(EventKind.ANNOUNCED, "announced"), failed):
        listen(event)
    assert said[2:] == ["announced", "no mirror"]


def test_a_file_that_is_wrong_again_is_reported_again() -> None:
    """A file is right again after it was emptied, so the drift that follows must be reported."""
    said: list[str] = []
    listen = without_repeats(lambda event: said.append(event.message))
    drift = Event(EventKind.DRIFT, "wrong", "a")
    for event in (drift, drift, Event(EventKind.EMPTIED, "empty", "a"), drift):
        listen(event)
    assert said == ["wrong", "empty", "wrong"]


def test_logs_carry_the_figures() -> None:
    lines: list[str] = []
    figures = {"lock_wait_ms": 1.25, "lock_held_ms": 2.0, "firmware_ms": 0.5}
    event = Event(EventKind.DRIFT, "x: does not match", "x", figures)
    text_log(lines.append)(event)
    json_log(lines.append)(event)
    assert "DRIFT" in lines[0]
    assert "lock held 2.0 ms" in lines[0]
    said = json.loads(lines[1])
    assert said["event"] == "drift"
    assert said["level"] == "warning"
    assert said["lock_wait_ms"] == 1.25


def test_a_command_of_another_program_is_reported_and_counted(rig: Rig) -> None:
    """That program held the lock, and the file always matched; the agent must report it anyway."""
    events: list[Event] = []
    agent = rig.agent()
    agent.tell = events.append
    agent.sync()
    other = rig.agent()
    lower = rig.lower()
    carry_out(other, set_config(other, tcb=lambda _: lower), allow_empty=False)
    agent.sync()
    kinds = [each.kind for each in events]
    assert EventKind.DRIFT not in kinds
    (changed,) = (each for each in events if each.kind is EventKind.CHANGED)
    assert changed.fields["what"] == "reported_tcb"
    assert str(lower) in changed.message
    agent.sync()
    assert [each.kind for each in events].count(EventKind.CHANGED) == 1


def test_metrics_tell_how_things_stand(rig: Rig, tmp_path: Path) -> None:
    metrics = Metrics()
    agent = rig.agent()
    agent.tell = metrics
    agent.sync()
    rig.device.snp_set_config(SnpConfig(reported_tcb=rig.lower().pack()))
    metrics.seen(agent.read_files(), {"200": 3}, {}, agent.update_is_prepared)
    metrics.write(str(tmp_path / "m.prom"))
    text = (tmp_path / "m.prom").read_text()
    assert f'snpcerts_in_step{{file="{rig.file}"}} 0.0' in text
    agent.sync()
    metrics.seen(
        agent.read_files(),
        {"200": 4},
        agent.table_cache.revocation_lists(),
        agent.update_is_prepared,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    end = metrics.serve(port)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    finally:
        end()
    assert f'snpcerts_in_step{{file="{rig.file}"}} 1.0' in text
    assert 'snpcerts_kds_requests{result="200"} 4.0' in text
    assert "snpcerts_drift_total 1.0" in text
    assert 'snpcerts_firmware_changes_total{what="reported_tcb"} 1.0' in text
    assert "snpcerts_commit_pending 1.0" in text
    assert "snpcerts_target_ready 1.0" in text
    snp = rig.lower().snp
    assert f'snpcerts_tcb{{component="snp",tcb="reported"}} {snp}.0' in text
    assert f'snpcerts_firmware_info{{version="{agent.firmware.state().version}"}} 1.0' in text
    assert 'snpcerts_revocation_list_next_update_timestamp_seconds{kind="vcek"}' in text
    with pytest.raises(RefusedError, match="cannot write metrics"):
        metrics.write(str(tmp_path / "no" / "m.prom"))


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_us(tmp_path: Path, abstract: bool) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(("\0" if abstract else "") + name)
        peer.settimeout(10)
        manager = ServiceManager({"NOTIFY_SOCKET": ("@" if abstract else "") + name})
        assert manager.watchdog is None
        manager.alive()
        manager.status("two\nlines")
        assert peer.recv(100) == b"STATUS=two lines"
    manager.ready()  # the listener is gone, and nothing happens
    other = ServiceManager({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"})
    assert other.watchdog is None
    assert ServiceManager({"WATCHDOG_USEC": "1000000"}).watchdog == 0.5


def test_firmware_that_does_not_answer_does_not_end_the_watch(rig: Rig) -> None:
    signals = Signals()
    rounds: list[bool] = []

    def after_round(_: object) -> None:
        rounds.append(True)
        signals.stop = True

    def listener(event: Event) -> None:
        rig.events.append(event)
        if event.kind is EventKind.FAILED:
            rig.device.broken = False

    agent = rig.agent()
    agent.tell = listener
    agent.config = type(agent.config)(files=agent.config.files, interval=0.001)
    rig.device.broken = True
    with signals.noted():
        watch(lambda: agent, signals, manager=ServiceManager({}), after_round=after_round)
    assert rounds == [True]
    assert EventKind.FAILED in rig.kinds()
    assert rig.seen_by_guest() == "right"
