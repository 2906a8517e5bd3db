# SPDX-License-Identifier: Apache-2.0
"""The ``--product`` option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from snpcerts.abi.product import Product, product_of_keyword

_CHOICE = click.Choice([product.keyword for product in Product], case_sensitive=False)


def product_option(text: str | None = None, *, required: bool = False) -> Callable[..., Any]:
    """A ``--product`` whose value is a :class:`Product`, or None where it is not given."""
    return click.option("--product", type=_CHOICE, callback=_product, required=required, help=text)


def _product(_context: click.Context, _option: click.Parameter, name: str | None) -> Product | None:
    return None if name is None else product_of_keyword(name)
