# SPDX-License-Identifier: Apache-2.0
"""A VMM process of the demo: one guest, with certificates served by the exit service.

The process is started on an emulated host as ``python -m snpcerts.demo.vmm FILE SEED [BREAK]``, and
prints a JSON line for each request that it has answered.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time

from snpcerts.certfile.file import CertFile
from snpcerts.certfile.span import Span, timed
from snpcerts.demo.broken import READERS
from snpcerts.emulator.machine.vmm_program import run_vm
from snpcerts.vmm.exit_service import ExitService, Served

# Each request is delayed by a random time between the answer and KVM_RUN, where a missing lock does
# harm: at most _LONGEST_DETOUR seconds or, for the share _RARE_SHARE of the requests,
# _LONGEST_RARE_DETOUR seconds.
_LONGEST_DETOUR, _LONGEST_RARE_DETOUR, _RARE_SHARE = 0.002, 0.03, 0.25


def main(arguments: list[str]) -> None:
    """Run one VM until it ends or the parent process ends."""
    path, seed, *broken = arguments
    delays = random.Random(seed)  # noqa: S311 (a schedule)
    spans: list[Span] = []
    exits: list[float] = []
    performer = timed(spans.append)
    if broken:
        performer = READERS[broken[0]](performer)
    logging.disable()  # the JSON lines below contain everything

    def detour() -> None:
        longest = _LONGEST_RARE_DETOUR if delays.random() < _RARE_SHARE else _LONGEST_DETOUR
        time.sleep(delays.uniform(0, longest))

    def tell(served: Served) -> None:
        times = {"exited": exits.pop(), "spans": [each.to_json() for each in spans]}
        spans.clear()
        print(json.dumps(served.to_json() | times), flush=True)

    run_vm(
        ExitService(CertFile(path, performer)),
        at_exit=lambda _: exits.append(time.monotonic()),
        before_reentry=detour,
        after=tell,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
