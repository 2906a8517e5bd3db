# SPDX-License-Identifier: Apache-2.0
"""Declares the option ``--product``, and parses the names of products and processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from snpcerts.abi.processor_names import PROCESSORS
from snpcerts.abi.product import Product, product_of_cpuid, product_of_keyword

_CHOICE = click.Choice(
    [product.keyword for product in Product if product.is_pinned], case_sensitive=False
)


class ProductName(click.ParamType[str]):
    """The name of a product or processor, in upper or lower case: milan, Milan-B0 as in
    certificates, or Bergamo.
    """

    name = "product"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return the names of the products, for the help."""
        return _CHOICE.get_metavar(param, ctx)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the keyword of the product that ``value`` names. Bergamo and Siena count as Genoa,
        as on the key server.
        """
        word = value.strip().lower()
        processor = PROCESSORS.get(word.replace(" ", "-").replace("_", "-"))
        if processor is not None:
            found = product_of_cpuid(processor.family, processor.models[0])
            if found is not None:
                return found.keyword
        if product_of_keyword(word) is None and product_of_keyword(word.partition("-")[0]):
            word = word.partition("-")[0]
        product = product_of_keyword(word)
        if product is not None and not product.is_pinned:
            self.fail(product.unpinned_text, param, ctx)
        return str(_CHOICE.convert(word, param, ctx))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the product names that complete ``incomplete``."""
        return _CHOICE.shell_complete(ctx, param, incomplete)


_NAME = ProductName()


def product_option(text: str | None = None, *, required: bool = False) -> Callable[..., Any]:
    """Make a ``--product`` option, whose help is ``text``. Its value is a :class:`Product`, or None
    if the option is not given.
    """
    return click.option("--product", type=_NAME, callback=_product, required=required, help=text)


def _product(_context: click.Context, _option: click.Parameter, name: str | None) -> Product | None:
    return None if name is None else product_of_keyword(name)
