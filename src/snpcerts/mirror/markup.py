# SPDX-License-Identifier: Apache-2.0
"""Builds HTML and SVG so that untrusted text cannot become markup.

Only results of :func:`element` and constants of this package are markup. All other text, in
children or attributes, is made printable and then escaped, so that a host's name cannot even
reverse the direction of the text after it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final, Self

from snpcerts.printable import printable

# Elements that have neither content nor an end tag.
_VOID: Final = frozenset({"meta", "link", "input", "br"})


class Markup(str):
    """Text that is markup and is not escaped again."""

    __slots__ = ()

    @classmethod
    def trusted(cls, text: str) -> Self:
        """Return a constant of this package, such as a style sheet, as markup."""
        return cls(text)


Child = str | Iterable["Child"] | None


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return an HTML or SVG element.

    Attributes that are None or False are left out, and attributes that are True have no value. In
    an attribute's name, a trailing underscore is dropped and other underscores become dashes, as in
    ``class_`` and ``aria_label``.
    """
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = name.rstrip("_").replace("_", "-")
        parts.append(f" {spelled}" if value is True else f' {spelled}="{_escaped(str(value))}"')
    parts.append(">")
    if tag not in _VOID:
        parts += (joined(children), f"</{tag}>")
    return Markup("".join(parts))


def joined(children: Child) -> Markup:
    """Join children into one piece of markup, and escape those that are text."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(_escaped(children))
    return Markup("".join(joined(child) for child in children))


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=True)
