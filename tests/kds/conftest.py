# SPDX-License-Identifier: Apache-2.0
"""Emulated authorities, which all tests share, and a key server for each test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.anchors import anchor_from_certificate
from snpcerts.kds.client import KdsClient
from snpcerts.kds.clock import Clock
from snpcerts.kds.retry import RetryPolicy
from snpcerts.kds.source import CertificateSource, Endorsement
from snpcerts.kds.store import Store
from snpcerts.kds.url import VcekResource

from ..keys import authority_of

MILAN_TCB = TcbVersion(4, 0, 24, 219)
TURIN_TCB = TcbVersion(1, 1, 4, 81, fmc=1)


@pytest.fixture(scope="session")
def milan() -> EmulatedAuthority:
    return authority_of(Product.MILAN)


@pytest.fixture(scope="session")
def turin() -> EmulatedAuthority:
    return authority_of(Product.TURIN)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore proxies in the environment: these requests must not leave this machine."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server(milan: EmulatedAuthority, turin: EmulatedAuthority) -> Iterator[KeyServer]:
    """A key server for one Milan and one Turin chip."""
    lines = [ProductLine(each, (Chip.create(each.product),)) for each in (milan, turin)]
    with KeyServer(lines, delay=0.2) as serving:
        yield serving


class SkippingClock(Clock):
    """Follows the real clock, and jumps ahead instead of waiting."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def now(self) -> float:
        return super().now() + sum(self.waits)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


@dataclass
class Host:
    """A machine that fetches: its cache, its warnings, and how long it waited."""

    server: KeyServer
    cache: Path
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    url: str | None = None
    warnings: list[str] = field(default_factory=list)
    clock: Clock = field(default_factory=SkippingClock)

    @property
    def waits(self) -> list[float]:
        assert isinstance(self.clock, SkippingClock)
        return self.clock.waits

    @property
    def anchors(self) -> tuple[object, ...]:
        return tuple(
            anchor_from_certificate(line.authority.ark) for line in self.server.lines.values()
        )

    def client(self) -> KdsClient:
        url = self.url or self.server.url
        return KdsClient(url, policy=self.policy, clock=self.clock)

    def source(self, *, offline: bool = False, heed_revocation: bool = False) -> CertificateSource:
        return CertificateSource(
            Store(self.cache),
            None if offline else self.client(),
            anchors=self.anchors,  # type: ignore[arg-type]  # a tuple of Anchor
            heed_revocation=heed_revocation,
            warn=self.warnings.append,
        )

    def resource(self, product: Product = Product.MILAN) -> VcekResource:
        tcb = TURIN_TCB if product is Product.TURIN else MILAN_TCB
        return VcekResource(product, self.server.lines[product].chips[0].hwid, tcb)

    def vcek(self, product: Product = Product.MILAN, **options: object) -> Endorsement:
        return self.fetch_from(self.source(), product, **options)

    def fetch_from(
        self, source: CertificateSource, product: Product = Product.MILAN, **options: object
    ) -> Endorsement:
        wanted = self.resource(product)
        return source.vcek(product, wanted.hwid, wanted.tcb, **options)  # type: ignore[arg-type]

    def leaf_requests(self, product: Product = Product.MILAN) -> int:
        return self.server.requests.get(self.resource(product).path, 0)

    def kept(self, product: Product = Product.MILAN) -> Path:
        return Store(self.cache).path_of(self.resource(product))


@pytest.fixture
def host(server: KeyServer, tmp_path: Path) -> Host:
    return Host(server, tmp_path / "cache")
