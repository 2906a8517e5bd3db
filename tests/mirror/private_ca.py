# SPDX-License-Identifier: Apache-2.0
"""A private CA, such as operators use for the hosts of a data centre."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

_KEY = b"-----BEGIN PRIVATE KEY"


class PrivateCa:
    """Writes PEM files into ``folder``. ``root`` is the file of the CA's own certificate."""

    def __init__(self, folder: Path, name: str = "Private CA") -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.root = folder / "root.pem"
        made = (
            _certificate(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, SHA256())
        )
        self.root.write_bytes(made.public_bytes(Encoding.PEM))

    def issue(
        self,
        *names: str,
        starts: timedelta = timedelta(hours=-1),
        lasts: timedelta = timedelta(days=1),
        usages: Sequence[x509.ObjectIdentifier] = (),
        by: Path | None = None,
    ) -> Path:
        """Issue a certificate for these names or addresses; return a file with it and its key.

        ``by`` is the file of a certificate issued earlier. If given, that certificate's key signs
        the new one, as if it were a CA's.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        signer, issuer, chain = self._key, self._name, b""
        if by is not None:
            chain = by.read_bytes()
            loaded = load_pem_private_key(chain, None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            signer, issuer = loaded, x509.load_pem_x509_certificate(chain).subject
        builder = _certificate(_name(names[0]), issuer, key.public_key(), starts, lasts)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        made = (
            builder.add_extension(
                x509.SubjectAlternativeName(map(_alternative, names)), critical=False
            )
            # Python 3.13 and later require this extension.
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
            .sign(signer, SHA256())
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self._folder / f"issued-{next(self._numbers)}.pem"
        path.write_bytes(made.public_bytes(Encoding.PEM) + chain.partition(_KEY)[0] + secret)
        return path


def _alternative(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ip_address(name))
    return x509.DNSName(name)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    starts: timedelta = timedelta(hours=-1),
    lasts: timedelta = timedelta(days=1),
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + starts + lasts)
    )
