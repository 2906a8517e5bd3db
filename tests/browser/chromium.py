# SPDX-License-Identifier: Apache-2.0
"""Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
_FETCHED = Path(os.environ.get("SNPCERTS_BROWSER") or _CACHE / "snpcerts" / "browser")
_ROOT = _FETCHED / "chromium"
LIMIT = 60_000.0  # milliseconds that anything in the browser may take on a slow machine


def program() -> tuple[Path, dict[str, str]]:
    """Return the fetched browser, or else the installed one, and the environment variables that it
    needs. Skip the test if there is no browser.
    """
    fetched = _ROOT / "usr" / "lib" / "chromium" / "chromium"
    if (_ROOT / "complete").exists():
        assert fetched.exists(), f"{_ROOT} was fetched, but contains no browser"
        # Some libraries, such as PulseAudio's, have their own directory.
        libraries = {str(each.parent) for each in _ROOT.rglob("*.so*") if each.is_file()}
        return fetched, {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}
    installed = shutil.which("chromium")
    if installed is None:
        pytest.skip("no chromium: tests/browser/fetch.sh fetches Debian's")
    return Path(installed), {}


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser without a window, and close it at the end of the block."""
    sync_api: Any = pytest.importorskip("playwright.sync_api", reason="no playwright package")
    path, more = program()
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not work for root. The browser visits only this machine.
        found = playwright.chromium.launch(
            executable_path=str(path),
            env={**os.environ, **more},
            args=["--no-sandbox", "--no-proxy-server", "--disable-gpu", "--disable-lcd-text"],
            timeout=LIMIT,
        )
        try:
            yield found
        finally:
            found.close()
