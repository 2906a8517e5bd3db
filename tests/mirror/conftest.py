# SPDX-License-Identifier: Apache-2.0
"""Fixtures: an emulated key server for a few chips, mirrors of it, and databases of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.anchors import Anchor, anchor_from_certificate
from snpcerts.kds.url import VcekResource
from snpcerts.mirror.service import CallerLimits
from snpcerts.mirror.serving import ServeOptions

from ..keys import authority_of
from .postgres import PostgresServer
from .running import RunningMirror

MILAN_TCB = TcbVersion(4, 0, 24, 219)
TURIN_TCB = TcbVersion(1, 1, 4, 81, fmc=1)


@pytest.fixture(scope="session")
def milan() -> EmulatedAuthority:
    return authority_of(Product.MILAN)


@pytest.fixture(scope="session")
def turin() -> EmulatedAuthority:
    return authority_of(Product.TURIN)


@pytest.fixture(scope="session")
def anchors(milan: EmulatedAuthority, turin: EmulatedAuthority) -> tuple[Anchor, ...]:
    return tuple(anchor_from_certificate(each.ark) for each in (milan, turin))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore proxies in the environment: these requests must not leave this machine."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def amd(milan: EmulatedAuthority, turin: EmulatedAuthority) -> Iterator[KeyServer]:
    """A key server for four Milan chips and one Turin chip."""
    lines = [
        ProductLine(milan, tuple(Chip.create(Product.MILAN) for _ in range(4))),
        ProductLine(turin, (Chip.create(Product.TURIN),)),
    ]
    with KeyServer(lines, delay=0.2) as serving:
        yield serving


@pytest.fixture
def start(
    amd: KeyServer, anchors: tuple[Anchor, ...], tmp_path: Path
) -> Iterator[Callable[..., RunningMirror]]:
    """A function that starts mirrors of the key server ``amd``. They end with the test."""
    running: list[RunningMirror] = []

    def starting(**options: object) -> RunningMirror:
        given: dict[str, object] = {
            "database": f"sqlite:///{tmp_path}/mirror.db",
            "port": 0,
            "upstream": amd.url,
            "anchors": anchors,
            # Long enough that a caller gets its certificate, not 503, even on a busy machine.
            "limits": CallerLimits(patience=45),
        }
        found = RunningMirror(ServeOptions(**(given | options)))  # type: ignore[arg-type]  # a test's
        found.__enter__()
        running.append(found)
        return found

    yield starting
    for each in running:
        each.__exit__()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of this process."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database. A test that uses it runs once for each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shared.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def mirror(start: Callable[..., RunningMirror]) -> RunningMirror:
    return start()


def vcek(amd: KeyServer, product: Product = Product.MILAN, index: int = 0) -> VcekResource:
    tcb = TURIN_TCB if product is Product.TURIN else MILAN_TCB
    return VcekResource(product, amd.lines[product].chips[index].hwid, tcb)
