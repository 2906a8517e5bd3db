# SPDX-License-Identifier: Apache-2.0
"""The demo's operator process, which changes the reported TCB together with the table.

The process is started on an emulated host as ``python -m snpcerts.demo.demo_writer FILE TABLES
UPDATES SECONDS SEED``. ``TABLES`` is a directory of certificate tables, each named after its TCB
(16 hexadecimal digits). The process begins when it reads a line from standard
input, and prints a JSON line for each update.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.psp import SnpConfig
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.span import Span, timed
from snpcerts.host.sev import Sev


def main(arguments: list[str]) -> None:
    """Change the reported TCB and the table UPDATES times, at equal intervals over SECONDS."""
    path, folder, updates, seconds, seed = arguments
    tables = {
        bytes.fromhex(file.stem): CertTable.decode(file.read_bytes())
        for file in sorted(Path(folder).iterdir())
    }
    spans: list[Span] = []
    certs = CertFile(path, timed(spans.append))
    choice = random.Random(seed)  # noqa: S311 (a schedule)
    with Sev() as sev:
        sys.stdin.readline()
        start = time.monotonic()
        for number in range(1, int(updates) + 1):
            due = start + float(seconds) * number / (int(updates) + 1)
            time.sleep(max(0.0, due - time.monotonic()))
            now = sev.snp_platform_status().reported_tcb
            tcb = choice.choice([each for each in tables if each != now])

            def change(tcb: bytes = tcb) -> CertTable:
                sev.snp_set_config(SnpConfig(reported_tcb=tcb))
                # Use the TCB that the firmware now reports, not the one requested.
                return tables[sev.snp_platform_status().reported_tcb]

            update = certs.update(change)
            line = {
                "number": number,
                "tcb": tcb.hex(),
                "waited": update.waited,
                "held": update.held,
                "spans": [each.to_json() for each in spans],
            }
            spans.clear()
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
