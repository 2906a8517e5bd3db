# SPDX-License-Identifier: Apache-2.0
"""A certificate authority for tests, in AMD's formats, with control of every byte.

Certificates are put together in DER here, so that tests can make those that a
library refuses to build: those with serial number 0, a repeated extension, or two
different algorithm identifiers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from snpcerts.abi.product import Product
from snpcerts.abi.report import ReportLayout, SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import AMD_ARC, VekKind
from tests.keys import rsa_key

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
START = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2030, 1, 1, tzinfo=UTC)

PINNED = tuple(product for product in Product if product.is_pinned)
CPUID = {Product.MILAN: (0x19, 1), Product.GENOA: (0x19, 0x11), Product.TURIN: (0x1A, 2)}
TCBS = {
    Product.MILAN: TcbVersion(4, 0, 24, 219),
    Product.GENOA: TcbVersion(10, 0, 23, 84),
    Product.TURIN: TcbVersion(1, 1, 4, 81, fmc=1),
}


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 + len(length))) + length + content


def integer(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def ia5(text: str) -> bytes:
    return der(0x16, text.encode("ascii"))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        out += bytes(reversed(groups))
    return der(0x06, bytes(out))


def pss_algorithm(
    *, salt: int = 48, digest: str = "2.16.840.1.101.3.4.2.2", trailer: bool = True
) -> bytes:
    """The AlgorithmIdentifier of RSASSA-PSS; by default as AMD writes it."""
    hash_id = der(0x30, oid(digest), b"\x05\x00")
    mgf1 = der(0x30, oid("1.2.840.113549.1.1.8"), hash_id)
    parts = [der(0xA0, hash_id), der(0xA1, mgf1), der(0xA2, integer(salt))]
    if trailer:
        parts.append(der(0xA3, integer(1)))
    return der(0x30, oid("1.2.840.113549.1.1.10"), der(0x30, *parts))


AMD_ALGORITHM = pss_algorithm()


def name(common_name: str) -> bytes:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Not AMD"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    ).public_bytes()


@functools.cache
def ec_key(label: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Extension = tuple[str, bool, bytes]  # OID, critical, value

KEY_USAGE = "2.5.29.15"
BASIC_CONSTRAINTS = "2.5.29.19"
CERT_SIGN = der(0x03, b"\x02\x04")
CRL_SIGN = der(0x03, b"\x01\x06")  # keyCertSign and cRLSign


def authority_extensions(
    path_length: int | None, usage: bytes = CERT_SIGN
) -> tuple[Extension, ...]:
    limit = b"" if path_length is None else integer(path_length)
    return (
        (KEY_USAGE, True, usage),
        (BASIC_CONSTRAINTS, True, der(0x30, b"\x01\x01\xff", limit)),
    )


@dataclass(frozen=True)
class Recipe:
    """How to make a certificate."""

    subject: str
    issuer: str
    key: Key
    signer: Key
    extensions: tuple[Extension, ...] = ()
    serial: int = 1
    version: int = 2  # v3
    not_before: datetime = START
    not_after: datetime = END
    inner: bytes = AMD_ALGORITHM
    outer: bytes = AMD_ALGORITHM
    salt: int = 48

    def but(self, **changes: object) -> Recipe:
        return replace(self, **changes)  # type: ignore[arg-type]  # names are checked at run time

    def with_extension(self, dotted: str, value: bytes, critical: bool = False) -> Recipe:
        """Return this recipe with that extension added or replaced."""
        kept = [each for each in self.extensions if each[0] != dotted]
        return self.but(extensions=(*kept, (dotted, critical, value)))

    def without_extension(self, dotted: str) -> Recipe:
        return self.but(extensions=tuple(e for e in self.extensions if e[0] != dotted))

    def make(self) -> bytes:
        """The certificate, in DER."""
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        parts = [
            der(0xA0, integer(self.version)),
            integer(self.serial),
            self.inner,
            name(self.issuer),
            der(0x30, _time(self.not_before), _time(self.not_after)),
            name(self.subject),
            spki,
        ]
        if self.extensions:
            parts.append(der(0xA3, der(0x30, *map(_extension, self.extensions))))
        tbs = der(0x30, *parts)
        return der(0x30, tbs, self.outer, der(0x03, b"\0", self._sign(tbs)))

    def _sign(self, tbs: bytes) -> bytes:
        return _signature(tbs, self.signer, self.salt)


def _signature(tbs: bytes, signer: Key, salt: int) -> bytes:
    if isinstance(signer, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA384()), salt)
        return signer.sign(tbs, pss, hashes.SHA384())
    return signer.sign(tbs, ec.ECDSA(hashes.SHA384()))


def _time(when: datetime) -> bytes:
    return der(0x17, when.strftime("%y%m%d%H%M%SZ").encode())


def _extension(extension: Extension) -> bytes:
    dotted, critical, value = extension
    return der(0x30, oid(dotted), b"\x01\x01\xff" if critical else b"", der(0x04, value))


def amd_extensions(
    kind: VekKind, product: Product, tcb: TcbVersion, hwid: bytes, csp_id: str
) -> tuple[Extension, ...]:
    """AMD's extensions of a leaf, in AMD's order."""
    turin = product is Product.TURIN
    named = tcb.components()
    spls = {"3.1": named["bootloader"], "3.2": tcb.tee, "3.3": tcb.snp, "3.8": named["microcode"]}
    spls |= {"3.5": 0, "3.6": 0, "3.7": 0}
    spls |= {"3.9": named.get("fmc", 0)} if turin else {"3.4": 0}
    values = {"1": integer(int(turin)), "2": ia5(product.value)}
    values |= {suffix: integer(value) for suffix, value in spls.items()}
    values |= {"4": hwid} if kind is VekKind.VCEK else {"5": ia5(csp_id)}
    return tuple((f"{AMD_ARC}.{suffix}", False, value) for suffix, value in values.items())


@dataclass(frozen=True)
class SmallCa:
    """Recipes for a whole chain of one product, and reports signed with its leaf."""

    product: Product = Product.MILAN
    kind: VekKind = VekKind.VCEK
    suffix: str = " TEST"
    chip_id: bytes = field(default=bytes(range(1, 65)))
    tcb: TcbVersion | None = None
    ark_key: str = "ark"
    ask_key: str = "ask"

    @property
    def _tcb(self) -> TcbVersion:
        return self.tcb or TCBS[self.product]

    @property
    def _ark_name(self) -> str:
        return f"ARK-{self.product.value}{self.suffix}"

    @property
    def _ask_name(self) -> str:
        prefix = "SEV" if self.kind is VekKind.VCEK else "SEV-VLEK"
        return f"{prefix}-{self.product.value}{self.suffix}"

    @property
    def ark(self) -> Recipe:
        key = rsa_key(self.ark_key)
        return Recipe(
            self._ark_name, self._ark_name, key, key, authority_extensions(None, CRL_SIGN)
        )

    @property
    def ask(self) -> Recipe:
        key, signer = rsa_key(self.ask_key), rsa_key(self.ark_key)
        return Recipe(self._ask_name, self._ark_name, key, signer, authority_extensions(0))

    @property
    def leaf(self) -> Recipe:
        hwid = self.chip_id[: self.product.hwid_size]
        extensions = amd_extensions(self.kind, self.product, self._tcb, hwid, "CN=cloud")
        return Recipe(
            self.kind.common_name,
            self._ask_name,
            ec_key("vek"),
            rsa_key(self.ask_key),
            extensions,
            serial=0,
        )

    @property
    def report_chip_id(self) -> bytes:
        return self.chip_id[: self.product.hwid_size].ljust(64, b"\0")

    def report(self, version: int = 3, **fields: object) -> bytes:
        """A report of this chip, signed with the leaf's key; fields as given."""
        family, model = CPUID[self.product] if version > 2 else (0, 0)
        tcb = self._tcb.pack()
        key = SigningKey.VCEK if self.kind is VekKind.VCEK else SigningKey.VLEK
        values: dict[str, object] = {
            "version": version,
            "policy": 0x30000,
            "signature_algo": 1,
            "flags": key << 2,
            "cpuid_family": family,
            "cpuid_model": model,
            "chip_id": self.report_chip_id,
            "current_tcb": tcb,
            "reported_tcb": tcb,
            "committed_tcb": tcb,
            "launch_tcb": tcb,
        }
        return sign_report(ReportLayout(**(values | fields)).pack())  # type: ignore[arg-type]


def sign_report(data: bytes, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """Return the report with a new signature by ``key``, or by the key of the leaf."""
    signature = (key or ec_key("vek")).sign(data[:0x2A0], ec.ECDSA(hashes.SHA384()))
    return with_signature(data, *decode_dss_signature(signature))


def with_signature(data: bytes, r: int, s: int) -> bytes:
    """The report with that signature; each number little-endian in 72 bytes."""
    parts = (value.to_bytes(72, "little") for value in (r, s))
    return data[:0x2A0] + b"".join(parts) + bytes(0x170)


def flipped(data: bytes, index: int, bit: int = 0) -> bytes:
    """Return the bytes with one bit flipped."""
    return data[:index] + bytes((data[index] ^ 1 << bit,)) + data[index + 1 :]


def every(data: bytes, step: int) -> Iterable[int]:
    """Every ``step``-th index, the first and the last among them."""
    return sorted({*range(0, len(data), step), len(data) - 1})


@dataclass(frozen=True)
class CrlRecipe:
    """How to make a revocation list of an authority's ARK."""

    ca: SmallCa = field(default_factory=SmallCa)
    revoked: tuple[int, ...] = ()
    issuer: str | None = None
    signer: Key | None = None
    this_update: datetime = START
    next_update: datetime | None = END
    inner: bytes = AMD_ALGORITHM
    outer: bytes = AMD_ALGORITHM
    salt: int = 48
    version: int | None = 1  # v2
    extensions: tuple[Extension, ...] = ()
    entry_extensions: tuple[Extension, ...] = ()
    unused_bits: int = 0

    def but(self, **changes: object) -> CrlRecipe:
        return replace(self, **changes)  # type: ignore[arg-type]  # names are checked at run time

    def make(self) -> bytes:
        """The list, in DER."""
        parts = [] if self.version is None else [integer(self.version)]
        parts += [self.inner, name(self.issuer or self.ca.ark.subject), _time(self.this_update)]
        if self.next_update is not None:
            parts.append(_time(self.next_update))
        if self.revoked:
            parts.append(der(0x30, *map(self._entry, self.revoked)))
        number: Extension = ("2.5.29.20", False, integer(1))
        extensions = (number, *self.extensions)
        parts.append(der(0xA0, der(0x30, *map(_extension, extensions))))
        tbs = der(0x30, *parts)
        signer = self.signer or rsa_key(self.ca.ark_key)
        signature = _signature(tbs, signer, self.salt)
        return der(0x30, tbs, self.outer, der(0x03, bytes((self.unused_bits,)), signature))

    def _entry(self, serial: int) -> bytes:
        parts = [integer(serial), _time(self.this_update)]
        if self.entry_extensions:
            parts.append(der(0x30, *map(_extension, self.entry_extensions)))
        return der(0x30, *parts)
