# SPDX-License-Identifier: Apache-2.0
"""An emulated AMD, whose root, issuer and leaf certificates have the form of AMD's.

Source: AMD's genuine certificates of Milan, Genoa and Turin. Names, extensions and their order,
signature parameters, and the leaf's serial number 0 are the same as in those, with one difference:
every CA's CN ends in EMULATED and every O names snpcerts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.leaf_extensions import vcek_extensions, vlek_extensions
from snpcerts.emulator.amd.signing import sign_certificate, sign_list
from snpcerts.endorsement.anchors import EMULATED
from snpcerts.endorsement.certificate import Certificate, load_certificate
from snpcerts.endorsement.crl import RevocationList
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, InputError

ORGANIZATION: Final = "snpcerts emulator, not AMD"
CRL_URL: Final = "https://kdsintf.amd.com/{kind}/v1/{product}/crl"

_RSA_BITS, _RSA_EXPONENT = 4096, 65537
_DAY = timedelta(days=1)
_YEAR = timedelta(days=365, hours=6)
CA_LIFETIME: Final = 25 * _YEAR
VCEK_LIFETIME: Final = 7 * _YEAR
VLEK_LIFETIME: Final = _YEAR
CRL_LIFETIME: Final = _YEAR
LEAF_SERIAL: Final = 0
_DRAFT_SERIAL = 1  # of a leaf's draft; LEAF_SERIAL replaces it
_ARK_SERIAL, _ASK_SERIAL, _ASVK_SERIAL = 0x10000, 0x10001, 0x10002

_ROLES: Final = ("ark", "ask", "asvk")
_MAX_FILE = 64 << 10


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate authority: its certificate and its private key."""

    certificate: Certificate
    key: rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class EmulatedAuthority:
    """The key hierarchy of one product: ARK, ASK (for VCEKs) and ASVK (for VLEKs)."""

    product: Product
    ark_signer: Signer
    ask_signer: Signer
    asvk_signer: Signer

    @classmethod
    def create(cls, product: Product, *, one_key: bool = False) -> Self:
        """Return a hierarchy with new keys. Generating three RSA-4096 keys takes about a second.

        With ``one_key``, the three roles share one key.
        """
        if one_key:
            ark_key = ask_key = asvk_key = _new_key(0)
        else:
            with ThreadPoolExecutor(len(_ROLES)) as pool:
                ark_key, ask_key, asvk_key = pool.map(_new_key, range(len(_ROLES)))
        ark_name = _ca_name(f"ARK-{product.value}")
        ark = (
            _certificate(ark_name, ark_name, ark_key.public_key(), _ARK_SERIAL, CA_LIFETIME)
            .add_extension(_key_usage(crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(ark_key.public_key()), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_crl_point(product, "vcek"), critical=False)
        )
        root = Signer(sign_certificate(ark, ark_key), ark_key)

        return cls(
            product,
            root,
            _intermediate(root, product, VekKind.VCEK, ask_key, _ASK_SERIAL),
            _intermediate(root, product, VekKind.VLEK, asvk_key, _ASVK_SERIAL),
        )

    def with_new_ask(self) -> Self:
        """Return the hierarchy with a new ASK (key and serial number), as if the old ASK had
        been revoked.
        """
        serial = self.ask.serial_number + 0x10
        signer = _intermediate(self.ark_signer, self.product, VekKind.VCEK, _new_key(0), serial)
        return replace(self, ask_signer=signer)

    @property
    def ark(self) -> Certificate:
        """The ARK certificate, the root of the hierarchy."""
        return self.ark_signer.certificate

    @property
    def ask(self) -> Certificate:
        """The ASK certificate, the issuer of VCEK certificates."""
        return self.ask_signer.certificate

    @property
    def asvk(self) -> Certificate:
        """The ASVK certificate, the issuer of VLEK certificates."""
        return self.asvk_signer.certificate

    def issue_vcek(
        self,
        hwid: bytes,
        tcb: TcbVersion,
        public_key: ec.EllipticCurvePublicKey,
        *,
        not_before: datetime | None = None,
    ) -> Certificate:
        """Return a VCEK certificate, valid for seven years from ``not_before`` (default: a day
        ago).

        ``hwid`` is the significant bytes of the chip ID. Raises :class:`snpcerts.errors.UsageError`
        if ``hwid`` or the TCB does not fit this product.
        """
        extensions = vcek_extensions(self.product, tcb, hwid)
        return self._leaf(
            "SEV-VCEK", self.ask_signer, public_key, extensions, VCEK_LIFETIME, not_before
        )

    def issue_vlek(
        self,
        csp_id: str,
        tcb: TcbVersion,
        public_key: ec.EllipticCurvePublicKey,
        *,
        not_before: datetime | None = None,
    ) -> Certificate:
        """Return a VLEK certificate for the provider ``csp_id``, valid for a year from
        ``not_before``.

        Raises :class:`snpcerts.errors.UsageError` if the TCB does not fit this product, or if
        ``csp_id`` is not 1 to 127 ASCII characters.
        """
        extensions = vlek_extensions(self.product, tcb, csp_id)
        return self._leaf(
            "SEV-VLEK", self.asvk_signer, public_key, extensions, VLEK_LIFETIME, not_before
        )

    def crl(
        self, revoked: Iterable[int] = (), *, last_update: datetime | None = None
    ) -> RevocationList:
        """Return the ARK's CRL, valid for a year, which revokes the serial numbers in
        ``revoked``.
        """
        start = _now() - _DAY if last_update is None else last_update
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.ark.subject)
            .last_update(start)
            .next_update(start + CRL_LIFETIME)
            .add_extension(_authority_key_id(self.ark_signer), critical=False)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for serial in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(start)
                .build()
            )
        return sign_list(builder, self.ark_signer.key)

    def chain_pem(self, *, vlek: bool = False) -> bytes:
        """Return the key server's response to cert_chain: ASK (or ASVK), then ARK, as PEM."""
        signer = self.asvk_signer if vlek else self.ask_signer
        return _pem(signer.certificate) + _pem(self.ark)

    def save(self, directory: Path) -> None:
        """Write six PEM files into ``directory``, which is created if missing. Key files get mode
        0600.

        Each file is replaced atomically, but the six together are not: no other process may load
        them while this runs. Raises :class:`InputError` if a file cannot be written.
        """
        with _file_errors(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for role, signer in zip(_ROLES, self._signers(), strict=True):
                _replace(directory / f"{role}.pem", _pem(signer.certificate), 0o644)
                key = signer.key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
                _replace(directory / f"{role}.key.pem", key, 0o600)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Return the hierarchy that :meth:`save` wrote into ``directory``. Raises
        :class:`InputError` if the files are incomplete or damaged.
        """
        ark, ask, asvk = (_load_signer(directory, role) for role in _ROLES)
        for product in Product:
            names = (f"ARK-{product.value}", f"SEV-{product.value}", f"SEV-VLEK-{product.value}")
            subjects = tuple(signer.certificate.subject for signer in (ark, ask, asvk))
            if subjects == tuple(map(_ca_name, names)):
                return cls(product, ark, ask, asvk)
        raise InputError(
            f"{directory} does not contain an emulated authority's certificates",
            hint=f"delete {directory} to start with new keys",
        )

    def _signers(self) -> tuple[Signer, Signer, Signer]:
        return self.ark_signer, self.ask_signer, self.asvk_signer

    def _leaf(
        self,
        cn: str,
        issuer: Signer,
        public_key: ec.EllipticCurvePublicKey,
        extensions: tuple[x509.UnrecognizedExtension, ...],
        lifetime: timedelta,
        not_before: datetime | None,
    ) -> Certificate:
        builder = _certificate(
            _name(cn),
            issuer.certificate.subject,
            public_key,
            _DRAFT_SERIAL,
            lifetime,
            not_before,
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return sign_certificate(builder, issuer.key, serial=LEAF_SERIAL)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _new_key(_index: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(_RSA_EXPONENT, _RSA_BITS)


def _name(cn: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, cn),
        ]
    )


def _ca_name(cn: str) -> x509.Name:
    return _name(f"{cn} {EMULATED}")


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    serial: int,
    lifetime: timedelta,
    not_before: datetime | None = None,
) -> x509.CertificateBuilder:
    start = _now() - _DAY if not_before is None else not_before
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(start + lifetime)
    )


def _intermediate(
    root: Signer, product: Product, kind: VekKind, key: rsa.RSAPrivateKey, serial: int
) -> Signer:
    """Return an ASK or ASVK whose certificate is signed by ``root``."""
    public = key.public_key()
    name = f"SEV-{product.value}" if kind is VekKind.VCEK else f"SEV-VLEK-{product.value}"
    builder = (
        _certificate(_ca_name(name), root.certificate.subject, public, serial, CA_LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_authority_key_id(root), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(crl_sign=False), critical=True)
        .add_extension(_crl_point(product, kind.value), critical=False)
    )
    return Signer(sign_certificate(builder, root.key), key)


def _authority_key_id(issuer: Signer) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())


def _key_usage(*, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _crl_point(product: Product, kind: str) -> x509.CRLDistributionPoints:
    url = CRL_URL.format(kind=kind, product=product.kds_name)
    point = x509.DistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        reasons=None,
        crl_issuer=None,
    )
    return x509.CRLDistributionPoints([point])


def _pem(certificate: Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@contextmanager
def _file_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot access the emulated authority in {place}: {error.strerror or error}"
        ) from error


def _replace(path: Path, pem: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(f"{EMULATED}, made by the {ORGANIZATION}: never trust it.\n".encode() + pem)
    fresh.replace(path)


def _load_signer(directory: Path, role: str) -> Signer:
    path = directory / f"{role}.pem"
    key_path = directory / f"{role}.key.pem"
    try:
        certificate = _read_certificate(path)
        # OpenSSL would test the primes, which takes 0.3 s for each key. The code below checks that
        # the key belongs to the certificate.
        key = serialization.load_pem_private_key(
            _read(key_path), password=None, unsafe_skip_rsa_key_validation=True
        )
    except (FormatError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} or {key_path.name} is not valid PEM: {error}") from error
    if not isinstance(key, rsa.RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise InputError(f"the key in {key_path} does not belong to the certificate in {path}")
    return Signer(certificate, key)


def _read_certificate(path: Path) -> Certificate:
    """Return the certificate in ``path``, a PEM file that begins with a line of text."""
    text = _read(path)
    return load_certificate(text[max(text.find(b"-----BEGIN"), 0) :], str(path))


def _read(path: Path) -> bytes:
    with _file_errors(path), path.open("rb") as file:
        return file.read(_MAX_FILE)
