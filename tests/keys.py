# SPDX-License-Identifier: Apache-2.0
"""RSA keys and emulated authorities, made once for a whole run of the suite.

Making an authority takes two seconds of processor time. The workers of pytest-xdist
are processes. One of them makes a key, and the others read it from a directory that
``tests/conftest.py`` makes for each run. The environment variable :data:`FOLDER` has its path.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.choices import FirmwareChoices
from snpcerts.emulator.psp.firmware import Firmware

FOLDER = "SNPCERTS_TEST_KEYS"


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a path in the directory. The first process to need it calls ``make`` to write it."""
    folder = Path(os.environ[FOLDER])
    path = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            new = folder / f"{name}.new"
            make(new)
            new.rename(path)
    return path


@functools.cache
def rsa_key(label: str, bits: int = 4096) -> rsa.RSAPrivateKey:
    """The key with that label: the same one for a whole run."""

    def generated() -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, bits)

    def write(path: Path) -> None:
        form = Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        path.write_bytes(generated().private_bytes(*form))

    if FOLDER not in os.environ:  # not run by pytest
        return generated()
    data = _once(f"rsa-{label}-{bits}.pem", write).read_bytes()
    key = load_pem_private_key(data, None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def _authority_folder(product: Product, name: str) -> Path:
    return _once(
        f"{product.name}-{name}",
        lambda path: EmulatedAuthority.create(product, one_key=name != "first").save(path),
    )


@functools.cache
def authority_of(product: Product, name: str = "first") -> EmulatedAuthority:
    """The emulated authority with this product and name. Only "first" has a key for each role."""
    return EmulatedAuthority.load(_authority_folder(product, name))


def prepare_platform(
    directory: Path, product: Product = Product.MILAN, choices: FirmwareChoices | None = None
) -> None:
    """Make a platform as ``snpcerts emulate`` does, with a new chip and the first authority."""
    home = PlatformHome(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(_authority_folder(product, "first"), directory / "authority")
    home.save(Firmware(Chip.create(product), choices=choices))
