# SPDX-License-Identifier: Apache-2.0
"""Instances that are killed, and a PostgreSQL that restarts, in the middle of a roll."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import Throttle
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.kds.url import VcekResource
from snpcerts.mirror.wanted import LEASE

from ..sizes import sized
from .conftest import MILAN_TCB
from .postgres import PostgresServer
from .running import ask, until_stored

GAP = 0.4
TOKEN = "b" * 32
NEXT_TCB = replace(MILAN_TCB, microcode=220)


@dataclass
class Roll:
    """A roll over some chips, and the instances at work on it."""

    amd: KeyServer
    chips: list[Chip]
    start: Callable[[], tuple[subprocess.Popen[str], str]]

    def announce(self, url: str) -> None:
        body = {
            "product": "milan",
            "tcb": NEXT_TCB.components(),
            "hosts": [chip.hwid.hex() for chip in self.chips],
        }
        found = ask(
            url,
            "api/v1/rolls",
            method="POST",
            body=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert found.status == 201, found.text

    def path(self, chip: Chip) -> str:
        return VcekResource(Product.MILAN, chip.hwid, NEXT_TCB).path

    def until_asked(self, count: int) -> None:
        """Wait until the key server has had ``count`` requests for VCEKs of the roll."""
        paths = [self.path(chip) for chip in self.chips]
        assert self.amd.wait_for_requests(
            lambda requests: sum(requests.get(path, 0) for path in paths) >= count, 120
        ), "the instances must go on asking the key server"

    def until_stored(self, url: str) -> None:
        """Ask an instance for each certificate until it has been fetched."""
        for chip in self.chips:
            until_stored(url, self.path(chip))


@pytest.fixture
def rolling(milan: EmulatedAuthority, tmp_path: Path) -> Iterator[Callable[[str, int], Roll]]:
    root, tokens = tmp_path / "root.pem", tmp_path / "tokens"
    root.write_bytes(milan.ark.public_bytes(Encoding.PEM))
    tokens.write_text(f"{TOKEN}\n")
    processes: list[subprocess.Popen[str]] = []
    servers: list[KeyServer] = []

    def make(database: str, count: int) -> Roll:
        chips = [Chip.create(Product.MILAN) for _ in range(count)]
        amd = KeyServer([ProductLine(milan, tuple(chips))], throttle=Throttle(GAP))
        amd.start()
        servers.append(amd)

        def start() -> tuple[subprocess.Popen[str], str]:
            options = ["--database", database, "--listen", "0", "--upstream", amd.url]
            options += ["--anchor", str(root), "--gap", str(GAP), "--admin-token-file", str(tokens)]
            process = subprocess.Popen(
                [sys.executable, "-m", "snpcerts", "mirror", "serve", *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            processes.append(process)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving http://"), line
            return process, line.split()[1]

        return Roll(amd, chips, start)

    yield make
    for process in processes:
        process.kill()
        process.communicate()
    for server in servers:
        server.close()


def test_a_restart_of_postgresql_loses_no_answer_and_asks_nothing_twice(
    rolling: Callable[[str, int], Roll],
) -> None:
    with closing(PostgresServer()) as postgres:
        count = sized(10, 60)
        roll = rolling(postgres.new_database(), count)
        urls = [roll.start()[1] for _ in range(sized(2, 3))]
        roll.announce(urls[0])
        roll.until_asked(count // 3)
        postgres.stop("immediate")
        postgres.start()
        roll.until_asked(2 * count // 3)
        postgres.stop("fast")
        postgres.start()
        for url in urls:
            roll.until_stored(url)
        assert {roll.amd.requests[roll.path(chip)] for chip in roll.chips} == {1}
        assert roll.amd.statuses.keys() == {200}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_instances_that_are_killed_lose_nothing(
    rolling: Callable[[str, int], Roll],
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """A request that was under way is made once more, when the killed instance's lease runs out."""
    if sized(True, False):
        pytest.skip(f"waits for leases of {LEASE:.0f} s: runs only with SNPCERTS_FULL_TESTS=1")
    database = f"sqlite:///{tmp_path}/killed.db"
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        database = server.new_database()
    count, kills = 24, 3
    roll = rolling(database, count)
    running = [roll.start() for _ in range(1 if kind == "sqlite" else 3)]
    roll.announce(running[0][1])
    for kill in range(1, kills + 1):
        roll.until_asked(kill * count // (kills + 1))
        process, _ = running.pop(0)
        process.kill()
        process.wait()
        running.append(roll.start())
    for _, url in running:
        roll.until_stored(url)
    twice = [n for n in (roll.amd.requests[roll.path(chip)] for chip in roll.chips) if n > 1]
    assert len(twice) <= kills
    assert max(twice, default=1) <= 2
    assert roll.amd.statuses.get(429, 0) == 0


def test_an_instance_ends_at_sigterm_and_gives_its_row_back(
    rolling: Callable[[str, int], Roll], tmp_path: Path
) -> None:
    roll = rolling(f"sqlite:///{tmp_path}/ended.db", 6)
    process, url = roll.start()
    roll.announce(url)
    roll.until_asked(1)
    process.terminate()
    assert process.wait(30) == 0
    _, url = roll.start()
    began = time.monotonic()
    roll.until_stored(url)
    assert time.monotonic() - began < LEASE
    assert {roll.amd.requests[roll.path(chip)] for chip in roll.chips} == {1}
