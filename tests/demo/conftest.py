# SPDX-License-Identifier: Apache-2.0
"""The demo with the run's emulated authority, in place of a new one for each machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority

from ..keys import authority_of


@pytest.fixture(scope="module", autouse=True)
def _authority() -> Iterator[None]:
    """Commands that tests run in processes of their own still make one."""
    made = {Product.MILAN: authority_of(Product.MILAN)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmulatedAuthority, "create", lambda product: made[product])
        yield
