# SPDX-License-Identifier: Apache-2.0
"""Measures subjects in rotation, so that a slowdown of the machine affects all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable

ROUNDS = 7


class Skip(Exception):  # noqa: N818 (it is not an error)
    """Raised if this machine cannot run a benchmark; the message says why."""


def compare(
    title: str,
    subjects: dict[str, Callable[[], float]],
    *,
    unit: str,
    scale: float,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Print the median of each subject and its ratio to the first; return the medians.

    Each subject returns seconds per operation; ``scale`` turns them into ``unit``.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            times[name].append(subject())
    medians = {name: statistics.median(values) for name, values in times.items()}
    base_name, base = next(iter(medians.items()))
    print(f"{title} (median of {rounds} rounds)")
    for name, median in medians.items():
        low, high = min(times[name]) * scale, max(times[name]) * scale
        print(
            f"  {name:<34} {median * scale:>10.2f} {unit}  "
            f"({low:.2f} to {high:.2f})  ratio to {base_name}: {median / base:.2f}"
        )
    return medians
