# SPDX-License-Identifier: Apache-2.0
"""The certificates of a platform's own SEV keys: PDH, PEK, OCA and CEK.

SEV and SEV-ES guests need them for their launch, and tools such as libvirt read them on every host
with SEV. Source: SEV API (55766), chapter "Certificate format" and PDH_CERT_EXPORT: little-endian,
2084 bytes each, two signatures over the first 1044. The platform owns itself (it has its own OCA),
and the CEK lacks AMD's signature, which the key server would add.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.chip_model import ApiVersion

CERTIFICATE_SIZE: Final = 2084
CHAIN_SIZE: Final = 3 * CERTIFICATE_SIZE  # PEK, OCA, CEK
SIGNED_SIZE: Final = 1044

_VERSION = 1
_NOBODY, _OCA, _PEK, _PDH, _CEK = 0x1000, 0x1001, 0x1002, 0x1003, 0x1004  # key usage
_NONE, _ECDSA_SHA256, _ECDH_SHA256 = 0, 2, 3  # algorithms
_CURVE_P384 = 2
_NUMBER_SIZE = 72
_HEAD = struct.Struct("<IBBHII")
_PUBLIC_KEY_SIZE, _SIGNATURE_SIZE = 1028, 512
_SIGNATURE_HEAD = struct.Struct("<II")


class _SevKey(NamedTuple):
    usage: int
    key: ec.EllipticCurvePrivateKey


def export(chip: Chip, version: ApiVersion) -> tuple[bytes, bytes]:
    """Return the PDH's certificate (2084 bytes) and its chain (6252 bytes: PEK, OCA, CEK).

    PDH_CERT_EXPORT writes both.
    """
    oca, pek, pdh, cek = (
        _SevKey(usage, chip.sev_key(name))
        for usage, name in ((_OCA, "OCA"), (_PEK, "PEK"), (_PDH, "PDH"), (_CEK, "CEK"))
    )
    chain = (
        _certificate(version, pek, _ECDSA_SHA256, (oca, cek)),
        _certificate(version, oca, _ECDSA_SHA256, (oca,)),
        _certificate(version, cek, _ECDSA_SHA256, ()),
    )
    return _certificate(version, pdh, _ECDH_SHA256, (pek,)), b"".join(chain)


def _certificate(
    version: ApiVersion, subject: _SevKey, algorithm: int, signers: tuple[_SevKey, ...]
) -> bytes:
    head = _HEAD.pack(_VERSION, version.major, version.minor, 0, subject.usage, algorithm)
    numbers = subject.key.public_key().public_numbers()
    point = struct.pack("<I", _CURVE_P384) + _number(numbers.x) + _number(numbers.y)
    signed = head + point.ljust(_PUBLIC_KEY_SIZE, b"\0")
    signatures = [_signature(signed, signer) for signer in signers]
    nothing = _SIGNATURE_HEAD.pack(_NOBODY, _NONE) + bytes(_SIGNATURE_SIZE)
    return signed + b"".join([*signatures, nothing, nothing][:2])


def _signature(signed: bytes, signer: _SevKey) -> bytes:
    r, s = decode_dss_signature(signer.key.sign(signed, ec.ECDSA(SHA256())))
    value = (_number(r) + _number(s)).ljust(_SIGNATURE_SIZE, b"\0")
    return _SIGNATURE_HEAD.pack(signer.usage, _ECDSA_SHA256) + value


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER_SIZE, "little")
