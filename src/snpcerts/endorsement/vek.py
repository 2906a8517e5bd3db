# SPDX-License-Identifier: Apache-2.0
"""Reads VCEK and VLEK certificates: which key, product and TCB they certify.

Source: KDS (57230) chapter 3, "VCEK certificate format" and the same for VLEKs, checked against
genuine certificates. The values are X.509 extensions below 1.3.6.1.4.1.3704.1:

=======  ============  =========================================
suffix   name          value
=======  ============  =========================================
.1       structVersion INTEGER: 0 (Milan, Genoa) or 1 (Turin)
.2       productName   IA5String
.3.1     blSPL         INTEGER 0 to 255, like all SPLs
.3.2     teeSPL
.3.3     snpSPL
.3.4     SPL4          always 0; structVersion 0 only
.3.5-7   SPL5 to SPL7  always 0
.3.8     ucodeSPL
.3.9     fmcSPL        structVersion 1 only
.4       hwID          bare bytes, 64 or 8 (Turin); VCEK only
.5       cspID         IA5String; VLEK only
=======  ============  =========================================

No released source (virtee/sev 8.0.0, snpguest, snphost, google/go-sev-guest, Trustee; autumn 2026)
says which structVersion and which SPLs a certificate for Venice has. The only public source for the
parameters of its URL is virtee/snpguest pull request 159, which is not merged.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from snpcerts.abi.product import Product, product_of_name
from snpcerts.abi.tcb import TcbLayout, TcbVersion
from snpcerts.endorsement.certificate import Certificate, load_certificate
from snpcerts.endorsement.der import read_byte_integer, read_ia5_string, read_octet_string
from snpcerts.errors import FormatError

AMD_ARC = "1.3.6.1.4.1.3704.1"

_BELOW_AMD_ARC = f"{AMD_ARC}."

STRUCT_VERSION = f"{AMD_ARC}.1"
PRODUCT_NAME = f"{AMD_ARC}.2"
HWID = f"{AMD_ARC}.4"
CSP_ID = f"{AMD_ARC}.5"

_NAMES = {
    STRUCT_VERSION: "structVersion",
    PRODUCT_NAME: "productName",
    f"{AMD_ARC}.3.1": "blSPL",
    f"{AMD_ARC}.3.2": "teeSPL",
    f"{AMD_ARC}.3.3": "snpSPL",
    f"{AMD_ARC}.3.4": "SPL4",
    f"{AMD_ARC}.3.5": "SPL5",
    f"{AMD_ARC}.3.6": "SPL6",
    f"{AMD_ARC}.3.7": "SPL7",
    f"{AMD_ARC}.3.8": "ucodeSPL",
    f"{AMD_ARC}.3.9": "fmcSPL",
    HWID: "hwID",
    CSP_ID: "cspID",
}
_NAMES_BY_OID = {x509.ObjectIdentifier(oid): name for oid, name in _NAMES.items()}
_COMPONENTS = {
    "blSPL": "bootloader",
    "teeSPL": "tee",
    "snpSPL": "snp",
    "ucodeSPL": "microcode",
    "fmcSPL": "fmc",
}
# The SPLs of each structVersion, and its TCB layout.
_SPLS = {
    0: ("blSPL", "teeSPL", "snpSPL", "SPL4", "SPL5", "SPL6", "SPL7", "ucodeSPL"),
    1: ("fmcSPL", "blSPL", "teeSPL", "snpSPL", "SPL5", "SPL6", "SPL7", "ucodeSPL"),
}
_LAYOUTS = {0: TcbLayout.MILAN, 1: TcbLayout.TURIN}

# The maximum length of names, which appear in verdicts and logs.
_MAX_TEXT = 256


class VekKind(enum.Enum):
    """The kind of endorsement key that a leaf certifies."""

    VCEK = "vcek"  # of one chip
    VLEK = "vlek"  # of one cloud provider

    @property
    def common_name(self) -> str:
        """The common name in the subject of such a leaf."""
        return f"SEV-{self.name}"


@dataclass(frozen=True, slots=True)
class EndorsementCert:
    """A parsed VCEK or VLEK certificate.

    ``hwid`` is the chip ID (64 bytes, or 8 on Turin) of a VCEK, and ``csp_id`` names the cloud
    provider of a VLEK; for the other kind they are None. Whether the certificate is genuine is not
    checked here but by :mod:`snpcerts.endorsement.chain`.
    """

    certificate: Certificate
    kind: VekKind
    product: Product
    product_name: str
    tcb: TcbVersion
    hwid: bytes | None
    csp_id: str | None
    public_key: ec.EllipticCurvePublicKey

    def __reduce__(self) -> tuple[Callable[[bytes], EndorsementCert], tuple[bytes]]:
        """Pickle the bytes and parse them again, because the library's objects cannot be
        pickled.
        """
        return _read_again, (self.certificate.der,)

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "VCEK or VLEK") -> Self:
        """Parse a certificate in DER or PEM, and read its AMD extensions. Raises
        :class:`FormatError` if the certificate or an extension is malformed.
        """
        return cls.from_certificate(load_certificate(data, what))

    @classmethod
    def from_certificate(
        cls, certificate: Certificate, key: ec.EllipticCurvePublicKey | None = None
    ) -> Self:
        """Read the AMD extensions of a parsed certificate. ``key`` is the certificate's key, if the
        caller has already checked it.

        Raises :class:`FormatError`, which names the extension, if an AMD extension is missing,
        unknown, of the wrong type, out of range, or not allowed in this leaf. Also raises it if the
        key is not on P-384.
        """
        kind = _kind(certificate)
        what = kind.name
        values = _amd_extensions(certificate, what)

        def required(name: str) -> bytes:
            if name not in values:
                raise FormatError(what, "the extension is missing", field=name)
            return values.pop(name)

        def text(name: str) -> str:
            value = read_ia5_string(required(name), f"{what} {name}")
            if len(value) > _MAX_TEXT:
                raise FormatError(
                    what, f"expected at most {_MAX_TEXT} characters, found {len(value)}", field=name
                )
            return value

        product_name = text("productName")
        product = product_of_name(product_name)
        if product is None:
            raise FormatError(
                what,
                f"expected the name of a known product, found {product_name!r}",
                field="productName",
            )
        if not product.is_pinned:
            raise FormatError(what, product.unpinned_text, field="productName")
        tcb = _tcb(required, product, what)
        hwid = csp_id = None
        if kind is VekKind.VCEK:
            hwid = _hwid(required("hwID"), product, what)
        else:
            csp_id = text("cspID")
        for name in values:
            raise FormatError(
                what, f"the extension is not allowed in a {product.value} {what}", field=name
            )
        return cls(
            certificate,
            kind,
            product,
            product_name,
            tcb,
            hwid,
            csp_id,
            p384_key(certificate, what) if key is None else key,
        )


@functools.lru_cache(maxsize=256)
def _read_again(der: bytes) -> EndorsementCert:
    return EndorsementCert.from_bytes(der)


def p384_key(certificate: Certificate, what: str) -> ec.EllipticCurvePublicKey:
    """Return a certificate's key. Raises :class:`FormatError` if it is not an EC key on P-384."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return key
    found = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    raise FormatError(what, f"expected an EC P-384 key, found {found}", field="public key")


def is_amd_extension(oid: x509.ObjectIdentifier) -> bool:
    """Return whether ``oid`` identifies one of AMD's extensions for endorsement keys."""
    return oid.dotted_string.startswith(_BELOW_AMD_ARC)


def _kind(certificate: Certificate) -> VekKind:
    cn = certificate.subject_common_name
    for kind in VekKind:
        if cn == kind.common_name:
            return kind
    names = " or ".join(kind.common_name for kind in VekKind)
    raise FormatError("leaf certificate", f"expected {names} as the common name, found {cn!r}")


def _amd_extensions(certificate: Certificate, what: str) -> dict[str, bytes]:
    """Return the raw values of AMD's extensions by name. Duplicates have already been refused."""
    values: dict[str, bytes] = {}
    for oid, _, value in certificate.extensions:
        name = _NAMES_BY_OID.get(oid)
        if name is not None:
            values[name] = value
        elif is_amd_extension(oid):
            raise FormatError(
                what,
                "the extension is unknown, although its OID is one of AMD's",
                field=oid.dotted_string,
            )
    return values


def _tcb(required: Callable[[str], bytes], product: Product, what: str) -> TcbVersion:
    version = read_byte_integer(required("structVersion"), what, "structVersion")
    if _LAYOUTS.get(version) is not product.tcb_layout:
        raise FormatError(
            what,
            f"expected a version that {product.value} certificates use, found {version}",
            field="structVersion",
        )
    components: dict[str, int] = {}
    for name in _SPLS[version]:
        value = read_byte_integer(required(name), what, name)
        if name in _COMPONENTS:
            components[_COMPONENTS[name]] = value
        elif value:
            raise FormatError(what, f"expected 0, found {value}", field=name)
    return TcbVersion.of(components)


def _hwid(value: bytes, product: Product, what: str) -> bytes:
    """Return the chip ID in an extension's value, which is bare bytes or an OCTET STRING.

    The length shows which of the two it is. The first byte cannot show it, because a bare ID may
    start with any byte.
    """
    size = product.hwid_size
    if len(value) == size:
        return value
    inner = read_octet_string(value, f"{what} hwID")
    if len(inner) != size:
        raise FormatError(
            what, f"expected {size} bytes on {product.value}, found {len(inner)}", field="hwID"
        )
    return inner
