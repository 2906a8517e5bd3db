# SPDX-License-Identifier: Apache-2.0
"""Measures how long a writer waits while 64 readers keep coming, and what guests notice.

Eight processes of eight threads serve requests in a loop without a pause. For each request, a
thread holds the lock for 5 ms, as long as the firmware would take. The first writer blocks in
F_OFD_SETLKW on the file itself, as a naive reading of the kernel's documentation suggests. The
others use one strategy each. The target is a p99 of less than 50 ms, the time of ten requests.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from snpcerts.abi.cert_table import VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLKW
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.reader import Busy, Empty, Found
from snpcerts.certfile.writer import LockHeldError, Strategy

PROCESSES, THREADS = 8, 8
HOLD = 0.005  # seconds
UPDATES, INTERVAL = 60, 0.1
NAIVE_PATIENCE = 10.0  # seconds after which a blocked writer is given up
TABLES = [CertTable((TableEntry(VCEK_GUID, bytes([n]) * 4000),)) for n in (1, 2)]


def main() -> None:
    """Print waits in milliseconds, p50, p99 and max, and the readers' outcomes."""
    print(f"a writer's wait; {PROCESSES * THREADS} readers hold the lock {HOLD * 1000:g} ms each")
    for name in ("naive", *(strategy.value for strategy in Strategy)):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "certs.bin"
            CertFile(str(file)).publish(TABLES[0])
            readers = [
                subprocess.Popen(
                    [sys.executable, "-m", "bench.writer_wait", str(file)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for _ in range(PROCESSES)
            ]
            for reader in readers:
                assert reader.stdout is not None
                reader.stdout.readline()
            waits, given_up = _naive(file) if name == "naive" else _strategy(file, Strategy(name))
            counts = [json.loads(reader.communicate("\n")[0]) for reader in readers]
            _print(name, waits, given_up, counts)


def _strategy(file: Path, strategy: Strategy) -> tuple[list[float], int]:
    waits, given_up = [], 0
    for number in range(UPDATES):
        time.sleep(INTERVAL)
        try:
            update = CertFile(str(file)).publish(
                TABLES[number % 2], strategy=strategy, lock_wait=NAIVE_PATIENCE / 5
            )
            waits.append(update.waited)
        except LockHeldError:
            given_up += 1
            if given_up == 5:
                break
    return waits, given_up


def _naive(file: Path) -> tuple[list[float], int]:
    fd = os.open(file, os.O_RDWR)
    waits: list[float] = []
    done = threading.Event()

    def block() -> None:
        start = time.monotonic()
        fcntl.fcntl(fd, F_OFD_SETLKW, EXCLUSIVE)
        waits.append(time.monotonic() - start)
        os.close(fd)
        done.set()

    threading.Thread(target=block, daemon=True).start()
    return (waits, 0) if done.wait(NAIVE_PATIENCE) else ([], 1)


def _print(name: str, waits: list[float], given_up: int, counts: list[dict[str, float]]) -> None:
    requests = sum(count["requests"] for count in counts)
    busy = sum(count["busy"] for count in counts)
    empty = sum(count["empty"] for count in counts)
    latency = sorted(value for count in counts for value in count["slowest"])  # type: ignore[attr-defined]
    text = "never got through" if not waits else ""
    if waits:
        ordered = sorted(waits)
        p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.99))
        text = f"p50 {p50 * 1000:7.1f}  p99 {p99 * 1000:7.1f}  max {ordered[-1] * 1000:7.1f} ms"
    print(
        f"  {name:<9} {text}; gave up {given_up} of {len(waits) + given_up}; "
        f"guests: {requests:.0f} requests, busy {100 * busy / requests:.2f} %, "
        f"empty {100 * empty / requests:.2f} %, slowest {latency[-1] * 1000:.0f} ms"
    )


def read_until_told(path: str) -> None:
    """Run one process of readers until it gets a line on standard input; print its counts."""
    stop = threading.Event()
    counts = {"requests": 0, "busy": 0, "empty": 0}
    slowest: list[float] = []
    lock = threading.Lock()

    def read() -> None:
        mine = {"requests": 0, "busy": 0, "empty": 0}
        worst = 0.0

        def deliver(found: Found) -> None:
            mine["requests"] += 1
            mine["busy"] += isinstance(found, Busy)
            mine["empty"] += isinstance(found, Empty)

        while not stop.is_set():
            start = time.monotonic()
            CertFile(path).serve(deliver=deliver, handshake=lambda: time.sleep(HOLD))
            worst = max(worst, time.monotonic() - start)
        with lock:
            for key, value in mine.items():
                counts[key] += value
            slowest.append(worst)

    threads = [threading.Thread(target=read) for _ in range(THREADS)]
    for each in threads:
        each.start()
    print("ready", flush=True)
    sys.stdin.readline()
    stop.set()
    for each in threads:
        each.join()
    print(json.dumps({**counts, "slowest": slowest}))


if __name__ == "__main__":
    read_until_told(sys.argv[1])
