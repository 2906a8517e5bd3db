# SPDX-License-Identifier: Apache-2.0
"""The results of the checks, as JSON and, for build servers, as JUnit XML."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from snpcerts.conformance.vmm_check import BY_ID

SUITE: Final = "snpcerts conformance"
_COMPARED: Final = re.compile(r"expected (.+), found (.+)\Z", re.DOTALL)
_SHARED: Final = 3  # the report names a cause if at least this many failed checks share it
# XML 1.0 cannot represent these characters, and a VMM's output may contain them.
_NOT_IN_XML: Final = dict.fromkeys(
    [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "?"
)


class ResultState(enum.Enum):
    """How one check ended."""

    PASSED = "passed"
    FAILED = "failed"
    ADVICE = "advice"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check. ``detail`` says what was found, or why the check was skipped.

    ``cause`` is why the check failed, if the same cause makes several checks fail; otherwise it is
    empty.
    """

    id: str
    state: ResultState
    detail: str = ""
    seconds: float = 0.0
    cause: str = ""

    @property
    def expected(self) -> str:
        """What the check expected, if ``detail`` compares two values."""
        return self._compared()[0]

    @property
    def found(self) -> str:
        """What the check found instead, if ``detail`` compares two values."""
        return self._compared()[1]

    def _compared(self) -> tuple[str, str]:
        matched = _COMPARED.search(self.detail)
        return ("", "") if matched is None else (matched[1], matched[2])

    def to_json(self) -> dict[str, object]:
        """Return this result as JSON values, with the check's requirement and rule."""
        check = BY_ID[self.id]
        return {
            "id": self.id,
            "state": self.state.value,
            "level": check.level.value,
            "detail": self.detail,
            "expected": self.expected,
            "found": self.found,
            "asks": check.asks,
            "rule": check.rule,
            "seconds": round(self.seconds, 3),
        }


def common_causes(results: Iterable[Result]) -> list[tuple[str, list[str]]]:
    """Return the causes that more than two failed checks share, with the identifiers of these
    checks.

    The largest group comes first.
    """
    by_cause: dict[str, list[str]] = {}
    for result in results:
        if result.state is ResultState.FAILED and (result.cause or result.detail):
            by_cause.setdefault(result.cause or result.detail, []).append(result.id)
    shared = [(cause, ids) for cause, ids in by_cause.items() if len(ids) >= _SHARED]
    return sorted(shared, key=lambda each: -len(each[1]))


def count(results: Iterable[Result]) -> dict[ResultState, int]:
    """Return the number of checks in each state."""
    totals = dict.fromkeys(ResultState, 0)
    for result in results:
        totals[result.state] += 1
    return totals


def to_json(results: Sequence[Result], argv: Sequence[str], seconds: float) -> Mapping[str, object]:
    """Return the whole report as JSON values. ``argv`` is the VMM's command line."""
    totals = count(results)
    return {
        "vmm": list(argv),
        "seconds": round(seconds, 3),
        **{state.value: totals[state] for state in ResultState},
        "causes": [{"cause": cause, "checks": checks} for cause, checks in common_causes(results)],
        "checks": [result.to_json() for result in results],
    }


def to_junit(results: Sequence[Result], argv: Sequence[str], seconds: float) -> bytes:
    """Return the report as JUnit XML, which build servers read."""
    totals = count(results)
    suite = ElementTree.Element(
        "testsuite",
        name=SUITE,
        tests=str(len(results)),
        failures=str(totals[ResultState.FAILED]),
        skipped=str(totals[ResultState.SKIPPED]),
        errors="0",
        time=f"{seconds:.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", name="vmm", value=_plain(" ".join(argv)))
    for result in results:
        check = BY_ID[result.id]
        case = ElementTree.SubElement(
            suite, "testcase", classname=SUITE, name=result.id, time=f"{result.seconds:.3f}"
        )
        if result.state is ResultState.FAILED:
            failure = ElementTree.SubElement(case, "failure", message=_plain(result.detail))
            failure.text = f"{check.asks}\nrule: {check.rule}"
        elif result.state is ResultState.SKIPPED:
            ElementTree.SubElement(case, "skipped", message=_plain(result.detail))
        elif result.state is ResultState.ADVICE:
            ElementTree.SubElement(case, "system-out").text = _plain(f"advice: {result.detail}")
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()


def _plain(text: str) -> str:
    return text.translate(_NOT_IN_XML)
