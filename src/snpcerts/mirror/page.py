# SPDX-License-Identifier: Apache-2.0
"""Writes the frame of the mirror's pages, and the parts that pages share.

Each page is one HTML document that loads no scripts, styles, fonts or images from elsewhere. It
contains its own style sheet and script, which the Content-Security-Policy permits by their hashes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Final

from snpcerts.abi.product import Product
from snpcerts.mirror.fleet_view import EXPIRES_SOON, HostState, span
from snpcerts.mirror.markup import Child, Markup, element

MARKS: Final = {
    HostState.WRONG: "✕",
    HostState.SILENT: "…",
    HostState.EMPTY: "○",
    HostState.BEHIND: "↑",
    HostState.IN_STEP: "✓",
}


@functools.cache
def _asset(name: str) -> Markup:
    return Markup.trusted(files("snpcerts.mirror").joinpath(name).read_text(encoding="utf-8"))


def _hash(name: str) -> str:
    digest = hashlib.sha256(_asset(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


_ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 10 10'%3E"
    "%3Crect width='10' height='10' rx='2' fill='%2315805c'/%3E%3Cpath d='M2.5 5l2 2 3-4' "
    "fill='none' stroke='white' stroke-width='1.3'/%3E%3C/svg%3E"
)


@functools.cache
def page_headers() -> dict[str, str]:
    """Return the HTTP headers of every page.

    The headers forbid loading anything from elsewhere, and showing the page in another site's
    frame.
    """
    policy = (
        "default-src 'none'",
        f"style-src {_hash('page.css')}",
        f"script-src {_hash('page.js')}",
        "connect-src 'self'",
        "img-src data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def document(title: str, now: datetime, main: Markup, footer: Markup | None, home: str) -> str:
    """Return a page as a whole HTML document. ``home`` is the relative URL of the fleet's page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("noscript", element("meta", http_equiv="refresh", content="15")),
        element("title", f"{title} - snpcerts mirror"),
        element("link", rel="icon", href=_ICON),
        element("style", _asset("page.css")),
    )
    header = element(
        "header",
        element("a", "snpcerts mirror", class_="name", href=home),
        element("span", f"as of {now:%Y-%m-%d %H:%M:%S} UTC", class_="when"),
        element("span", "the mirror does not answer", class_="lost"),
    )
    body = element("body", header, main, footer, element("script", _asset("page.js")))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def badge(state: HostState, text: str | None = None) -> Markup:
    """Return a label in a state's colour. The label's text is the state by default."""
    shown = f"{MARKS[state]} {state.value if text is None else text}"
    return element("span", shown, class_=f"badge {state.slug}")


def section(title: str, *children: Child, id_: str | None = None) -> Markup:
    """Return a section of a page, with a title."""
    return element("section", element("h2", title), *children, id=id_)


def definitions(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Return a list of names and values, as HTML."""
    return element("dl", ((element("dt", name), element("dd", value)) for name, value in pairs))


def processor_text(product: Product, processors: Sequence[str]) -> str:
    """Return the code names of a processor, or the product if the processor is unknown."""
    names = " or ".join(name.title() for name in processors)
    return names or f"{product.value}, processor not announced"


def in_time(at: datetime, now: datetime) -> Markup:
    """Return the time that is left until ``at``, in words, and in a colour if little is left."""
    left = at - now
    if left < timedelta(0):
        return element("span", "expired", class_="wrong")
    soon = left < EXPIRES_SOON
    text = f"{left.days} days" if left >= timedelta(days=2) else span(left)
    return element("span", text, class_="behind" if soon else "soft")
