# SPDX-License-Identifier: Apache-2.0
"""One browser for all tests of pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

from .chromium import browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ASKED: Final = "SNPCERTS_BROWSER_TESTS"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium, without a window."""
    if not os.environ.get(ASKED):
        pytest.skip(f"a browser is started only with {ASKED}=1: make test-browser")
    with browser() as found:
        yield found
