# SPDX-License-Identifier: Apache-2.0
"""Runs all scenarios against one VMM, and returns one result for each check."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from snpcerts.abi.kvm import SNP_REQ_CERTS_AS_POSTED, ExitReason
from snpcerts.abi.product import Product
from snpcerts.conformance import kept
from snpcerts.conformance.result import Result, ResultState
from snpcerts.conformance.scenarios import (
    answers,
    buffers,
    changes,
    ending,
    locking,
    sharing,
    starting,
    vcpus,
    vcpus_waiting,
)
from snpcerts.conformance.served_file import ServedFile
from snpcerts.conformance.trial import CERTS, Limits, Scenario, Trial
from snpcerts.conformance.trial_timeline import TrialSeen, add_trial
from snpcerts.conformance.vmm_check import BY_ID, CHECKS, ConformanceCheck
from snpcerts.conformance.workers import in_parallel
from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.kvm.release import NEWEST, KernelRelease
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.choices import choices_of
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.errors import UsageError
from snpcerts.temporary_directory import temporary_directory
from snpcerts.trace import Timeline

# If one of these fails, nothing else can be judged.
VITAL: Final = ("vm-starts", "enabled", "immediate-exit-cleared")
JOBS_MAX: Final = 8

_CLONE_NEWNS: Final = 0x00020000
_MS_PRIVATE_REC: Final = 0x40000 | 0x4000
_libc = ctypes.CDLL(None, use_errno=True)

_SCENARIOS: Final = (
    *starting.SCENARIOS,
    *answers.SCENARIOS,
    *buffers.SCENARIOS,
    *sharing.SCENARIOS,
    *locking.SCENARIOS,
    *changes.SCENARIOS,
    *vcpus.SCENARIOS,
    *vcpus_waiting.SCENARIOS,
    *ending.SCENARIOS,
)


@dataclass(frozen=True, slots=True)
class _Tried:
    """One run of the VMM, as its worker process reports it.

    ``exits_served`` is :attr:`Trial.exits_served`.
    """

    results: list[Result]
    seconds: float
    exits_served: bool | None
    output: bytes
    seen: TrialSeen


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where to keep the VMM's output and the observed events of each check that failed or gave
    advice.

    ``trace`` adds a timeline for Perfetto.
    """

    directory: Path
    trace: bool = False


def default_jobs() -> int:
    """Return how many VMMs to run at a time by default. They spend most of their time waiting."""
    return min(JOBS_MAX, 2 * len(os.sched_getaffinity(0)))


def run(
    argv: Sequence[str],
    *,
    limits: Limits | None = None,
    only: Iterable[str] = (),
    on_progress: Callable[[str], None] = lambda _: None,
    keeping: Keeping | None = None,
    jobs: int | None = None,
    timeline: Timeline | None = None,
    kernel: KernelRelease = NEWEST,
    firmware: str | None = None,
) -> list[Result]:
    """Judge the VMM that ``argv`` starts. ``{certs}`` in ``argv`` stands for the path of the
    certificate file.

    ``only`` names the checks to judge, by default all. ``on_progress`` is called with a check's id
    before each scenario. Each run of the VMM is added to ``timeline``. ``jobs`` is how many VMMs
    run at a time. ``kernel`` and ``firmware`` are those of the emulated host; ``firmware`` is one
    of :data:`~snpcerts.emulator.psp.choices.NAMES`. The results are in the order of
    :data:`~snpcerts.conformance.vmm_check.CHECKS`. This forks, so the process must have only one
    thread. Raises :class:`UsageError` for a command line without ``{certs}`` and for an unknown
    check, and the errors of :func:`~snpcerts.emulator.frontdoor.seccomp.check`.
    """
    chosen = checked(argv, only)
    seccomp.check()
    limits = limits or Limits()
    emulated = Firmware(Chip.create(Product.MILAN), choices=choices_of(firmware))
    with temporary_directory("conformance") as directory:
        directory.chmod(0o755)  # the VMM may run as another user
        suite = _SuiteRun(argv, limits, emulated, kernel, directory, chosen, on_progress)
        results = suite.results(jobs or default_jobs(), keeping)
        if timeline is not None:
            suite.add_to(timeline)
        return results


def checked(argv: Sequence[str], only: Iterable[str]) -> frozenset[str]:
    """Return the identifiers of the checks to judge.

    Raises the errors of :func:`run` for wrong arguments.
    """
    if not any(CERTS in word for word in argv):
        raise UsageError(
            f"the VMM's command line does not contain {CERTS}",
            hint=f"put {CERTS} where the VMM expects the path of its certificate file",
        )
    wanted = frozenset(only)
    unknown = sorted(wanted - BY_ID.keys())
    if unknown:
        raise UsageError(
            f"unknown check {unknown[0]!r}",
            hint="choose a check that 'snpcerts conformance --list' prints",
        )
    return wanted or frozenset(BY_ID)


class _SuiteRun:
    def __init__(
        self,
        argv: Sequence[str],
        limits: Limits,
        firmware: Firmware,
        kernel: KernelRelease,
        directory: Path,
        chosen: frozenset[str],
        on_progress: Callable[[str], None],
    ) -> None:
        self._argv = argv
        self._limits = limits
        self._firmware = firmware
        self._directory = directory
        self._chosen = chosen
        self._on_progress = on_progress
        self._kernel = kernel
        self._found: dict[str, Result] = {}
        self._tried: list[_Tried] = []

    def results(self, jobs: int, keeping: Keeping | None) -> list[Result]:
        """Run the scenarios of the chosen checks, and return a result for each check."""
        self._find_exit_number()
        broken = next((id for id in VITAL if self._state(id) is not ResultState.PASSED), None)
        if broken is None:
            self._run_others(jobs)
            why = "no scenario judged this check"
        else:
            why = f"not judged, because {broken} did not pass"
            if broken not in self._chosen and (found := self._found.get(broken)) is not None:
                why += f": {found.detail}"
        if keeping is not None:
            self._keep(keeping)
        return [self._found.get(check.id) or _skipped(check.id, why) for check in self._asked()]

    def _run_others(self, jobs: int) -> None:
        scenarios = [each for each in _SCENARIOS if self._chosen & {*each.checks, *each.also}]
        scenarios.sort(key=lambda each: -each.seconds)  # the longest first
        pieces = [
            partial(self._try, scenario, str(number)) for number, scenario in enumerate(scenarios)
        ]
        names = [scenario.checks[0] for scenario in scenarios]
        if "same-device" in self._chosen:
            pieces.append(partial(self._two_devices))
            names.append("same-device")
        for tried in in_parallel(pieces, jobs, lambda number: self._on_progress(names[number])):
            self._add(tried)

    def _asked(self) -> list[ConformanceCheck]:
        return [check for check in CHECKS if check.id in self._chosen]

    def _state(self, check: str) -> ResultState | None:
        found = self._found.get(check)
        return None if found is None else found.state

    def _find_exit_number(self) -> None:
        """Decide which exit number to use: 43, or 42 if the VMM serves only that."""
        first = self._first("first")
        self._add(first)
        if first.exits_served is not False:
            if first.exits_served:
                self._note(Result("exit-number", ResultState.PASSED))
            return
        found, self._found = self._found, {}
        released, self._kernel = (
            self._kernel,
            replace(self._kernel, req_certs_exit=SNP_REQ_CERTS_AS_POSTED),
        )
        second = self._first("as-posted")
        if second.exits_served:
            self._add(second)
            detail = (
                f"the VMM serves exit {SNP_REQ_CERTS_AS_POSTED}, the number in the posted patch "
                f"series, but not exit {ExitReason.SNP_REQ_CERTS}; the other checks were judged "
                f"with {SNP_REQ_CERTS_AS_POSTED}"
            )
            self._note(Result("exit-number", ResultState.FAILED, detail))
        else:
            self._found, self._kernel = found, released
            detail = (
                f"the VMM serves neither exit {ExitReason.SNP_REQ_CERTS} nor exit "
                f"{SNP_REQ_CERTS_AS_POSTED}"
            )
            self._note(_skipped("exit-number", detail))

    def _first(self, name: str) -> _Tried:
        self._on_progress(starting.FIRST.checks[0])
        (tried,) = in_parallel([partial(self._try, starting.FIRST, name)], 1, lambda _: None)
        return tried

    def _try(self, scenario: Scenario, name: str) -> _Tried:
        directory = self._directory / name
        directory.mkdir()
        return self._try_in(directory, scenario)

    def _try_in(self, directory: Path, scenario: Scenario) -> _Tried:
        """Run the VMM through one scenario, with the certificate file in ``directory``."""
        started = time.monotonic()
        with contextlib.closing(ServedFile(directory)) as served:
            scenario.start(served)
            trial = Trial(scenario, self._argv, served, self._firmware, self._limits, self._kernel)
            results = trial.run()
        seconds = time.monotonic() - started
        output, seen = trial.output.kept(), TrialSeen(trial.journal.seen, trial.journal.requests)
        return _Tried(results, seconds, trial.exits_served, output, seen)

    def _add(self, tried: _Tried) -> None:
        self._tried.append(tried)
        for result in tried.results:
            self._note(result, tried.seconds)

    def _note(self, result: Result, seconds: float = 0.0) -> None:
        """Add a result to those found so far. If several scenarios judge one check, the worst
        result counts.
        """
        known = self._found.get(result.id)
        order = (
            ResultState.SKIPPED,
            ResultState.PASSED,
            ResultState.ADVICE,
            ResultState.FAILED,
        )
        total = seconds + (0.0 if known is None else known.seconds)
        if known is not None and order.index(known.state) >= order.index(result.state):
            result = known
        self._found[result.id] = Result(result.id, result.state, result.detail, total, result.cause)

    def _two_devices(self) -> _Tried:
        """Run the scenario of the check ``same-device`` in a private mount namespace."""
        directory = self._directory / "devices"
        directory.mkdir()
        with _two_file_systems(directory) as mounted:
            if mounted is None:
                why = "this check needs root to mount two file systems"
                return _Tried([_skipped("same-device", why)], 0.0, None, b"", TrialSeen([], []))
            first, second = mounted
            link = directory / "served"
            locking.point_link(link, first)
            return self._try_in(link, locking.same_device(first, second, link))

    def add_to(self, timeline: Timeline) -> None:
        """Add each run of the VMM to ``timeline``, as a group named after the first check that
        failed, or after the first check if none failed.
        """
        for number, tried in enumerate(self._tried, 1):
            if tried.seen.events:
                failed = (each for each in tried.results if each.state is ResultState.FAILED)
                first = next(failed, None)
                name = tried.results[0].id if first is None else f"{first.id} fails"
                add_trial(timeline, tried.seen, f"{number}. {name}")

    def _keep(self, keeping: Keeping) -> None:
        keeping.directory.mkdir(parents=True, exist_ok=True)
        for tried in self._tried:
            for result in tried.results:
                if result.id in self._chosen and result.state in kept.WORTH_KEEPING:
                    kept.write(keeping.directory, result, tried.output, tried.seen, keeping.trace)


def _skipped(check: str, why: str) -> Result:
    return Result(check, ResultState.SKIPPED, why)


@contextlib.contextmanager
def _two_file_systems(directory: Path) -> Iterator[tuple[Path, Path] | None]:
    """Mount two new file systems in a private namespace and yield their paths. Yield None if this
    process may not mount.

    Each is an empty tmpfs, which numbers its inodes from 1. So files made in the same order have
    the same inode numbers.
    """
    places = directory / "first", directory / "second"
    for place in places:
        place.mkdir()
    mounted: list[Path] = []
    try:
        if _libc.unshare(_CLONE_NEWNS) or _libc.mount(
            b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_REC), None
        ):
            yield None
            return
        for place in places:
            if _libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", ctypes.c_ulong(0), b"size=1m"):
                yield None
                return
            mounted.append(place)
        yield places
    finally:
        for place in mounted:
            _libc.umount2(os.fsencode(place), 2)  # MNT_DETACH, even if still in use
