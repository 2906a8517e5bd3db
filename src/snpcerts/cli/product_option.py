# SPDX-License-Identifier: Apache-2.0
"""The ``--product`` option."""

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
    """A product in any case, its name in certificates (Milan-B0), or a processor's market name."""

    name = "product"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return the list of products for the help."""
        return _CHOICE.get_metavar(param, ctx)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the product's keyword. As on the key server, Bergamo and Siena count as Genoa."""
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
        """Return the products for completion."""
        return _CHOICE.shell_complete(ctx, param, incomplete)


_NAME = ProductName()


def product_option(text: str | None = None, *, required: bool = False) -> Callable[..., Any]:
    """Make a ``--product`` option. Its value is a :class:`Product`, or None if it is not given."""
    return click.option("--product", type=_NAME, callback=_product, required=required, help=text)


def _product(_context: click.Context, _option: click.Parameter, name: str | None) -> Product | None:
    return None if name is None else product_of_keyword(name)
