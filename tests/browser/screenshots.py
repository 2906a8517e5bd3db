# SPDX-License-Identifier: Apache-2.0
"""Takes the screenshots in docs/fleet.md: ``python -m tests.browser.screenshots``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from snpcerts.mirror.fleet_page import fleet_page
from snpcerts.mirror.host_page import host_page
from snpcerts.mirror.page import page_headers
from tests.mirror.sample_fleet import fleet, history

from .chromium import browser

if TYPE_CHECKING:
    from playwright.sync_api import Route

FOLDER = Path(__file__).parents[2] / "docs" / "images"
_PICTURES: tuple[tuple[str, str, int, int, Literal["light", "dark"]], ...] = (
    # name, page, width, height, colours
    ("fleet", fleet_page(fleet()), 1000, 1085, "light"),
    ("fleet-phone", fleet_page(fleet()), 390, 1150, "dark"),
    ("fleet-host", host_page(history()), 1000, 860, "light"),
)


def _answering(page: str) -> Callable[[Route], None]:
    def answer(route: Route) -> None:
        route.fulfill(body=page, headers=dict(page_headers()))

    return answer


def main() -> None:
    """Write each picture."""
    FOLDER.mkdir(exist_ok=True)
    with browser() as found:
        for name, page, width, height, scheme in _PICTURES:
            context = found.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            shown = context.new_page()
            shown.route("**/*", _answering(page))
            shown.goto("http://mirror.example/")
            shown.screenshot(path=FOLDER / f"{name}.png")
            context.close()


if __name__ == "__main__":
    main()
