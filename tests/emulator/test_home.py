# SPDX-License-Identifier: Apache-2.0
"""A platform's directory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.machine.home import PlatformHome

from ..keys import authority_of


def test_the_authority_is_made_once_when_it_is_first_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = authority_of(Product.MILAN)
    made: list[Product] = []

    def create(product: Product) -> EmulatedAuthority:
        made.append(product)
        return authority

    monkeypatch.setattr(EmulatedAuthority, "create", create)
    PlatformHome(tmp_path).prepare(Product.MILAN)
    assert not (tmp_path / "authority").exists()
    (tmp_path / "authority.new").mkdir()  # of a process that was killed while it made one
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: PlatformHome(tmp_path).authority(), range(4)))
    assert made == [Product.MILAN]
    assert [each.ark.der for each in found] == [authority.ark.der] * 4
    assert not (tmp_path / "authority.new").exists()
