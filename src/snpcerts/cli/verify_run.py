# SPDX-License-Identifier: Apache-2.0
"""Reads and verifies one report or many, prints the verdicts, and returns the exit code."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from snpcerts.cli.evidence_files import EvidenceFiles, Shelf
from snpcerts.cli.say import present, say, shows_progress
from snpcerts.cli.verify_ear import EarFile
from snpcerts.cli.verify_text import for_people, json_line, one_line, summary, unreadable_json
from snpcerts.errors import InputError, SnpCertsError, UsageError
from snpcerts.printable import printable

if TYPE_CHECKING:
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.verify.evidence import Evidence
    from snpcerts.verify.policy import Policy
    from snpcerts.verify.sources import CollateralSource
    from snpcerts.verify.verdict import Verdict

_EXIT = {"verified": 0, "refused": 1, "unreadable": 2, "undecided": 3}
_WORST_FIRST = ("refused", "unreadable", "undecided")


@dataclass(frozen=True, slots=True)
class VerifyRun:
    """What one call of ``snpcerts verify`` verifies, and how."""

    places: list[EvidenceFiles]
    sources: list[CollateralSource]
    policy: Policy
    anchors: tuple[Anchor, ...]
    at: datetime
    jobs: int
    verbose: bool  # also list what was not checked
    explain: bool  # list the bulletins' requirements that a report does not meet
    has_more: bool  # there are certificates besides those that come with reports
    ear: EarFile | None = None
    reported: set[Shelf] = field(default_factory=set)  # those whose problems have been printed

    def print(self, as_json: bool) -> int:
        """Verify the reports and print each verdict when it is known. Return the exit code."""
        if len(self.places) == 1:
            verdict = next(self._verdicts(iter([self._read(self.places[0])])))
            path = self.places[0].report
            if self.ear is not None:
                self.ear.write(verdict)
                if self.ear.on_standard_output:
                    return _EXIT[verdict.status.value]
            if as_json:
                say(self._json(path, verdict))
            else:
                present(for_people(verdict, self._attacks(verdict), verbose=self.verbose))
            return _EXIT[verdict.status.value]
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        with ExitStack() as stack:
            step = _progress(stack, len(self.places))
            for path, result in self._results():
                step()
                if isinstance(result, SnpCertsError):
                    counts["unreadable"] += 1
                    if as_json:
                        say(unreadable_json(path, result))
                    else:
                        present(f"unreadable  {result}")
                    continue
                counts[result.status.value] += 1
                reasons.update({reason.code.value for reason in result.reasons})
                if as_json:
                    say(self._json(path, result))
                    continue
                present(one_line(path, result))
                for attack in self._attacks(result):
                    present(printable(f"            {attack}"))
        if not as_json:
            present(summary(counts, reasons))
        return next((_EXIT[name] for name in _WORST_FIRST if counts[name]), 0)

    def _json(self, path: str, verdict: Verdict) -> str:
        return json_line(path, verdict, self._attacks(verdict) if self.explain else None)

    def _attacks(self, verdict: Verdict) -> tuple[str, ...]:
        if not self.explain or not verdict.reasons:
            return ()
        from snpcerts.verify.attacks import explained_reasons

        return tuple(explained_reasons(verdict))

    def _read(self, place: EvidenceFiles) -> Evidence:
        evidence = place.read()
        for warning in evidence.warnings:
            say(printable(f"snpcerts: {place.report}: warning: {warning}"), err=True)
        own = evidence.collateral
        if place.beside is not None:
            from snpcerts.verify.judging import KINDS

            key = evidence.report.signing_key
            kind = None if key is None else KINDS.get(key)
            beside = place.beside.given(beside_evidence=True)
            own = own.completed_by(beside.for_kind(kind))
            if place.beside not in self.reported:
                self.reported.add(place.beside)
                for problem in beside.problems:
                    say(printable(f"snpcerts: warning: {problem}"), err=True)
        product = evidence.report.product
        alone = len(self.places) == 1 and (product is None or product.is_pinned)
        if alone and not self.has_more and own.empty and evidence.table is None:
            raise UsageError(
                "no certificates were supplied to verify the report with",
                hint="give at least one of --table FILE, --certs DIR and --fetch",
            )
        return dataclasses.replace(evidence, collateral=own)

    def _verdicts(self, evidence: Iterator[Evidence]) -> Iterator[Verdict]:
        from snpcerts.verify.bulk import verify_many

        return verify_many(
            evidence,
            self.sources,
            self.policy,
            anchors=self.anchors,
            at=self.at,
            jobs=self.jobs,
            count=len(self.places),
        )

    def _results(self) -> Iterator[tuple[str, Verdict | SnpCertsError]]:
        """Yield each file's path with the verdict, or with the error if the file could not be read,
        in the order of ``places``.
        """
        waiting: deque[tuple[str, SnpCertsError | None]] = deque()

        def readable() -> Iterator[Evidence]:
            for place in self.places:
                try:
                    evidence = self._read(place)
                except InputError as error:
                    waiting.append((place.report, error))
                    continue
                waiting.append((place.report, None))
                yield evidence

        for verdict in self._verdicts(readable()):
            yield from _unread(waiting)
            path, _ = waiting.popleft()
            yield path, verdict
        yield from _unread(waiting)


def _unread(
    waiting: deque[tuple[str, SnpCertsError | None]],
) -> Iterator[tuple[str, SnpCertsError]]:
    while waiting:
        path, error = waiting[0]
        if error is None:
            return
        waiting.popleft()
        yield path, error


def _progress(stack: ExitStack, total: int) -> Callable[[], object]:
    """Return a function to call once for each report. It draws a progress bar if standard output
    and standard error are terminals.
    """
    if not shows_progress():
        return lambda: None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = stack.enter_context(
        Progress(
            BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        )
    )
    task = bar.add_task("", total=total)
    return lambda: bar.advance(task)
