# SPDX-License-Identifier: Apache-2.0
"""Hosts for the agent: one in this process, one behind the front door."""

from __future__ import annotations

from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.authority import EmulatedAuthority

from .rig import Rig


@pytest.fixture(scope="session")
def authority() -> EmulatedAuthority:
    """An emulated AMD; making its keys takes a while."""
    return EmulatedAuthority.create(Product.MILAN)


@pytest.fixture
def rig(tmp_path: Path, authority: EmulatedAuthority) -> Rig:
    """A host with one VCEK file, which is not there yet."""
    return Rig.make(tmp_path, authority)
