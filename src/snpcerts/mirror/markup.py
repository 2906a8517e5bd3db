# SPDX-License-Identifier: Apache-2.0
"""Builds HTML and SVG so that untrusted text cannot become markup.

Only the result of :func:`element` is markup. All other text, whether child or attribute, is made
printable and then escaped, so a host's name cannot even reverse the text after it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final, Self

from snpcerts.printable import printable

# Elements without content and end tag.
_VOID: Final = frozenset({"meta", "link", "input", "br"})


class Markup(str):
    """Text that is already markup."""

    __slots__ = ()

    @classmethod
    def trusted(cls, text: str) -> Self:
        """Return a constant of this package, such as a style sheet, as markup."""
        return cls(text)


Child = str | Iterable["Child"] | None


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    An attribute that is None or False is left out. An attribute that is True has no value. A
    trailing underscore in a name is dropped, and other underscores become dashes: ``class_``,
    ``aria_label``.
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
    """Join children into one piece of markup. Text is escaped."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(_escaped(children))
    return Markup("".join(joined(child) for child in children))


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=True)
