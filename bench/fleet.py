# SPDX-License-Identifier: Apache-2.0
"""Measures rolls of a fleet with and without a mirror, and how fast a mirror serves hits.

``SNPCERTS_BENCH_HOSTS`` (default 200) is the number of hosts. The roll on a clock that skips waits
has ``SNPCERTS_BENCH_VIRTUAL_HOSTS`` (default 500) instead. ``SNPCERTS_BENCH_GAP`` (default 0.25 s)
is the gap of the rolls in real time: how long the throttle makes a client wait between two VCEK
requests. AMD's gap is 10 s. All times scale with the gap, except for the 25 s of a lease: when an
instance is killed, the queue may stand still that long. With 1,000 hosts, a gap of 0.5 s and 10,000
virtual hosts, the benchmark takes about half an hour on an idle machine. Hosts without a mirror are
only simulated, with the client's own retry policy, because a real roll would not end.
"""

from __future__ import annotations

import contextlib
import heapq
import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding
from tests.mirror.postgres import PostgresServer

from bench.compare import Skip
from bench.fleet_hosts import live_roll
from bench.fleet_virtual import virtual_roll
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import Throttle, ThrottleMemory
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.kds.retry import RetryPolicy
from snpcerts.kds.url import VcekResource

TCB = TcbVersion(4, 0, 24, 219)
NEXT = replace(TCB, microcode=220)
TOKEN = "b" * 32
STORED = 100_000
SECONDS = 5.0


def main() -> None:
    """Run all parts."""
    hosts = int(os.environ.get("SNPCERTS_BENCH_HOSTS", "200"))
    gap = float(os.environ.get("SNPCERTS_BENCH_GAP", "0.25"))
    authority = EmulatedAuthority.create(Product.MILAN)
    with tempfile.TemporaryDirectory(prefix="snpcerts-bench-") as name:
        folder = Path(name)
        (folder / "root.pem").write_bytes(authority.ark.public_bytes(Encoding.PEM))
        (folder / "tokens").write_text(f"{TOKEN}\n")
        rolls(folder, authority, hosts, gap)
        trouble(folder, authority, hosts, gap)
        virtual(folder, authority, int(os.environ.get("SNPCERTS_BENCH_VIRTUAL_HOSTS", "500")))
        hits(folder, authority)


def rolls(folder: Path, authority: EmulatedAuthority, hosts: int, gap: float) -> None:
    """Roll all hosts to one TCB, with a mirror on each database and without a mirror; print the
    numbers of requests and the times.
    """
    ideal = (hosts - 1) * gap
    print(f"{hosts} hosts behind one address, one VCEK in {gap} s (AMD: 10 s)")
    print(f"  {'':<34} {'requests':>9} {'429':>9} {'seconds':>9}  ratio to ideal")
    print(f"  {'ideal':<34} {hosts:>9} {0:>9} {ideal:>9.1f}  1.00")
    one = roll(folder, authority, f"sqlite:///{folder}/roll.db", 1, hosts, gap)
    _row("mirror, SQLite, one instance", one, ideal)
    with contextlib.suppress(Skip), postgresql() as url:
        _row(
            "mirror, PostgreSQL, three instances",
            roll(folder, authority, url, 3, hosts, gap),
            ideal,
        )
    for lengthens in (False, True):
        what = "hosts alone, refusals restart gap" if lengthens else "hosts alone (simulated)"
        _row(what, alone(hosts, lengthens=lengthens), (hosts - 1) * 10.0)


def trouble(folder: Path, authority: EmulatedAuthority, hosts: int, gap: float) -> None:
    """Roll hosts that announce themselves, while instances are killed and the database restarts."""
    print(f"{hosts} emulated hosts, one VCEK in {gap} s, instances killed during the roll")
    one = f"sqlite:///{folder}/live.db"
    figures = live_roll(folder, authority, one, hosts=hosts, gap=gap, instances=1, kills=1)
    figures.print("SQLite, one instance, 1 kill")
    with contextlib.suppress(Skip), postgresql_server() as server:

        def restart() -> None:
            server.stop("immediate")
            server.start()

        three = server.new_database()
        figures = live_roll(
            folder, authority, three, hosts=hosts, gap=gap, instances=3, kills=3, restart=restart
        )
        figures.print("PostgreSQL, three, 3 kills, 1 restart")


def virtual(folder: Path, authority: EmulatedAuthority, hosts: int) -> None:
    """Roll a large fleet at AMD's own gap, on a clock that skips waits."""
    print(f"{hosts} hosts on a clock that skips waits, one VCEK in 10 s, three instances die")
    virtual_roll(f"sqlite:///{folder}/virtual.db", authority, hosts, 1)
    with contextlib.suppress(Skip), postgresql_server() as server:
        virtual_roll(server.new_database(), authority, hosts, 3)


def _row(name: str, found: tuple[int, int, float], ideal: float) -> None:
    requests, refused, took = found
    print(f"  {name:<34} {requests:>9} {refused:>9} {took:>9.1f}  {took / ideal:.2f}")


def roll(
    folder: Path,
    authority: EmulatedAuthority,
    database: str,
    instances: int,
    hosts: int,
    gap: float,
) -> tuple[int, int, float]:
    """Roll once. Return how many VCEK requests AMD's server got, how many it refused, and the
    seconds until the last VCEK was stored.
    """
    chips = [Chip.create(Product.MILAN) for _ in range(hosts)]
    line = ProductLine(authority, tuple(chips))
    with KeyServer([line], throttle=Throttle(gap)) as amd, contextlib.ExitStack() as stack:
        options = ["--gap", str(gap), "--upstream", amd.url]
        urls = [stack.enter_context(mirror(folder, database, *options)) for _ in range(instances)]
        ask(urls[0], "vcek/v1/Milan/cert_chain")
        body = {
            "product": "milan",
            "tcb": NEXT.components(),
            "hosts": [chip.hwid.hex() for chip in chips],
        }
        began = time.monotonic()
        ask(urls[0], "api/v1/rolls", "POST", json.dumps(body).encode())
        while True:
            shown = json.loads(ask(urls[0], "api/v1/rolls"))["rolls"][0]
            if shown["stored"] == hosts:
                break
            time.sleep(0.05)
        took = time.monotonic() - began
        counts = [
            amd.requests.get(VcekResource(Product.MILAN, chip.hwid, NEXT).path, 0) for chip in chips
        ]
        return sum(counts), amd.statuses.get(429, 0), took


def alone(hosts: int, *, lengthens: bool) -> tuple[int, int, float]:
    """Simulate hosts that each ask for their own VCEK with :class:`RetryPolicy`, at AMD's gap.

    A call of the client ends after as many tries as the policy allows; the host's agent calls again
    after at least 30 s. If ``lengthens`` is set, each refused request restarts the gap.
    """
    policy, throttle = RetryPolicy(), ThrottleMemory(Throttle(10.0, lengthens=lengthens))
    rng = random.Random(1)
    waiting = [(rng.random() * 30, host, 0) for host in range(hosts)]
    heapq.heapify(waiting)
    requests, refused, now = 0, 0, 0.0
    while waiting and requests < 1_000_000:
        now, host, refusals = heapq.heappop(waiting)
        requests += 1
        wait = throttle.wait("one address", "", now)
        if not wait:
            continue
        refused += 1
        refusals += 1
        pause = policy.hold_off(refusals, max(1.0, wait))
        if refusals % policy.attempts == 0:
            pause = max(pause, 30.0)
        heapq.heappush(waiting, (now + pause, host, refusals))
    if waiting:
        print(f"  (after {requests} requests {len(waiting)} hosts still have no VCEK; given up)")
    return requests, refused, now


def hits(folder: Path, authority: EmulatedAuthority) -> None:
    """Measure how fast a mirror and nginx serve stored certificates; print rates and memory."""
    database = f"sqlite:///{folder}/hits.db"
    paths = fill(database, authority)
    print(f"hits, {STORED} certificates stored, 8 connections, {SECONDS:.0f} s")
    with mirror(folder, database, "--upstream", "http://127.0.0.1:1") as url:
        for name, chosen in (("in memory", paths[:5000]), ("all of them", paths)):
            load(url, chosen[:2000], 1.0)
            rate, slow = load(url, chosen, SECONDS)
            print(f"  {f'mirror, {name}':<34} {rate:>9.0f} per second, p99 {slow * 1000:.2f} ms")
        print(f"  {'memory of the instance':<34} {memory(url):>9.0f} MB")
    try:
        with nginx(folder, paths[:5000]) as url:
            rate, slow = load(url, paths[:5000], SECONDS)
            print(f"  {'nginx, files':<34} {rate:>9.0f} per second, p99 {slow * 1000:.2f} ms")
    except Skip as reason:
        print(f"  nginx: skipped, {reason}")


def fill(database: str, authority: EmulatedAuthority) -> list[str]:
    """Store a certificate for each host of a large fleet; return their paths in random order.

    All rows contain the same certificate, because a hit does not look into it.
    """
    from snpcerts.mirror import stored
    from snpcerts.mirror.database import MirrorDatabase, insert
    from snpcerts.mirror.tables import CERTIFICATE

    chip = Chip.create(Product.MILAN)
    body = authority.issue_vcek(chip.hwid, TCB, chip.vcek_key(TCB).public_key()).der
    until = time.time() + 1e8
    opened = MirrorDatabase(database)
    opened.prepare()
    paths: list[str] = []
    with opened.write() as connection:
        for start in range(0, STORED, 1000):
            rows = []
            for number in range(start + 1, start + 1001):
                hwid = number.to_bytes(64, "big")
                path = VcekResource(Product.MILAN, hwid, TCB).path
                paths.append(path)
                rows.append(
                    {
                        "resource": path,
                        "kind": "vcek",
                        "product": "Milan",
                        "hwid": hwid.hex(),
                        "body": body,
                        "etag": stored.etag_of(path.encode()),
                        "not_before": 0.0,
                        "not_after": until,
                        "fetched_at": time.time(),
                        "origin": "bench",
                    }
                )
            connection.execute(insert(connection, CERTIFICATE), rows)
    opened.close()
    random.Random(1).shuffle(paths)
    return paths


def load(url: str, paths: list[str], seconds: float) -> tuple[float, float]:
    """Run a process that requests the paths. Return the requests per second, and the 99th
    percentile of a request's time, in seconds.
    """
    given = json.dumps({"url": url, "paths": paths, "seconds": seconds})
    program = [sys.executable, "-m", "bench.http_load"]
    ran = subprocess.run(
        program, input=given, capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(ran.stdout)
    return found["rate"], found["p99"]


_PIDS: dict[str, int] = {}


@contextlib.contextmanager
def mirror(folder: Path, database: str, *options: str) -> Iterator[str]:
    """Run one instance of the mirror; yield its URL."""
    program = [sys.executable, "-m", "snpcerts", "mirror", "serve", "--database", database]
    program += ["--listen", "0", "--anchor", str(folder / "root.pem")]
    program += ["--admin-token-file", str(folder / "tokens"), *options]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        _PIDS[url] = process.pid
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)


def memory(url: str) -> float:
    """Return the peak memory of an instance, in MB."""
    status = Path(f"/proc/{_PIDS[url]}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def ask(url: str, target: str, method: str = "GET", body: bytes | None = None) -> bytes:
    """Send one request; return the answer's body."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=60)
    with contextlib.closing(connection):
        connection.request(
            method, f"/{target}", body=body, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        response = connection.getresponse()
        data = response.read()
        assert response.status < 300, data
        return data


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL server as the tests do; yield the URL of a new database."""
    with postgresql_server() as server:
        yield server.new_database()


@contextlib.contextmanager
def postgresql_server() -> Iterator[PostgresServer]:
    """Run a PostgreSQL server as the tests do; yield it."""
    import pytest

    try:
        server = PostgresServer()
    except pytest.skip.Exception as reason:
        print(f"  PostgreSQL: skipped, {reason}")
        raise Skip(str(reason)) from None
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def nginx(folder: Path, paths: list[str]) -> Iterator[str]:
    """Run an nginx that serves, at ``paths``, files of a certificate's size; yield its URL."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        raise Skip("there is no nginx")
    root = folder / "files"
    for path in paths:
        file = root / path.partition("?")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(1360))
    port = 18_000 + os.getpid() % 1000
    (folder / "nginx.conf").write_text(
        f"user root; daemon off; worker_processes 1; pid {folder}/nginx.pid;\n"
        f"error_log {folder}/nginx.log; events {{}}\n"
        f"http {{ access_log off; keepalive_requests 10000000; open_file_cache max=10000;\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    process = subprocess.Popen([program, "-c", str(folder / "nginx.conf")])
    try:
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                ask(f"http://127.0.0.1:{port}", paths[0])
                break
            assert time.monotonic() < until
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
