# SPDX-License-Identifier: Apache-2.0
"""Encrypts and decrypts guest messages with AES-256-GCM under a VMPCK.

Source: SNP ABI (56860) chapter 7. The parameters were compared with a request from a genuine guest.
Both the emulated firmware and the guest's driver use this module.
"""

from __future__ import annotations

from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from snpcerts.abi.guest_message import (
    AAD_END,
    AAD_START,
    ALGO_AES_256_GCM,
    HEADER_SIZE,
    HEADER_VERSION,
    MAX_PAYLOAD,
    MESSAGE_SIZE,
    TAG_SIZE,
    VMPCK_SIZE,
    MessageHeader,
    iv_of,
)
from snpcerts.errors import RefusedError, UsageError


class SealError(RefusedError):
    """A page is not a valid guest message under this VMPCK: its size is wrong, or its tag does not
    verify.
    """

    code = "seal"


def header_for(msg_type: int, seqno: int, vmpck: int, *, msg_version: int = 1) -> MessageHeader:
    """Return a header as Linux writes it: AES-256-GCM, header version 1, reserved fields zero.

    :func:`seal` fills in the tag and ``msg_sz``.
    """
    return MessageHeader(
        msg_seqno=seqno,
        algo=ALGO_AES_256_GCM,
        hdr_version=HEADER_VERSION,
        hdr_sz=HEADER_SIZE,
        msg_type=msg_type,
        msg_version=msg_version,
        msg_vmpck=vmpck,
    )


def seal(key: bytes, header: MessageHeader, payload: bytes) -> bytes:
    """Encrypt ``payload`` and return the message page of 4096 bytes, with zeros after the payload.

    ``key`` is a VMPCK of 32 bytes. This fills in ``msg_sz`` and the tag, and copies every other
    field of ``header`` unchecked. Raises :class:`UsageError` for a key or payload of impossible
    size.
    """
    if len(payload) > MAX_PAYLOAD:
        raise UsageError(
            f"payload of a guest message: expected at most {MAX_PAYLOAD} bytes, found "
            f"{len(payload)}"
        )
    plain = replace(header, msg_sz=len(payload), authtag=bytes(32)).pack()
    sealed = _cipher(key).encrypt(iv_of(header.msg_seqno), payload, plain[AAD_START:AAD_END])
    ciphertext, tag = sealed[:-TAG_SIZE], sealed[-TAG_SIZE:]
    return (tag + plain[TAG_SIZE:] + ciphertext).ljust(MESSAGE_SIZE, b"\0")


def open_sealed(key: bytes, page: bytes) -> tuple[MessageHeader, bytes]:
    """Return the header and the decrypted payload of a message page.

    The tag authenticates the payload, the header from byte 48 on, and ``msg_seqno``, which is the
    nonce. The rest of the first 48 bytes is not authenticated. The caller must check the values in
    the header. Raises :class:`SealError` if the page is not 4096 bytes, claims a payload of more
    than 4000 bytes, or has a tag that does not verify; :class:`UsageError` if the key is not 32
    bytes.
    """
    if len(page) != MESSAGE_SIZE:
        raise SealError(f"guest message page: expected {MESSAGE_SIZE} bytes, found {len(page)}")
    page = bytes(page)
    header = MessageHeader.unpack(page)
    if header.msg_sz > MAX_PAYLOAD:
        raise SealError(f"msg_sz: expected at most {MAX_PAYLOAD} bytes, found {header.msg_sz}")
    ciphertext = page[HEADER_SIZE : HEADER_SIZE + header.msg_sz]
    try:
        payload = _cipher(key).decrypt(
            iv_of(header.msg_seqno), ciphertext + page[:TAG_SIZE], page[AAD_START:AAD_END]
        )
    except InvalidTag:
        raise SealError(
            f"the tag of message {header.msg_seqno} does not verify",
            hint="check that this VMPCK sealed the message, and that its header and payload are "
            "unchanged",
        ) from None
    return header, payload


def _cipher(key: bytes) -> AESGCM:
    if len(key) != VMPCK_SIZE:
        raise UsageError(f"VMPCK: expected {VMPCK_SIZE} bytes, found {len(key)}")
    return AESGCM(key)
