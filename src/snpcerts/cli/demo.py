# SPDX-License-Identifier: Apache-2.0
"""``snpcerts demo``: run guests, firmware and updates together, without SNP hardware."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable

import click

from snpcerts.cli.signals import ends_cleanly
from snpcerts.temporary_directory import temporary_directory

_BREAKS = ["no-lock", "no-handshake"]


@click.command()
@click.option("--guests", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--updates", type=click.IntRange(0, 100_000), default=20, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), default=5.0, show_default=True)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed for the order of keys and the delays.",
)
@click.option("--json", "as_json", is_flag=True, help="Print only the counts, as one JSON object.")
@click.option("--break", "broken", type=click.Choice(_BREAKS), hidden=True)
def command(
    guests: int, updates: int, seconds: float, seed: int, as_json: bool, broken: str | None
) -> int:
    """Run guests, firmware and updates together, without SNP hardware.

    The guests of an emulated host concurrently request attestation reports
    with certificates, while a writer keeps changing the firmware's signing key.
    Every report is verified with the table that came with it. The exit code is
    1 if a table does not match its report.
    """
    from snpcerts.abi.tcb import TcbVersion
    from snpcerts.demo.demo_event import Answered, AttestedEvent, Updated
    from snpcerts.demo.demo_host import key_name
    from snpcerts.demo.stage import DemoRun, Script
    from snpcerts.demo.tally import Tally

    say: Callable[[str], object] = (lambda _text: None) if as_json else click.echo
    tally = Tally()
    since: Counter[tuple[str, str]] = Counter()
    with ends_cleanly(), contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_directory("demo"))
        say("creating an emulated AMD root, a Milan chip and its certificates ...")
        run = DemoRun(folder, Script(guests, updates, seconds, seed, broken))
        layout = run.host.firmware.product.tcb_layout
        say(f"{guests} guests; {updates} updates in {seconds:g} s; table at {run.path}")
        for event in stack.enter_context(contextlib.closing(run.play())):
            judgement = tally.count(event, run.host)
            place = f"{event.at:8.3f} s  "
            match event:
                case Updated():
                    _say_reports(say, since)
                    key = key_name(TcbVersion.unpack(event.tcb, layout))
                    say(
                        f"{place}writer   update {event.number}: readers done after "
                        f"{event.waited * 1000:.1f} ms, lock held {event.held * 1000:.1f} ms, "
                        f"now {key}"
                    )
                case Answered() if event.outcome not in ("served", "too-small"):
                    answer = event.outcome + (f": {event.detail}" if event.detail else "")
                    say(f"{place}guest {event.guest}  got {answer}")
                case AttestedEvent() if judgement is not None:
                    since[judgement.key, judgement.result] += 1
                    if judgement.result in ("mismatched", "failed"):
                        reasons = ", ".join(judgement.reasons)
                        name = judgement.result.upper()
                        say(f"{place}guest {event.guest}  {name}: {judgement.key} {reasons}")
    _say_reports(say, since)
    click.echo(json.dumps(tally.to_json()) if as_json else str(tally))
    return 1 if tally.mismatched else 0


def _say_reports(say: Callable[[str], object], since: Counter[tuple[str, str]]) -> None:
    """Print one line for each key that signed since the last update, and reset the counts."""
    for (key, result), count in sorted(since.items()):
        say(f"            guests   {count} reports signed with the {key}: {result}")
    since.clear()
