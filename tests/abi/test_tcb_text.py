# SPDX-License-Identifier: Apache-2.0
"""A TCB is read in every form that a command prints."""

from __future__ import annotations

import json

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import FormatError

MILAN = TcbVersion(4, 0, 24, 219)
TURIN = TcbVersion(1, 2, 3, 80, fmc=5)


@pytest.mark.parametrize(("tcb", "product"), [(MILAN, Product.MILAN), (TURIN, Product.TURIN)])
def test_every_printed_form_is_read_back(tcb: TcbVersion, product: Product) -> None:
    layout = product.tcb_layout
    for text in (str(tcb), json.dumps(tcb.components()), json.dumps(tcb.components(), indent=2)):
        assert TcbVersion.parse(text) == TcbVersion.parse(text, layout) == tcb
    for text in (tcb.pack().hex(), f"0x{tcb.pack().hex()}", tcb.pack().hex().upper()):
        assert TcbVersion.parse(text, layout) == tcb


def test_short_names_are_read() -> None:
    assert TcbVersion.parse("bl=4,tee=0,snp=24,ucode=219") == MILAN
    assert TcbVersion.parse("bl=4, tee=0, snp=24, ucode=219", Product.GENOA.tcb_layout) == MILAN


@pytest.mark.parametrize(
    ("text", "product", "message"),
    [
        ("", None, "cannot read"),
        ("bl=4,bl=4,tee=0,snp=24,ucode=219", None, "cannot read"),
        ("bl=4,bootloader=4,tee=0,snp=24,ucode=219", None, "cannot read"),
        ("bl=4,snp=24,ucode=219", None, "tee is missing"),
        ("bl=256,tee=0,snp=24,ucode=219", None, "expected 0 to 255"),
        (MILAN.pack().hex(), None, "their order depends on the product"),
        (str(TURIN), Product.MILAN, "has no fmc"),
        (str(MILAN), Product.TURIN, "needs fmc"),
    ],
)
def test_text_that_is_not_a_tcb_is_refused(
    text: str, product: Product | None, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        TcbVersion.parse(text, None if product is None else product.tcb_layout)
