# SPDX-License-Identifier: Apache-2.0
"""The site that ``make docs`` builds, in a real browser: light and dark, desktop and phone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT: Final = Path(__file__).parents[2]
LEAST: Final = 4.5  # WCAG 2.1, level AA: contrast of text that is not large
# This script returns the number of texts, the page's background colour, and, for each style with
# too little contrast between text and background, the number of texts in that style.
_TOO_FAINT: Final = r"""(least) => {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = (colour) => {
    const [red, green, blue] = numbers(colour).slice(0, 3).map((each) => {
      each /= 255;
      return each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      const found = numbers(colour);
      if (found.length < 4 || found[3] > 0.5) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = {};
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || style.visibility === "hidden") continue;
    if (!element.getClientRects().length) continue;
    texts += 1;
    const one = light(style.color), other = light(behind(element));
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < least) {
      const name = `${element.tagName}.${element.className} ${style.color} on ${behind(element)}`;
      faint[name] = (faint[name] || 0) + 1;
    }
  }
  return [texts, getComputedStyle(document.body).backgroundColor, faint];
}"""


@pytest.fixture(scope="module")
def site(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    del chromium  # nothing is built if there is no browser
    pytest.importorskip("sphinx", reason="no Sphinx: make docs installs it")
    pytest.importorskip("myst_parser", reason="no MyST: make docs installs it")
    out = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "-c", "docs/site", ".", str(out)],
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    return out


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(
    chromium: Browser, site: Path, scheme: Literal["light", "dark"], width: int
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    faint: dict[str, Any] = {}
    try:
        paths = sorted(site.glob("*.html")) + sorted(site.glob("docs/**/*.html"))
        assert len(paths) > 20
        for path in paths:
            page.goto(path.as_uri())
            texts, ground, found = page.evaluate(_TOO_FAINT, LEAST)
            assert texts > 20, path
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light"), path
            faint |= {f"{path.name}: {name}": count for name, count in found.items()}
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{path.name} is {wide} pixels wide"
    finally:
        context.close()
    assert faint == {}
