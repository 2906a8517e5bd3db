# SPDX-License-Identifier: Apache-2.0
"""Authorities and platforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.firmware import Firmware

from .. import keys


@pytest.fixture(scope="session")
def authority_of() -> Callable[[Product], EmulatedAuthority]:
    """The session's authority of each product."""
    return keys.authority_of


@pytest.fixture(scope="session")
def authority(authority_of: Callable[[Product], EmulatedAuthority]) -> EmulatedAuthority:
    """The session's authority for Milan."""
    return authority_of(Product.MILAN)


@pytest.fixture
def firmware() -> Firmware:
    """A new Milan platform."""
    return Firmware(Chip.create(Product.MILAN))
