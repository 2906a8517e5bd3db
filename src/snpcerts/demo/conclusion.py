# SPDX-License-Identifier: Apache-2.0
"""Describes the results of the demo's two runs in sentences."""

from __future__ import annotations

from snpcerts.demo.tally import Tally


def summary(tally: Tally) -> str:
    """Return the counts of one run as a sentence."""
    parts = [f"{tally.reports:,} reports: {tally.verified:,} verify with their certificates"]
    parts.append(f"{tally.mismatched:,} do not" if tally.mismatched else "none fails")
    if tally.empty:
        parts.append(f"{tally.empty:,} came without certificates")
    if tally.busy:
        parts.append(f"{tally.busy:,} requests got BUSY and were repeated")
    if tally.failed:
        parts.append(f"failed requests: {tally.failed:,}")
    return ", ".join(parts)


def conclusion(unlocked: Tally, locked: Tally) -> str:
    """Return what the two runs show, as one sentence."""
    return f"{_with_lock(locked)}; {_without_lock(unlocked)}"


def _with_lock(tally: Tally) -> str:
    if tally.mismatched:
        return (
            f"FAILED: with the lock, {tally.mismatched:,} of {tally.reports:,} reports do not "
            "verify with the certificates that came with them"
        )
    if not tally.verified:
        return f"{tally.reports:,} reports, none of them with certificates"
    if tally.empty or tally.failed:
        return f"with the lock, {summary(tally)}"
    reports = "1 report" if tally.reports == 1 else f"{tally.reports:,} reports"
    return f"{reports}, every one verifies with the certificates that came with it"


def _without_lock(tally: Tally) -> str:
    if tally.mismatched:
        none = f", and {tally.empty:,} came without certificates" if tally.empty else ""
        return f"without the lock, {tally.mismatched:,} of {tally.reports:,} did not{none}"
    if not tally.updates:
        return "the key did not change, so the lock made no difference"
    return (
        f"without the lock, none of {tally.reports:,} went wrong this time either: "
        "to see the difference, try a longer run with more updates "
        "(--seconds 10 --updates 60)"
    )
