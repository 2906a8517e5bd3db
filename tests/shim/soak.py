# SPDX-License-Identifier: Apache-2.0
"""A VM under load, updates every 100 ms and random kicks: ``python -m tests.shim.soak``.

A VMM that knows nothing of certificates runs with the shim on the emulated platform. Its
vCPUs ask for reports while a writer changes the reported TCB and the table. Every report
is verified with the table that came with it. Prints one line of JSON, and exits with 1 if
anything went wrong.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from snpcerts.abi.product import Product
from snpcerts.certfile.file import CertFile
from snpcerts.demo.demo_event import AttestedEvent
from snpcerts.demo.demo_host import EmulatedHost
from snpcerts.demo.tally import Tally
from snpcerts.emulator.guest.script import REQUESTS_MAX, GuestScript
from snpcerts.emulator.machine.enter import host_program
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.vmm import preload

UPDATES_PER_SECOND = 10
GUESTS = ("reports", "verified", "mismatched", "empty", "failed")
PATIENCE = 120.0  # seconds for what should have ended


def soak(folder: Path, plain_vmm: Path, seconds: float, vcpus: int = 4) -> dict[str, object]:
    """Run the VM and the writer in ``folder``; return what was seen."""
    home = PlatformHome(folder / "platform")
    home.prepare(Product.MILAN)
    host = EmulatedHost.of(home.firmware(), home.authority())
    tables, certs, outcomes = folder / "tables", folder / "certs.bin", folder / "outcomes.jsonl"
    tables.mkdir()
    for tcb, table in host.tables.items():
        (tables / f"{tcb.pack().hex()}.bin").write_bytes(table.encode())
    CertFile(str(certs)).publish(host.table())
    outcomes.touch()
    script = GuestScript(
        requests=REQUESTS_MAX, pages=2, pause=0.02, busy_delay=0.05, outcomes=str(outcomes)
    )
    variables = preload.environment(str(certs), preload.DEFAULT_TIMEOUT, {})
    argv = ["env", *(f"{name}={value}" for name, value in variables.items()), str(plain_vmm)]
    vmm = subprocess.Popen(
        host_program(home, [*argv, str(vcpus), str(seconds)], script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    argv = [sys.executable, "-P", "-m", "snpcerts.demo.demo_writer", str(certs), str(tables)]
    argv += [str(int(seconds * UPDATES_PER_SECOND)), str(seconds), "soak"]
    with open(folder / "updates.jsonl", "wb") as updates:
        writer = subprocess.Popen(
            host_program(home, argv, GuestScript()), stdin=subprocess.PIPE, stdout=updates
        )
    tally, lines = Tally(), _lines(outcomes, vmm)
    try:
        tally.count(next(lines), host)
        assert writer.stdin is not None
        with writer.stdin:
            writer.stdin.write(b"go\n")
        for event in lines:
            tally.count(event, host)
        said, complaint = vmm.communicate(timeout=PATIENCE)
        writer.wait(PATIENCE)
    finally:
        for process in (vmm, writer):
            process.kill()
            process.wait()
    kicks = re.search(r"kicks (\d+), longest ([\d.]+) ms", said)
    left = re.search(r"open files more than at the start: (\d+)", said)
    return {
        **{name: value for name, value in tally.to_json().items() if name in GUESTS},
        "updates": len((folder / "updates.jsonl").read_text().splitlines()),
        "seconds": seconds,
        "vcpus": vcpus,
        "kicks": int(kicks[1]) if kicks else None,
        "kick_ms_max": float(kicks[2]) if kicks else None,
        "files_left_open": int(left[1]) if left else None,
        "vmm": vmm.returncode,
        "writer": writer.returncode,
        "said": complaint,
    }


def problems(seen: dict[str, object]) -> list[str]:
    """Return what is wrong."""
    wanted = {"mismatched": 0, "failed": 0, "files_left_open": 0, "vmm": 0, "writer": 0, "said": ""}
    found = [f"{name} is {seen[name]!r}" for name, value in wanted.items() if seen[name] != value]
    return found + [f"no {name}" for name in ("verified", "updates", "kicks") if not seen[name]]


def _lines(path: Path, vmm: subprocess.Popen[str]) -> Iterator[AttestedEvent]:
    """Yield what the guests got, as soon as it is written, until the VMM has ended."""
    with open(path, "rb") as file:
        rest = b""
        while True:
            ended = vmm.poll() is not None
            data = file.read(1 << 20)
            *whole, rest = (rest + data).split(b"\n")
            for line in map(json.loads, whole):
                report, table = (base64.b64decode(line[name]) for name in ("report", "table"))
                yield AttestedEvent(0.0, 0, line["errno"], report, table, 0.0, 0.0)
            if not data:
                if ended:
                    return
                time.sleep(0.01)


def main() -> int:
    """Run for ten minutes by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--vcpus", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="snpcerts-soak-") as name:
        folder = Path(name)
        source = Path(__file__).with_name("plain_vmm.c")
        plain_vmm = folder / "plain_vmm"
        subprocess.run(["cc", "-O2", "-pthread", "-o", plain_vmm, source], check=True)
        seen = soak(folder, plain_vmm, options.seconds, options.vcpus)
    print(json.dumps(seen))
    for problem in problems(seen):
        print(problem, file=sys.stderr)
    return 1 if problems(seen) else 0


if __name__ == "__main__":
    sys.exit(main())
