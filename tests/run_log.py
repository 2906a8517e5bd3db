# SPDX-License-Identifier: Apache-2.0
"""The log of a long run: a JSON line for each part, so that an interrupted run can continue."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

_T = TypeVar("_T")


def lines(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, without those that were cut off."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C or SIGTERM end the block by an exception, so that the block still cleans up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def append(file: TextIO, result: dict[str, Any]) -> None:
    """Write a result, after a line break in case the last line was cut off."""
    file.write("\n" + json.dumps(result))
    file.flush()


def shard(parts: Sequence[_T], text: str) -> list[_T]:
    """Return the parts of shard ``K/N``: every N-th part, from part K on. K counts from 0."""
    number, of = map(int, text.split("/"))
    return list(parts[number::of])
