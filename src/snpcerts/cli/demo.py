# SPDX-License-Identifier: Apache-2.0
"""``snpcerts demo``: run guests, firmware and updates together, without SNP hardware."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import click

from snpcerts.cli.files import check_output, write_output
from snpcerts.cli.say import present, say
from snpcerts.cli.signals import EndedBySignalError, ends_cleanly

if TYPE_CHECKING:
    from snpcerts.demo.course import Course
    from snpcerts.demo.demo_event import Event
    from snpcerts.demo.demo_host import EmulatedHost
    from snpcerts.demo.stage import DemoRun
    from snpcerts.demo.tally import RequestResult, Tally

_BREAKS: Final = ["no-lock", "no-handshake"]
_DETAILS: Final = 4  # mismatches of one run that are described in full
_TICK: Final = 0.5  # seconds between two dots
_FIRST: Final = (
    "Guests request attestation reports with certificates while the key that signs the\n"
    "reports changes. The first run does not use the certificate file's lock; the\n"
    "second does. All hardware is emulated; the programs above it are real.\n"
)
_NEXT: Final = (
    "\nNext: snpcerts conformance --help  check how your own VMM serves certificates\n"
    "      snpcerts emulate --help      run your own programs on this machine\n"
    "      docs/protocol.md             why the lock works, and when it does not\n"
    "      docs/operators.md            set up a host\n"
)


@click.command()
@click.option(
    "--guests",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Number of guests. Each runs in its own VMM.",
)
@click.option(
    "--updates",
    type=click.IntRange(0, 100_000),
    default=20,
    show_default=True,
    help="Number of changes of the signing key in each run.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 86_400),
    default=5.0,
    show_default=True,
    help="Length of each of the two runs, in seconds.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed for the random order of the keys and for the random delays.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print only the counts and the conclusion, as one JSON object.",
)
@click.option(
    "--trace", metavar="FILE", help="Write a timeline of both runs to FILE, for ui.perfetto.dev."
)
@click.option(
    "--picture",
    metavar="FILE",
    help="Draw one second from the middle of each run, and write the drawing to FILE as SVG.",
)
@click.option("--break", "broken", type=click.Choice(_BREAKS), hidden=True)
def command(
    guests: int,
    updates: int,
    seconds: float,
    seed: int,
    as_json: bool,
    trace: str | None,
    picture: str | None,
    broken: str | None,
) -> int:
    """Run guests, firmware and updates together, without SNP hardware.

    The guests of an emulated host concurrently request attestation reports with certificates, while
    a writer keeps changing the firmware's signing key. The demo verifies every report with the
    certificates that came with it. It runs the same machine, guests and updates twice: first the
    VMMs read the certificate file without its lock, then with it. The exit code is 1 if a report of
    the second run does not verify.
    """
    stage = _Narrator(quiet=as_json, every=min(10.0, max(1.0, seconds / 10)))
    try:
        with ends_cleanly():
            files = {"trace": trace, "picture": picture}
            for path in filter(None, files.values()):
                check_output(path)
            stage.say(_FIRST)
            return _both_runs(stage, guests, updates, seconds, seed, as_json, broken, files)
    except EndedBySignalError as ended:
        with contextlib.suppress(OSError):  # the terminal may be gone
            stage.break_line()
            number = signal.Signals(ended.exit_code - 128)
            by = "Ctrl-C" if number is signal.SIGINT else number.name
            say(f"snpcerts: the demo was interrupted by {by} and left nothing behind", err=True)
        raise


def _both_runs(
    stage: _Narrator,
    guests: int,
    updates: int,
    seconds: float,
    seed: int,
    as_json: bool,
    broken: str | None,
    files: Mapping[str, str | None],
) -> int:
    from snpcerts.demo.conclusion import conclusion
    from snpcerts.demo.course import Course
    from snpcerts.demo.stage import DemoMachine, DemoRun, Script
    from snpcerts.temporary_directory import temporary_directory

    with temporary_directory("demo") as folder:
        with stage.waiting("Making an emulated AMD's keys and certificates"):
            machine = DemoMachine.create(folder / "machine")
        script = Script(guests, updates, seconds, seed, "no-lock")
        stage.say(
            f"\n1. Without the lock: {_number(guests, 'guest')}, "
            f"{_number(updates, 'update')} in {seconds:g} s. "
            "Each VMM reads the file and\n"
            "   enters its guest, up to 30 ms later, as on a busy host."
        )
        courses = [
            Course(title, guests, machine.host.key_names)
            for title in ("Without the lock", "With the lock")
        ]
        unlocked = stage.follow(DemoRun(folder / "unlocked", machine, script), courses[0])
        if unlocked.empty:
            stage.say(
                "   Those were read in the middle of an update, which empties the file first."
            )
        script = Script(guests, updates, seconds, seed, broken)
        stage.say(
            "\n2. With the lock: the same machine, guests and updates. Each VMM holds the\n"
            "   file's lock until the firmware has signed; an update waits for that."
        )
        if broken:
            stage.say(f"   --break {broken}: the VMMs are broken on purpose.")
        locked = stage.follow(DemoRun(folder / "locked", machine, script), courses[1])
        stage.say(
            f"   No update waited longer than {locked.writer_wait_ms_max:.0f} ms for the VMMs."
        )
    _write(stage, files, courses, (unlocked, locked), machine.host, seconds)
    verdict = conclusion(unlocked, locked)
    if as_json:
        counts = {**locked.to_json(), "without_lock": unlocked.to_json(), "verdict": verdict}
        click.echo(json.dumps(counts))
    else:
        stage.say(_NEXT)
        present(verdict)
    return 1 if locked.mismatched else 0


def _write(
    stage: _Narrator,
    files: Mapping[str, str | None],
    courses: Sequence[Course],
    tallies: Sequence[Tally],
    host: EmulatedHost,
    seconds: float,
) -> None:
    """Write the timeline and the drawing that the options request."""
    from snpcerts.demo.demo_timeline import timeline_of
    from snpcerts.demo.picture import DemoRunShown, picture_of

    if (path := files["trace"]) is not None:
        timeline = timeline_of(courses, host.issued)
        write_output(path, timeline.to_json().encode())
        left_out = timeline.dropped + sum(each.left_out for each in courses)
        some = f", without {left_out:,} later events" if left_out else ""
        stage.say(f"\n{path}: the timeline{some}; open it at ui.perfetto.dev")
    if (path := files["picture"]) is not None:
        unlocked, locked = (DemoRunShown(*each) for each in zip(courses, tallies, strict=True))
        write_output(path, picture_of(unlocked, locked, seconds).encode())
        stage.say(f"\n{path}: a drawing of one second from each run")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


class _Narrator:
    """Prints each problem in a run as it happens, and a line of counts every ``every`` seconds. If
    ``quiet``, it prints nothing.

    It counts the updates and the reports that verify instead of printing each one, because it does
    not learn of them in the order in which the firmware served them.
    """

    def __init__(self, *, quiet: bool, every: float) -> None:
        self._quiet = quiet
        self._every = every
        self._open = False  # whether the last printed line is unfinished

    def say(self, text: str) -> None:
        """Print whole lines of text, wrapped to the terminal's width."""
        if not self._quiet:
            present(text)

    def break_line(self) -> None:
        """End a line that :meth:`waiting` has started."""
        if self._open:
            self._open = False
            click.echo()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Print ``what``, a dot every half second while the block runs, then its duration."""
        if self._quiet:
            yield
            return
        start, over = time.monotonic(), threading.Event()

        def tick() -> None:
            while not over.wait(_TICK):
                click.echo(".", nl=False)

        click.echo(f"{what} ...", nl=False)
        self._open = True
        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            over.set()
            ticker.join()
        self._open = False
        click.echo(f" done in {time.monotonic() - start:.1f} s")

    def follow(self, run: DemoRun, course: Course) -> Tally:
        """Follow a run to its end. Record its events in ``course``; print counts and problems."""
        from snpcerts.demo.conclusion import summary
        from snpcerts.demo.demo_event import AllUp
        from snpcerts.demo.tally import Tally

        tally, due = Tally(), self._every
        with contextlib.closing(run.play()) as events:
            with self.waiting("   Starting them"):
                for event in events:
                    course.note(event, tally.count(event, run.host))
                    if isinstance(event, AllUp):
                        break
            for event in events:
                while event.at >= due:
                    self._say_counts(due, tally)
                    due += self._every
                result = tally.count(event, run.host)
                course.note(event, result)
                self._say_trouble(event, result, tally)
        self.say(f"   {summary(tally)}.")
        return tally

    def _say_counts(self, at: float, tally: Tally) -> None:
        self.say(
            f"   {at:5.1f} s  {tally.updates:3} updates  {tally.reports:5,} reports  "
            f"{tally.mismatched:3,} do not verify"
        )

    def _say_trouble(self, event: Event, result: RequestResult | None, tally: Tally) -> None:
        from snpcerts.demo.demo_event import Answered, AttestedEvent

        place = f"   {event.at:5.1f} s  guest"
        match event:
            case Answered() if event.outcome not in ("served", "too-small", "empty", "busy"):
                answer = event.outcome + (f": {event.detail}" if event.detail else "")
                self.say(f"{place} {event.guest}: {answer}")
            case AttestedEvent() if result is not None and result.result == "failed":
                self.say(f"{place} {event.guest}: no report, {', '.join(result.reasons)}")
            case AttestedEvent() if result is not None and result.result == "mismatched":
                if tally.mismatched <= _DETAILS:
                    found = f"certificates for {result.certified}"
                    if not result.certified:
                        found = f"certificates unusable ({result.reasons[0]})"
                    self.say(f"{place} {event.guest}: report signed by {result.key}, {found}")
                elif tally.mismatched == _DETAILS + 1:
                    self.say("            and so on; the others are only counted")
            case _:
                pass
