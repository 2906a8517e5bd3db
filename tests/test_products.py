# SPDX-License-Identifier: Apache-2.0
"""Two tables hold each product's facts, in one row each; all lists of products are complete."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from snpcerts import schemas
from snpcerts.abi.product import Product, product_of_cpuid, product_of_keyword
from snpcerts.cli.main import cli
from snpcerts.emulator.psp.chip_model import CHIP_MODELS
from snpcerts.endorsement.anchors import AMD_ANCHORS
from snpcerts.verify.policy import TcbFloor

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "snpcerts"
SCHEMAS = sorted(Path(schemas.__file__).parent.glob("*.json"))
NAMES = [product.value for product in Product]
PINNED = [product for product in Product if product.is_pinned]
KEYWORDS = [product.keyword for product in Product]
# Only these files may name a member of Product or TcbLayout: those with a table by product or by
# layout, and those that choose the emulator's default product.
MAY_NAME_A_PRODUCT = {
    "abi/product.py",
    "abi/tcb.py",
    "conformance/suite.py",
    "demo/stage.py",
    "emulator/amd/leaf_extensions.py",
    "emulator/machine/home.py",
    "emulator/psp/chip_model.py",
    "endorsement/vek.py",
}


@pytest.mark.parametrize("product", Product)
def test_a_product_has_its_facts(product: Product) -> None:
    for family, first, last in product.models:
        assert product_of_cpuid(family, first) is product
        assert product_of_cpuid(family, last) is product
    assert len(product.ark_spki_sha384 or bytes(48)) == 48
    assert product.hwid_size <= 64
    assert [anchor.product for anchor in AMD_ANCHORS].count(product) == product.is_pinned
    assert product_of_keyword(product.value) is product


@pytest.mark.parametrize("product", PINNED)
def test_the_emulator_models_a_processor_of_each_product(product: Product) -> None:
    model = CHIP_MODELS[product]
    assert product_of_cpuid(model.cpuid.family, model.cpuid.model) is product
    assert product.tcb_problem(model.tcb) is None
    assert model.vcek_product_name.startswith(product.value)
    assert min(model.firmware) >= product.oldest_report_version


def test_chip_ids_of_one_length_have_tcbs_of_one_layout() -> None:
    """Only the chip ID in a version 2 report tells which layout its TCBs have."""
    layouts: dict[int, set[object]] = {}
    for product in PINNED:
        layouts.setdefault(product.hwid_size, set()).add(product.tcb_layout)
    assert all(len(each) == 1 for each in layouts.values())


def test_a_policy_has_a_floor_for_each_product() -> None:
    assert [field.name for field in dataclasses.fields(TcbFloor)] == KEYWORDS


def enumerations(value: Any) -> Iterator[list[Any]]:
    """Every list of allowed values in a schema that contains the products' names."""
    if isinstance(value, dict):
        if NAMES[0] in value.get("enum", ()):
            yield value["enum"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from enumerations(each)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_a_schema_that_names_products_names_all(path: Path) -> None:
    for found in enumerations(json.loads(path.read_text(encoding="utf-8"))):
        assert [name for name in found if name is not None] == NAMES


def product_options(command: click.Command) -> Iterator[click.Parameter]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from product_options(found)
    yield from (each for each in command.params if each.name == "product")


def test_every_product_option_takes_each_product_in_any_case() -> None:
    found = list(product_options(cli))
    assert found
    context = click.Context(cli)
    for option in found:
        for product in PINNED:
            for text in (product.value, product.keyword, product.name):
                assert option.process_value(context, text) is product


def test_the_example_configuration_lists_the_products() -> None:
    text = (ROOT / "src/snpcerts/host/system_files/snpcerts.toml").read_text(encoding="utf-8")
    listed = re.search(r"^# product = .*# (.*); default", text, re.MULTILINE)
    assert listed is not None
    assert re.findall(r"\w+", listed[1].replace(" or ", " ")) == [
        product.keyword for product in PINNED
    ]


def test_no_other_file_decides_by_a_product() -> None:
    names = "|".join(product.name for product in Product)
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(rf"\b(?:Product|TcbLayout)\.(?:{names})\b", path.read_text(encoding="utf-8"))
    }
    assert found == MAY_NAME_A_PRODUCT
