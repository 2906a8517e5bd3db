# SPDX-License-Identifier: Apache-2.0
"""Runs all scenarios against one VMM; gives one result for each check."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from snpcerts.abi.kvm import SNP_REQ_CERTS_AS_POSTED, ExitReason
from snpcerts.abi.product import Product
from snpcerts.conformance.result import Result, ResultState
from snpcerts.conformance.scenarios import (
    answers,
    buffers,
    changes,
    ending,
    locking,
    starting,
    vcpus,
)
from snpcerts.conformance.served_file import ServedFile
from snpcerts.conformance.trial import CERTS, TABLE_SIZE, Limits, Scenario, Trial
from snpcerts.conformance.vmm_check import BY_ID, CHECKS, ConformanceCheck
from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.errors import UsageError
from snpcerts.temporary_directory import temporary_directory

# If one of these fails, nothing else can be judged.
VITAL: Final = ("vm-starts", "enabled", "immediate-exit-cleared")

_CLONE_NEWNS: Final = 0x00020000
_MS_PRIVATE_REC: Final = 0x40000 | 0x4000
_libc = ctypes.CDLL(None, use_errno=True)

_SCENARIOS: Final = (
    *starting.SCENARIOS,
    *answers.SCENARIOS,
    *buffers.SCENARIOS,
    *locking.SCENARIOS,
    *changes.SCENARIOS,
    *vcpus.SCENARIOS,
    *ending.SCENARIOS,
)


def run(
    argv: Sequence[str],
    *,
    limits: Limits | None = None,
    only: Iterable[str] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Judge the VMM that the command line ``argv`` starts; ``{certs}`` marks its file.

    ``only`` names the checks to judge, by default all. ``on_progress`` is called
    with a check's id before each scenario. The results are in the order of
    :data:`~snpcerts.conformance.vmm_check.CHECKS`. If permitted, changes the mount
    namespace of this process (one of the checks needs two file systems). Raises
    :class:`UsageError` for a command line without ``{certs}`` and for an unknown
    check, and the errors of :func:`~snpcerts.emulator.frontdoor.seccomp.check`.
    """
    chosen = _chosen(only)
    if not any(CERTS in word for word in argv):
        raise UsageError(
            f"the VMM's command line does not contain {CERTS}",
            hint=f"put {CERTS} where the VMM takes its certificate file",
        )
    seccomp.check()
    limits = limits or Limits()
    firmware = Firmware(Chip.create(Product.MILAN))
    with temporary_directory("conformance") as directory:
        directory.chmod(0o755)  # the VMM may run as another user
        return _SuiteRun(argv, limits, firmware, directory, chosen, on_progress).results()


def _chosen(only: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(only)
    unknown = sorted(wanted - BY_ID.keys())
    if unknown:
        raise UsageError(
            f"unknown check {unknown[0]!r}", hint="'snpcerts conformance --list' prints the checks"
        )
    return wanted or frozenset(BY_ID)


class _SuiteRun:
    def __init__(
        self,
        argv: Sequence[str],
        limits: Limits,
        firmware: Firmware,
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
        self._trials = 0
        self._exit_number: int = ExitReason.SNP_REQ_CERTS
        self._found: dict[str, Result] = {}

    def results(self) -> list[Result]:
        """Run the scenarios of the chosen checks."""
        self._find_exit_number()
        broken = next((id for id in VITAL if self._state(id) is not ResultState.PASSED), None)
        if broken is not None:
            why = f"not judged, because {broken} did not pass"
            return [self._found.get(check.id) or _skipped(check.id, why) for check in self._asked()]
        for number, scenario in enumerate(_SCENARIOS):
            open_checks = [check for check in scenario.checks if check in self._chosen]
            if any(self._state(check) is not ResultState.FAILED for check in open_checks):
                self._try(scenario, self._fresh(str(number)))
        if "same-device" in self._chosen:
            self._two_devices()
        return [
            self._found.get(check.id) or _skipped(check.id, "no scenario judged it")
            for check in self._asked()
        ]

    def _asked(self) -> list[ConformanceCheck]:
        return [check for check in CHECKS if check.id in self._chosen]

    def _state(self, check: str) -> ResultState | None:
        found = self._found.get(check)
        return None if found is None else found.state

    def _fresh(self, name: str) -> Path:
        directory = self._directory / name
        directory.mkdir()
        return directory

    def _find_exit_number(self) -> None:
        """Judge with 43; continue with 42 if the VMM serves only that."""
        first = self._try(starting.FIRST, self._fresh("first"))
        if first.exits_served is not False:
            if first.exits_served:
                self._add(Result("exit-number", ResultState.PASSED), 0.0)
            return
        found, self._found = self._found, {}
        self._exit_number = SNP_REQ_CERTS_AS_POSTED
        if self._try(starting.FIRST, self._fresh("as-posted")).exits_served:
            detail = (
                f"the VMM serves exit {SNP_REQ_CERTS_AS_POSTED}, the number in the posted patch "
                f"series, but not exit {ExitReason.SNP_REQ_CERTS}; the other checks were judged "
                f"with {SNP_REQ_CERTS_AS_POSTED}"
            )
            self._add(Result("exit-number", ResultState.FAILED, detail), 0.0)
        else:
            self._found, self._exit_number = found, ExitReason.SNP_REQ_CERTS
            self._add(_skipped("exit-number", "the VMM serves neither number"), 0.0)

    def _try(self, scenario: Scenario, directory: Path) -> Trial:
        self._on_progress(scenario.checks[0])
        served = ServedFile(directory)
        try:
            if scenario.checks != ("same-device",):
                served.replace(served.table(TABLE_SIZE))
            self._trials += 1
            log = self._directory / f"vmm-{self._trials}.log"
            trial = Trial(
                scenario, self._argv, served, self._firmware, self._limits, log, self._exit_number
            )
            started = time.monotonic()
            for result in trial.run():
                self._add(result, time.monotonic() - started)
        finally:
            served.close()
        return trial

    def _add(self, result: Result, seconds: float) -> None:
        """Merge a result: if several scenarios judge a check, a failure wins, then a pass."""
        known = self._found.get(result.id)
        order = (ResultState.SKIPPED, ResultState.PASSED, ResultState.FAILED)
        total = seconds + (0.0 if known is None else known.seconds)
        if known is not None and order.index(known.state) >= order.index(result.state):
            result = known
        self._found[result.id] = Result(result.id, result.state, result.detail, total)

    def _two_devices(self) -> None:
        directory = self._fresh("devices")
        with _two_file_systems(directory) as mounted:
            if mounted is None:
                self._add(_skipped("same-device", "needs root, to mount two file systems"), 0.0)
                return
            first, second = mounted
            link = directory / "served"
            locking.point_link(link, first)
            self._try(locking.same_device(first, second, link), link)


def _skipped(check: str, why: str) -> Result:
    return Result(check, ResultState.SKIPPED, why)


@contextlib.contextmanager
def _two_file_systems(directory: Path) -> Iterator[tuple[Path, Path] | None]:
    """Two new file systems in a private mount namespace; None without the right to mount.

    Both are empty tmpfs, which number their inodes from 1, so files made in the
    same order have the same inode numbers.
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
