# SPDX-License-Identifier: Apache-2.0
"""A roll in real time, with killed instances and a restarted database; for :mod:`bench.fleet`.

Each host is a state machine with an emulated chip. It announces itself over HTTP, as an agent does,
to any instance that answers. As soon as the mirror has the host's next certificate, the host
fetches and verifies the certificate, commits, and announces the commit.
"""

from __future__ import annotations

import contextlib
import heapq
import http.client
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select

from bench.fleet_virtual import NEXT, TCB, Host, RecordingClock, RollFigures, is_wrong
from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import Throttle
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.anchors import anchor_from_certificate
from snpcerts.kds.body import ChainPair, read_chain
from snpcerts.kds.url import VcekResource
from snpcerts.mirror import stored
from snpcerts.mirror.admission import Admission
from snpcerts.mirror.database import MirrorDatabase
from snpcerts.mirror.stored import Admitted
from snpcerts.mirror.tables import CERTIFICATE

_TOKEN = "b" * 32
_LONGEST_ROUND = 60.0  # seconds between two announcements of a host
_WORKERS = 4
_AGAIN = 0.5


class Instances:
    """The processes of ``snpcerts mirror serve``, and a client that asks any of them."""

    def __init__(self, folder: Path, database: str, upstream: str, gap: float) -> None:
        program = [sys.executable, "-m", "snpcerts", "mirror", "serve", "--database", database]
        program += ["--listen", "0", "--anchor", str(folder / "root.pem"), "--gap", str(gap)]
        program += ["--admin-token-file", str(folder / "tokens"), "--upstream", upstream]
        self._program = program
        self._running: list[tuple[subprocess.Popen[str], str]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start one more instance."""
        process = subprocess.Popen(
            self._program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        with self._lock:
            self._running.append((process, url))

    def kill(self) -> None:
        """Kill a random instance, and start another."""
        with self._lock:
            process, _ = self._running.pop(random.randrange(len(self._running)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.start()

    def close(self) -> None:
        """End all instances."""
        for process, _ in self._running:
            process.terminate()
            process.communicate(timeout=60)

    def ask(self, target: str, method: str = "GET", document: object = None) -> tuple[int, bytes]:
        """Send a request to a random instance, and to the next one if that does not answer, as a
        load balancer would.

        Returns the status and the body; the status is 0 if no instance answers.
        """
        with self._lock:
            urls = [url for _, url in self._running]
        random.shuffle(urls)
        body = None if document is None else json.dumps(document).encode()
        headers = {"Authorization": f"Bearer {_TOKEN}", "Prefer": "wait=0"}
        for url in urls:
            parts = urlsplit(url)
            assert parts.hostname is not None
            connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=120)
            with (
                contextlib.closing(connection),
                contextlib.suppress(OSError, http.client.HTTPException),
            ):
                connection.request(method, f"/{target}", body=body, headers=headers)
                response = connection.getresponse()
                return response.status, response.read()
        return 0, b""


class LiveFleet:
    """The hosts of a roll, and a record of the answers that they got."""

    def __init__(
        self, fleet: Sequence[Host], instances: Instances, admission: Admission, gap: float
    ) -> None:
        self._instances = instances
        self._admission = admission
        self._gap = gap
        self._lock = threading.Lock()
        self._chain: ChainPair | None = None
        now = time.monotonic()
        self._due = [(now + random.random() * _LONGEST_ROUND, n) for n in range(len(fleet))]
        heapq.heapify(self._due)
        self._fleet = fleet
        self.given: list[tuple[str, float, float]] = []  # path, time, wait
        self.without = 0
        self.unanswered = 0
        self.committed = 0

    def run(self) -> None:
        """Let the hosts announce themselves until all have committed."""
        workers = [threading.Thread(target=self._work) for _ in range(_WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self.committed == len(self._fleet):
                    return
                due, number = heapq.heappop(self._due) if self._due else (time.monotonic() + 1, -1)
                if due > time.monotonic() and number >= 0:
                    heapq.heappush(self._due, (due, number))
                    number = -1
            if number < 0:
                time.sleep(0.05)
                continue
            again = self._round(self._fleet[number])
            with self._lock:
                if again is None:
                    self.committed += 1
                else:
                    heapq.heappush(self._due, (time.monotonic() + again, number))

    def _round(self, host: Host) -> float | None:
        """Let a host announce itself and, if its next certificate is stored, fetch it and commit.

        Return the seconds until the host's next round; None after its commit.
        """
        now = time.time()
        state = self._announce(host)
        if state is None:
            return _AGAIN
        if random.random() < 0.1 and self._fetch(host.path(host.reported)) == b"":
            self.without += 1
        if state["state"] != "stored":
            wait = float(state["wait_seconds"] or 0.0)
            if state["state"] == "queued":
                self.given.append((host.path(NEXT), now, wait))
            return min(max(wait, self._gap), _LONGEST_ROUND)
        body = self._fetch(host.path(NEXT))
        if not body:
            self.without += body is not None
            return _AGAIN
        resource = VcekResource(Product.MILAN, host.chip.hwid, NEXT)
        if self._chain is None:
            chain = self._fetch("vcek/v1/Milan/cert_chain")
            if not chain:
                return _AGAIN
            self._chain = read_chain(chain)
        self._admission.vcek(resource, body, self._chain, datetime.now(UTC))
        host.reported = NEXT
        while self._announce(host) is None:
            time.sleep(_AGAIN)
        return None

    def _announce(self, host: Host) -> dict[str, Any] | None:
        told = host.announcement(NEXT).to_json()
        status, body = self._instances.ask(
            f"api/v1/hosts/milan/{host.chip.hwid.hex()}", "PUT", told
        )
        if status != 200:
            self.unanswered += 1
            return None
        wanted = json.loads(body)["wanted"]
        found: dict[str, Any] = next(each for each in wanted if each["tcb"] == NEXT.components())
        return found

    def _fetch(self, path: str) -> bytes | None:
        """Return a certificate; b"" if the mirror does not have it, None if no instance answers or
        the database of the one that answers is down.
        """
        status, body = self._instances.ask(path)
        if status == 200:
            return body
        lost = status == 0 or b'"database"' in body
        return None if lost else b""


def live_roll(
    folder: Path,
    authority: EmulatedAuthority,
    database: str,
    *,
    hosts: int,
    gap: float,
    instances: int,
    kills: int,
    restart: Callable[[], None] | None = None,
) -> RollFigures:
    """Roll the hosts to one TCB, and meanwhile kill instances and restart the database."""
    fleet = [Host(f"host-{n}", Chip.create(Product.MILAN)) for n in range(hosts)]
    _store_first(database, fleet, authority)
    times = RecordingClock(time.monotonic)
    line = ProductLine(authority, tuple(host.chip for host in fleet))
    admission = Admission([anchor_from_certificate(authority.ark)])
    with KeyServer([line], throttle=Throttle(gap), clock=times) as amd:
        running = Instances(folder, database, amd.url, gap)
        try:
            for _ in range(instances):
                running.start()
            live = LiveFleet(fleet, running, admission, gap)
            began = time.time()
            roll = {
                "product": "milan",
                "tcb": NEXT.components(),
                "hosts": [host.chip.hwid.hex() for host in fleet],
            }
            status, body = running.ask("api/v1/rolls", "POST", roll)
            if status != 201:
                raise RuntimeError(body)
            trouble = threading.Thread(
                target=_trouble, args=(times, hosts, running, kills, restart), daemon=True
            )
            trouble.start()
            live.run()
        finally:
            running.close()
        return _figures(database, fleet, live, amd, times, began, gap)


def _trouble(
    times: RecordingClock,
    hosts: int,
    running: Instances,
    kills: int,
    restart: Callable[[], None] | None,
) -> None:
    """Kill instances, and restart the database, evenly spread over the roll."""
    events: list[Callable[[], None]] = [running.kill] * kills
    if restart is not None:
        events.insert(kills // 2, restart)
    for number, event in enumerate(events, 1):
        while len(times.times) < number * hosts // (len(events) + 1):
            time.sleep(0.1)
        event()


def _store_first(database: str, fleet: Sequence[Host], authority: EmulatedAuthority) -> None:
    """Store a certificate for each host, as after an earlier roll.

    All rows contain the same certificate, because only its presence matters.
    """
    first = fleet[0].chip
    body = authority.issue_vcek(first.hwid, TCB, first.vcek_key(TCB).public_key()).der
    with contextlib.closing(MirrorDatabase(database)) as opened:
        opened.prepare()
        with opened.write() as connection:
            now = opened.now(connection)
            for host in fleet:
                resource = VcekResource(Product.MILAN, host.chip.hwid, TCB)
                earlier = Admitted(resource, body, 0.0, now + 1e8)
                stored.put(connection, earlier, now=now - 1e6, origin="bench")


def _figures(
    database: str,
    fleet: Sequence[Host],
    live: LiveFleet,
    amd: KeyServer,
    times: RecordingClock,
    began: float,
    gap: float,
) -> RollFigures:
    c = CERTIFICATE.c
    with contextlib.closing(MirrorDatabase(database)) as opened, opened.read() as connection:
        at = dict(connection.execute(select(c.resource, c.fetched_at)).tuples().all())
    return RollFigures.counted(
        fleet,
        amd,
        times,
        gap=gap,
        seconds=max(at[host.path(NEXT)] for host in fleet) - began,
        without=live.without + sum(host.path(host.reported) not in at for host in fleet),
        wrong_estimates=sum(
            is_wrong(wait, at[path] - given, gap) for path, given, wait in live.given
        ),
        estimates=len(live.given),
    )
