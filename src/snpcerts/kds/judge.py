# SPDX-License-Identifier: Apache-2.0
"""Whether what came, from the key server or out of the cache, is what was asked for.

Two kinds of trouble are kept apart. What cannot be read at all raises
:class:`~snpcerts.errors.FormatError`: an error page, a body cut short; it says
nothing of the chip. What can be read and is wrong is listed in sentences.

Source: KDS (57230) chapter 3 for the bodies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.chain import Chain, check_chain, windows_of
from snpcerts.endorsement.crl import (
    CrlFault,
    RevocationList,
    check_crl,
    crl_problem_at,
    load_crl,
)
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import FormatError
from snpcerts.kds.url import ChainResource, VcekResource

# AMD's chain has 4.6 KB, its revocation lists about 1 KB.
MAX_BODY: Final = 64 << 10

REVOKED: Final = frozenset((CrlFault.ASK_REVOKED, CrlFault.ARK_REVOKED))

_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ChainPair:
    """ASK or ASVK, and ARK, as loaded."""

    intermediate: x509.Certificate
    root: x509.Certificate

    @property
    def not_before(self) -> datetime:
        """From when both are valid."""
        return max(self.intermediate.not_valid_before_utc, self.root.not_valid_before_utc)

    @property
    def not_after(self) -> datetime:
        """When the first of the two expires."""
        return min(self.intermediate.not_valid_after_utc, self.root.not_valid_after_utc)

    def der(self) -> tuple[bytes, bytes]:
        """(intermediate, root) in DER."""
        return der_of(self.intermediate), der_of(self.root)

    def pem(self) -> bytes:
        """Both as the key server writes them: PEM, the intermediate first."""
        pem = Encoding.PEM
        return self.intermediate.public_bytes(pem) + self.root.public_bytes(pem)


def der_of(certificate: x509.Certificate) -> bytes:
    """The certificate's DER."""
    return certificate.public_bytes(Encoding.DER)


def read_vcek(body: bytes) -> x509.Certificate:
    """The one certificate that ``body`` is; :class:`FormatError` if it is not one."""
    return load_certificate(body, "VCEK")


def read_chain(body: bytes) -> ChainPair:
    """The two PEM certificates that ``body`` is, intermediate first.

    Raises :class:`FormatError` for another number of them, or anything but
    white space around them.
    """
    blocks = _PEM_BLOCK.findall(body)
    if len(blocks) != 2 or _PEM_BLOCK.sub(b"", body).strip():
        raise FormatError(
            "certificate chain", f"{len(blocks)} PEM certificates, must be 2 and nothing else"
        )
    return ChainPair(
        load_certificate(blocks[0], "certificate chain, first certificate"),
        load_certificate(blocks[1], "certificate chain, second certificate"),
    )


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an answer is not to be trusted: a stable code and a sentence."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def faults_of_chain(
    resource: ChainResource, pair: ChainPair, anchors: Sequence[Anchor], at: datetime
) -> list[Fault]:
    """Why ``pair`` is not the product's chain from a pinned ARK at that time."""
    chain = Chain(resource.kind, None, pair.intermediate, pair.root, resource.product)
    return _faults(chain, anchors, at)


def faults_of_vcek(
    resource: VcekResource,
    leaf: x509.Certificate,
    pair: ChainPair,
    anchors: Sequence[Anchor],
    at: datetime,
) -> list[Fault]:
    """Why ``leaf`` is not the VCEK of that chip and TCB from a pinned ARK at that time."""
    chain = Chain(VekKind.VCEK, leaf, pair.intermediate, pair.root, resource.product)
    try:
        read = EndorsementCert.from_certificate(leaf)
    except FormatError as error:
        return [Fault("leaf-profile", str(error)), *_faults(chain, anchors, at)]
    faults: list[Fault] = []
    if read.product is not resource.product:
        faults.append(
            Fault(
                "product-mismatch",
                f"the VCEK is of {read.product.value}, not {resource.product.value}",
            )
        )
    if read.hwid != resource.hwid:
        found = "no chip" if read.hwid is None else f"chip {read.hwid.hex()}"
        faults.append(
            Fault("chip-id-mismatch", f"the VCEK names {found}, not {resource.hwid.hex()}")
        )
    if read.tcb != resource.tcb:
        faults.append(Fault("tcb-mismatch", f"the VCEK is for TCB {read.tcb}, not {resource.tcb}"))
    return faults + _faults(chain, anchors, at)


def faults_of_crl(revocation: RevocationList, root: x509.Certificate, at: datetime) -> list[Fault]:
    """Why it is not a list of ``root`` that is current at that time.

    What the list withdraws is no fault of the list.
    """
    problems = [
        problem
        for problem in check_crl(revocation, root, None, "ASK")
        if problem.fault is not CrlFault.ARK_REVOKED
    ]
    untimely = crl_problem_at(revocation, at)
    if untimely is not None:
        problems.append(untimely)
    return [Fault(problem.fault.value, problem.message) for problem in problems]


def faults_of_revocation(pair: ChainPair, kind: VekKind, crl: bytes | None) -> list[Fault]:
    """What the list (DER or PEM, None where there is none) withdraws of ``pair``.

    A list that is no list of the pair's root says nothing, and an old one still
    does: what was withdrawn is not given back.
    """
    if crl is None:
        return []
    try:
        revocation = load_crl(crl)
    except FormatError:
        return []
    label = "ASK" if kind is VekKind.VCEK else "ASVK"
    return [
        Fault(problem.fault.value, problem.message)
        for problem in check_crl(revocation, pair.root, pair.intermediate, label)
        if problem.fault in REVOKED
    ]


def same_key(one: bytes, other: bytes) -> bool:
    """Whether two certificates (DER or PEM) certify one key for the same chip and TCB.

    The key server issues a new certificate each time it is asked: other bytes,
    the same public key and the same extensions. Raises :class:`FormatError`
    when either cannot be read.
    """
    first, second = (load_certificate(data, "certificate") for data in (one, other))
    return _key_and_extensions(first) == _key_and_extensions(second)


def _key_and_extensions(certificate: x509.Certificate) -> tuple[bytes, frozenset[object]]:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    extensions = frozenset(
        (extension.oid, extension.critical, extension.value.public_bytes())
        for extension in certificate.extensions
    )
    return spki, extensions


def _faults(chain: Chain, anchors: Sequence[Anchor], at: datetime) -> list[Fault]:
    problems = list(check_chain(chain, anchors))
    for window in windows_of(chain):
        problem = window.problem_at(at)
        if problem is not None:
            problems.append(problem)
    return [Fault(problem.fault.value, problem.message) for problem in problems]
