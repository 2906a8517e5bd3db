# SPDX-License-Identifier: Apache-2.0
"""The ID block (a guest's claimed identity) and its signatures.

Source: SNP ABI (56860), ID_BLOCK and ID_AUTHENTICATION; AMD-ASPFW ``sev_mcmd.c``,
``snp_mcmd_launch_finish``, for the order of the checks. The version of an ID block is ignored.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from snpcerts.abi.psp import SevStatus
from snpcerts.emulator.psp.error import FirmwareError

ID_BLOCK_SIZE: Final = 96
ID_AUTH_SIZE: Final = 4096
KEY_SIZE: Final = 0x404
ALGO_ECDSA_P384_SHA384: Final = 1
CURVE_P384: Final = 2

_BLOCK: Final = struct.Struct("<48s16s16sIIQ")
_BLOCK_SIGNATURE, _ID_KEY, _ID_KEY_SIGNATURE, _AUTHOR_KEY = 0x40, 0x240, 0x680, 0x880
_PART: Final = 72  # bytes of a number, little-endian
_DIGEST: Final = 48


@dataclass(frozen=True, slots=True)
class IdBlock:
    """The values that reports take from an ID block and its keys; all zero for a guest without
    an ID block.

    The two key digests are SHA-384 over the keys in AMD's format. A digest is zero if the key is
    missing.
    """

    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    guest_svn: int = 0
    id_key_digest: bytes = bytes(_DIGEST)
    author_key_digest: bytes = bytes(_DIGEST)


def check_id_block(
    block: bytes, auth: bytes, *, author: bool, measurement: bytes, policy: int
) -> IdBlock:
    """Check the ID block in ``block`` (96 bytes) and its signature in ``auth`` (4096 bytes); return
    the ID block.

    If ``author`` is set, the author key's algorithm is checked too; :func:`check_author_key` checks
    the rest. Raises :class:`FirmwareError`: BAD_MEASUREMENT or POLICY_FAILURE if the block expects
    another measurement or policy, INVALID_PARAM for an unknown algorithm, BAD_SIGNATURE for an
    invalid key or signature.
    """
    if len(block) != ID_BLOCK_SIZE or len(auth) != ID_AUTH_SIZE:
        raise FirmwareError(
            SevStatus.INVALID_PARAM,
            f"ID block and authentication page: expected {ID_BLOCK_SIZE} and {ID_AUTH_SIZE} "
            f"bytes, found {len(block)} and {len(auth)}",
        )
    digest, family_id, image_id, _version, guest_svn, expected_policy = _BLOCK.unpack(block)
    if digest != measurement:
        raise FirmwareError(
            SevStatus.BAD_MEASUREMENT, "the ID block expects a different launch measurement"
        )
    if expected_policy != policy:
        raise FirmwareError(
            SevStatus.POLICY_FAILURE, "the ID block expects a different guest policy"
        )
    algorithms = struct.unpack_from("<II", auth)[: 2 if author else 1]
    if any(algorithm != ALGO_ECDSA_P384_SHA384 for algorithm in algorithms):
        raise FirmwareError(
            SevStatus.INVALID_PARAM, "the ID key or the author key has an unknown algorithm"
        )
    id_key = _key(auth, _ID_KEY)
    _verify("ID key", id_key, auth[_BLOCK_SIGNATURE:], block)
    return IdBlock(
        family_id=family_id,
        image_id=image_id,
        guest_svn=guest_svn,
        id_key_digest=hashlib.sha384(id_key).digest(),
    )


def check_author_key(auth: bytes) -> bytes:
    """Check that the author key in ``auth`` has signed the ID key; return the author key's digest.

    Raises :class:`FirmwareError` with BAD_SIGNATURE.
    """
    author_key = _key(auth, _AUTHOR_KEY)
    _verify("author key", author_key, auth[_ID_KEY_SIGNATURE:], _key(auth, _ID_KEY))
    return hashlib.sha384(author_key).digest()


def _key(auth: bytes, at: int) -> bytes:
    return auth[at : at + KEY_SIZE]


def _verify(name: str, key: bytes, signature: bytes, signed: bytes) -> None:
    (curve,) = struct.unpack_from("<I", key)
    try:
        if curve != CURVE_P384:
            raise ValueError(f"curve of the {name}: expected {CURVE_P384}, found {curve}")
        numbers = ec.EllipticCurvePublicNumbers(
            _number(key, 4), _number(key, 4 + _PART), ec.SECP384R1()
        )
        encoded = encode_dss_signature(_number(signature, 0), _number(signature, _PART))
        numbers.public_key().verify(encoded, signed, ec.ECDSA(SHA384()))
    except (ValueError, InvalidSignature):
        raise FirmwareError(
            SevStatus.BAD_SIGNATURE,
            f"the {name} is not a P-384 key, or the signature made with it does not verify",
        ) from None


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + _PART], "little")
