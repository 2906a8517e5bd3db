# SPDX-License-Identifier: Apache-2.0
"""Prints what the host commands are doing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from snpcerts.cli.say import present, say

if TYPE_CHECKING:
    from snpcerts.host.event import Event, Listener


def event_printer(form: str, *others: Listener) -> Listener:
    """Return a listener that prints events to standard output. In text form, it prints warnings
    to standard error.

    The listener then passes each event to the other listeners.
    """
    from snpcerts.host.log import json_log, text_log

    def to_out(line: str) -> None:
        say(line)

    def to_err(line: str) -> None:
        present(f"snpcerts: {line}", err=True)

    loud, quiet = (
        (json_log(to_out),) * 2 if form == "json" else (text_log(to_err), text_log(to_out))
    )

    def listen(event: Event) -> None:
        (loud if event.kind.loud else quiet)(event)
        for other in others:
            other(event)

    return listen


def ignore_event(event: Event) -> None:
    """Print nothing. Commands whose only output is one JSON object use this listener."""
    del event


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[None]:
    """Print ``what`` on standard error if the block takes longer than a second."""
    over = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        pause = 1.0
        while not over.wait(pause):
            say(f"{what} ({time.monotonic() - start:.0f} s)", err=True)
            pause = min(2 * pause, 10.0)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
