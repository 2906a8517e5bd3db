# SPDX-License-Identifier: Apache-2.0
"""``python quick_demo.py ...`` is ``snpcerts demo ...`` with the test run's emulated authority.

Creating a new authority takes seconds of processor time.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

    from snpcerts.__main__ import run
    from snpcerts.abi.product import Product
    from snpcerts.emulator.amd.authority import EmulatedAuthority
    from tests.keys import authority_of

    made = {Product.MILAN: authority_of(Product.MILAN)}
    EmulatedAuthority.create = made.__getitem__  # type: ignore[assignment, method-assign]  # here alone
    sys.argv[1:1] = ["demo"]
    run()
