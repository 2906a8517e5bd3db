# SPDX-License-Identifier: Apache-2.0
"""Formats verdicts: as lines for a person, and as JSON for a program."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from snpcerts.abi.product import Product, hwid_of_chip_id
from snpcerts.cli.verify_advice import advice
from snpcerts.errors import SnpCertsError
from snpcerts.printable import printable

if TYPE_CHECKING:
    from snpcerts.verify.revocation import JudgedList
    from snpcerts.verify.verdict import Verdict

# In the order of the summary.
OUTCOMES = ("verified", "refused", "unreadable", "undecided")


def json_line(path: str, verdict: Verdict, attacks: Sequence[str] | None = None) -> str:
    """Return the JSON object for a verdict, as one line.

    ``attacks`` has a line for each bulletin requirement that the report does not meet, among those
    related to failed policy checks. None leaves the field out.
    """
    found = {} if attacks is None else {"attacks": list(attacks)}
    return json.dumps({"evidence": path} | verdict.to_json() | found)


def unreadable_json(path: str, error: SnpCertsError) -> str:
    """Return the JSON object for a file whose evidence cannot be read."""
    return json.dumps({"evidence": path, "verdict": "unreadable", "error": str(error)})


def one_line(path: str, verdict: Verdict) -> str:
    """Return the line that represents one verdict in the output for several reports."""
    said = ", ".join(dict.fromkeys(reason.code.value for reason in verdict.reasons))
    product = "" if verdict.product is None else verdict.product.value
    if not said:
        said = f"{product}, {verdict.tcbs.reported}{_foreign(verdict)}"
    return printable(f"{verdict.status.value:<10}  {path}: {said}")


def summary(counts: Counter[str], reasons: Counter[str]) -> str:
    """Return lines that count the verdicts by status and the reasons by code, most frequent reasons
    first.
    """
    total = sum(counts.values())
    parts = [f"{counts[name]} {name}" for name in OUTCOMES if counts[name] or name == "verified"]
    lines = [f"{total} in all: {', '.join(parts)}"]
    lines += (f"  {count:>8}  {code}" for code, count in reasons.most_common())
    return "\n".join(lines)


def for_people(verdict: Verdict, attacks: Sequence[str] = (), *, verbose: bool) -> str:
    """Return the lines for the verdict on a single report. With ``verbose``, they also list what
    was not checked.
    """
    key = "?" if verdict.signing_key is None else verdict.signing_key.name
    product = "unknown product" if verdict.product is None else verdict.product.value
    lines: list[str] = []
    if verdict.reasons:
        count = len(verdict.reasons)
        lines.append(f"{verdict.status.value}: {count} reason{'s' if count > 1 else ''}")
        lines += (f"  {reason}" for reason in verdict.reasons)
        if attacks:
            lines.append("requirements of AMD's bulletins that the report does not meet:")
            lines += (f"  {attack}" for attack in attacks)
        if verdict.sources:
            lines.append("problems with the certificate sources:")
            lines += (f"  {each.source}: {each.problem}" for each in verdict.sources)
        lines += (f"next: {each}" for each in advice(verdict))
        lines.append("the report claims the following, but it is not verified:")
    else:
        lines.append(f"verified{_foreign(verdict)}")
    lines.append(f"  {product}, signed by {key}")
    lines.append(f"  root         {_root(verdict)}")
    if verdict.leaf is not None and verdict.leaf.csp_id is not None:
        lines.append(f"  provider     {verdict.leaf.csp_id!r}")
    if verdict.report is not None:
        fields = verdict.report.fields
        lines.append(f"  chip ID      {_chip_id(fields.chip_id, verdict.product)}")
        lines.append(f"  reported TCB {verdict.tcbs.reported or 'cannot be read'}")
        lines.append(f"  VMPL         {fields.vmpl}")
        lines.append(f"  measurement  {fields.measurement.hex()}")
        lines.append(f"  report data  {fields.report_data.hex()}")
    lines += (f"  revocation   {_list(each)}" for each in verdict.revocation_lists)
    return "\n".join(map(printable, (*lines, *_checks(verdict, verbose))))


def _foreign(verdict: Verdict) -> str:
    """Return what to add after "verified" if the root is not AMD's; empty if the root is AMD's."""
    if verdict.root is None or verdict.root_is_amds:
        return ""
    return f", with a root that is not AMD's: {verdict.root.name!r}"


def _root(verdict: Verdict) -> str:
    root = verdict.root
    if root is None:
        return "no trusted root"
    if verdict.root_is_amds:
        return f"AMD's, for {root.product.value}"
    return f"not AMD's: {root.name!r}, SHA-384 of its key {root.spki_sha384.hex()}"


_SUPPLIERS = {
    "evidence": "came with the evidence",
    "caller": "given",
    "cache": "from the cache",
    "key-server": "from the key server",
}


def _list(judged: JudgedList) -> str:
    from snpcerts.verify.revocation import in_words

    kind = "list for an unknown kind of leaf" if judged.kind is None else f"{judged.kind.name} list"
    origin = judged.origin if judged.origin.isprintable() else repr(judged.origin)
    said = [f"{kind}, {_SUPPLIERS[judged.supplier.value]} ({origin})"]
    if judged.this_update is not None:
        said.append(f"of {judged.this_update:%Y-%m-%d}")
    if judged.age is not None:
        said.append(f"obtained {in_words(judged.age)} ago")
    if judged.problems:
        said.append("not usable: " + "; ".join(map(str, judged.problems)))
    elif not judged.believed:
        said.append("not judged, because no trusted root was found")
    elif not judged.counts:
        said.append("adds revocations, but satisfies no demand for a list")
    return ", ".join(said)


def _checks(verdict: Verdict, verbose: bool) -> Iterator[str]:
    by_state: dict[str, list[str]] = {}
    for check in verdict.checks:
        by_state.setdefault(check.state.value, []).append(check.name)
    for state, label in (
        ("passed", "passed"),
        ("failed", "failed"),
        ("not-judged", "not judged"),
        ("not-asked", "not asked"),
    ):
        if state == "not-asked" and not verbose and state in by_state:
            yield f"  {len(by_state[state])} not asked (-v lists them)"
        elif state in by_state:
            yield f"  {label:<12} {', '.join(by_state[state])}"


def _chip_id(chip_id: bytes, product: Product | None) -> str:
    if not any(chip_id):
        return "all zero"
    return (chip_id if product is None else hwid_of_chip_id(chip_id, product)).hex()
