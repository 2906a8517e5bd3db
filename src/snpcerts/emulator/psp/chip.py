# SPDX-License-Identifier: Apache-2.0
"""A chip's secret, and the keys derived from it.

Real chips derive the VCEK from fused secrets and the TCB_VERSION by a chain of hashes that AMD has
not published. The emulator uses HKDF-SHA384 instead, and keeps the essential property: each pair of
chip and TCB has its own key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from snpcerts.abi.product import CHIP_ID_SIZE, Product, hwid_of_chip_id
from snpcerts.abi.psp import SevStatus, WrappedVlekHashstick
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.psp.error import FirmwareError
from snpcerts.errors import UsageError

SECRET_SIZE = 32
HASHSTICK_SIZE = 48  # our format; AMD's is opaque and fills all 384 bytes
CACHED_KEYS = 32

_P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)


def derive(secret: bytes, purpose: str, context: bytes, size: int) -> bytes:
    """Derive ``size`` bytes from ``secret`` with HKDF-SHA384; every argument affects the result."""
    info = b"snpcerts emulator, " + purpose.encode() + b"\0" + context
    return HKDF(algorithm=SHA384(), length=size, salt=None, info=info).derive(secret)


def _signing_key(secret: bytes, purpose: str, context: bytes) -> ec.EllipticCurvePrivateKey:
    # 24 bytes longer than the curve's order, so that the bias of the reduction is negligible.
    wide = int.from_bytes(derive(secret, purpose, context, 72), "big")
    return ec.derive_private_key(wide % (_P384_ORDER - 1) + 1, ec.SECP384R1())


def _checked_secret(secret: bytes) -> None:
    if len(secret) != SECRET_SIZE:
        raise UsageError(f"secret: expected {SECRET_SIZE} bytes, found {len(secret)}")


def _checked_layout(tcb: TcbVersion, product: Product) -> None:
    if tcb.layout is not product.tcb_layout:
        raise UsageError(f"TCB {tcb} does not have {product.value}'s TCB layout")


class Chip:
    """One chip: its product, its chip ID and its secret.

    ``secret`` is 32 bytes; everything else is derived from it and the product.
    Thread-safe.
    """

    __slots__ = ("_vcek", "chip_id", "product", "secret")

    def __init__(self, product: Product, secret: bytes) -> None:
        _checked_secret(secret)
        self.product = product
        self.secret = secret
        hwid = derive(secret, "chip ID", product.value.encode(), product.hwid_size)
        self.chip_id = hwid.ljust(CHIP_ID_SIZE, b"\0")
        self._vcek = lru_cache(maxsize=CACHED_KEYS)(self._derive_vcek)

    @classmethod
    def create(cls, product: Product) -> Self:
        """Return a chip with a new random secret."""
        return cls(product, os.urandom(SECRET_SIZE))

    def __repr__(self) -> str:
        return f"Chip({self.product.value}, hwid={self.hwid.hex()})"

    @property
    def hwid(self) -> bytes:
        """The significant bytes of ``chip_id``: all 64, or the first 8 on Turin and Venice."""
        return hwid_of_chip_id(self.chip_id, self.product)

    def vcek_key(self, tcb: TcbVersion) -> ec.EllipticCurvePrivateKey:
        """Return the private key of the chip's VCEK for ``tcb``.

        Raises :class:`UsageError` when ``tcb`` has another product's layout.
        """
        return self._vcek(tcb)

    def sev_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Return the platform's SEV key called ``name``, which is CEK, OCA, PEK or PDH.

        Real firmware has commands that replace OCA, PEK and PDH. Here they never change.
        """
        return _signing_key(self.secret, f"SEV {name}", b"")

    def guest_key_root(self, tcb: TcbVersion) -> bytes:
        """Return 48 bytes: the root of guest keys that are derived from the VCEK at ``tcb``."""
        return derive(self.secret, "guest key root", tcb.pack(), 48)

    @property
    def provider_seed(self) -> bytes:
        """The 48 bytes from which the emulated AMD, which certifies this platform's keys, derives
        the VLEK seeds of cloud providers.
        """
        return derive(self.secret, "guest key root", b"", 48)

    def unwrap_vlek(self, blob: bytes, vcek_tcb: TcbVersion) -> bytes:
        """Unwrap a wrapped hashstick (432 bytes) made for this chip; return the hashstick (48
        bytes).

        The wrapping key is derived from the VCEK of ``vcek_tcb``. Raises :class:`FirmwareError` if
        the tag does not verify: ``blob`` is damaged, or was made for another chip or TCB.
        """
        stick = WrappedVlekHashstick.unpack(blob)
        try:
            content = AESGCM(self._wrapping_key(vcek_tcb)).decrypt(
                stick.iv, stick.wrapped + stick.tag, stick.tcb_version + stick.rsvd2
            )
        except InvalidTag:
            raise FirmwareError(
                SevStatus.BAD_MEASUREMENT,
                "the VLEK hashstick is refused: its tag does not verify for this chip and TCB",
            ) from None
        return content[:HASHSTICK_SIZE]

    def wrap_vlek(self, hashstick: bytes, tcb: TcbVersion) -> bytes:
        """Wrap ``hashstick`` (48 bytes) for this chip at ``tcb``, as AMD does; return 432 bytes."""
        _checked_layout(tcb, self.product)
        iv, plain_tcb = os.urandom(12), tcb.pack()
        sealed = AESGCM(self._wrapping_key(tcb)).encrypt(
            iv, hashstick.ljust(384, b"\0"), plain_tcb + bytes(8)
        )
        return WrappedVlekHashstick(
            iv=iv, wrapped=sealed[:384], tcb_version=plain_tcb, tag=sealed[384:]
        ).pack()

    def _wrapping_key(self, tcb: TcbVersion) -> bytes:
        return derive(self.secret, "VLEK wrapping key", tcb.pack(), 32)

    def _derive_vcek(self, tcb: TcbVersion) -> ec.EllipticCurvePrivateKey:
        _checked_layout(tcb, self.product)
        return _signing_key(self.secret, "VCEK", tcb.pack())


@dataclass(frozen=True, slots=True)
class LoadedVlek:
    """A VLEK hashstick loaded into the firmware: its TCB and its 48 secret bytes."""

    tcb: TcbVersion
    hashstick: bytes = field(repr=False)

    def key(self) -> ec.EllipticCurvePrivateKey:
        """Return the private key of the VLEK."""
        return _vlek_of_hashstick(self.hashstick)


@lru_cache(maxsize=CACHED_KEYS)
def _vlek_of_hashstick(hashstick: bytes) -> ec.EllipticCurvePrivateKey:
    return _signing_key(hashstick, "VLEK", b"")


@dataclass(frozen=True, slots=True)
class CloudProvider:
    """One cloud provider's VLEK seed for one product, as AMD keeps it.

    ``csp_id`` is the value of the certificate's cspID extension, such as
    ``CN=cc-us-east-2.amazonaws.com``; ``secret`` is 32 bytes. At one TCB, all chips of the provider
    have the same VLEK.
    """

    csp_id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _checked_secret(self.secret)

    @classmethod
    def create(cls, csp_id: str) -> Self:
        """Return a provider with a new random seed."""
        return cls(csp_id, os.urandom(SECRET_SIZE))

    def vlek_key(self, tcb: TcbVersion) -> ec.EllipticCurvePrivateKey:
        """Return the private key of the provider's VLEK at ``tcb``."""
        return _vlek_of_hashstick(self._hashstick(tcb))

    def hashstick_for(self, chip: Chip, tcb: TcbVersion) -> bytes:
        """Return the wrapped hashstick (432 bytes) for ``chip``. SNP_VLEK_LOAD accepts it while the
        reported TCB is ``tcb``.
        """
        return chip.wrap_vlek(self._hashstick(tcb), tcb)

    def _hashstick(self, tcb: TcbVersion) -> bytes:
        context = tcb.layout.value.encode() + b"\0" + tcb.pack()
        return derive(self.secret, "VLEK hashstick", context, HASHSTICK_SIZE)
