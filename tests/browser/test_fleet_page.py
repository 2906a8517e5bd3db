# SPDX-License-Identifier: Apache-2.0
"""The fleet's page in a real browser, while an emulated host is updated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.cli.source_options import anchors_of
from snpcerts.mirror.announcement import Announcement
from snpcerts.mirror.api import Tokens
from snpcerts.mirror.fleet_page import fleet_page
from snpcerts.mirror.page import page_headers

from ..emulated import Emulated
from ..host.conftest import commands as commands
from ..host.conftest import site as site
from ..host.conftest import url as url
from ..host.site import Site
from ..mirror.conftest import amd as amd
from ..mirror.conftest import anchors as anchors
from ..mirror.conftest import milan as milan
from ..mirror.conftest import start as start
from ..mirror.conftest import turin as turin
from ..mirror.running import RunningMirror
from ..mirror.sample_fleet import MILAN_TCB, announcement, fleet
from .chromium import LIMIT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AGENT, ADMIN = "a" * 32, "b" * 32


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """Yield a page on which the browser must report no error, such as a request that the page's
    policy blocks.
    """
    context = chromium.new_context()
    context.set_default_timeout(LIMIT)
    found = context.new_page()
    problems: list[str] = []
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    yield found
    context.close()
    assert problems == []


def until(page: Page, text: str) -> None:
    """Wait, without reloading the page, until it shows text that matches the pattern ``text``."""
    page.get_by_text(re.compile(text)).first.wait_for(timeout=LIMIT)


@pytest.fixture
def operated(site: Site, start: Callable[..., RunningMirror], tmp_path: Path) -> Any:
    """Return a function that runs ``host`` commands, and the mirror to which the host announces
    itself. The mirror's upstream is the emulated key server.
    """
    mirror = start(
        upstream=site.url,
        anchors=anchors_of((str(site.anchor),)),
        tokens=Tokens((AGENT,), (ADMIN,)),
    )
    token = tmp_path / "agent-token"
    token.write_text(AGENT)
    config = tmp_path / "snpcerts.toml"
    config.write_text(
        f'[mirror]\nurl = "{mirror.url}"\ntoken_file = "{token}"\nname = "rack1-host7"\n'
        f'[[file]]\npath = "{site.file}"\n'
    )
    return lambda command, *words: site.done(command, *words, config=str(config), kds=""), mirror


def test_the_page_follows_a_host_through_an_update(
    page: Page, operated: Any, emulated: Emulated
) -> None:
    run, mirror = operated
    page.goto(mirror.url)
    until(page, "No host has announced itself yet")
    run("sync")
    until(page, "The one host is in step")
    made = emulated.run("firmware", "update", "--snp", "30")
    assert made.returncode == 0, made.stderr
    run("sync")
    until(page, "0 of 1 hosts are in step")
    until(page, "commit is pending")
    until(page, "1 host can commit: the next certificate is stored")
    run("commit", "--wait-for-mirror")
    until(page, "The one host is in step")
    page.get_by_role("link", name="rack1-host7").first.click()
    until(page, "reported TCB: snp \\d+ → 30")
    until(page, "rack1-host7")


@pytest.fixture
def served(page: Page) -> Page:
    """Serve the page of the sample fleet, with the headers that the mirror sends."""
    page.route(
        "http://mirror.example/**",
        lambda route: route.fulfill(
            body=fleet_page(fleet()), headers=dict(page_headers()), status=200
        ),
    )
    return page


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_a_desk_in_both_colours(
    served: Page, width: int, scheme: Any
) -> None:
    served.set_viewport_size({"width": width, "height": 800})
    served.emulate_media(color_scheme=scheme)
    served.goto("http://mirror.example/")
    assert served.evaluate("document.documentElement.scrollWidth") <= width
    paper = served.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper)[:3])) > 3 * 128
    assert light == (scheme == "light")
    # The states have their colours only if the page's policy lets the style sheet through.
    assert contrast(served, ".tile.in-step b, .in-step b") >= 3


def contrast(page: Page, selector: str) -> float:
    """Return the contrast between a text and the card that it is on, as WCAG defines it."""
    colours: list[str] = page.evaluate(
        """(selector) => {
            const found = document.querySelector(selector);
            const card = found.closest("a");
            return [getComputedStyle(found).color, getComputedStyle(card).backgroundColor];
        }""",
        selector,
    )

    def luminance(colour: str) -> float:
        parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted(map(luminance, colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_hosts_text_runs_no_script_in_the_browser(page: Page, start: Any) -> None:
    mirror = start(tokens=Tokens((AGENT,), (ADMIN,)))
    evil = "<img src=x onerror=document.title='taken'>"
    sent: Announcement = replace(
        announcement("m", MILAN_TCB, product=Product.MILAN, cpuid=None), host=evil, agent=evil[:60]
    )
    answer = mirror.ask(
        f"api/v1/hosts/Milan/{sent.hwid.hex()}",
        method="PUT",
        body=json.dumps(sent.to_json()).encode(),
        headers={"Authorization": f"Bearer {AGENT}"},
    )
    assert answer.status == 200, answer.text
    for target in ("", f"hosts/Milan/{sent.hwid.hex()}"):
        page.goto(f"{mirror.url}/{target}")
        page.get_by_text(evil).first.wait_for()
        assert "taken" not in page.title().replace(evil, "")
        assert page.locator("img").count() == 0
