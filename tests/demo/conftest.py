# SPDX-License-Identifier: Apache-2.0
"""Demos in this process use the test run's emulated authority, so none makes its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority

from ..keys import authority_of


@pytest.fixture(scope="module", autouse=True)
def _authority() -> Iterator[None]:
    """Replace the function that makes an authority; commands in other processes still make one."""
    made = {Product.MILAN: authority_of(Product.MILAN)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmulatedAuthority, "create", lambda product: made[product])
        yield
