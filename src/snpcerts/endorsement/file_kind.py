# SPDX-License-Identifier: Apache-2.0
"""Recognises files of the wrong kind, names the kind for people, and says how to convert the file.

A file called ``vcek.der`` may be the key server's error page, and a file called ``report.bin`` may
be another machine's quote. This module names the most likely kind of a file, so that the owner of
the file need not guess. The names and hints are only for messages. ``looks_like_report`` and
``looks_like_table`` also help callers to choose a parser, but what they say is not trusted.

Sources: the first bytes that each format's specification gives; for quotes, Intel "TDX DCAP Quoting
Library API" and TCG "TPM 2.0 Structures" (TPMS_ATTEST); for Nitro, COSE (RFC 9052).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from snpcerts.abi.cert_table import ENTRY_SIZE, GUID_NAMES
from snpcerts.abi.report import (
    POLICY_KNOWN,
    POLICY_RESERVED_ONE,
    REPORT_SIZE,
    SIGNATURE_ALGO_ECDSA_P384_SHA384,
    VERSIONS,
)
from snpcerts.endorsement.encoded_text import pem_blocks, starts_like_json, text_of
from snpcerts.printable import printable

_SHOWN: Final = 60


class FileKind(NamedTuple):
    """A kind of file. ``name`` is a phrase such as "an HTML page" or "empty".

    ``unwrap`` says how to convert such a file, or what to do instead. None if nothing can be done.
    """

    name: str
    unwrap: str | None = None
    known: bool = True


_BINARY: Final = (
    (b"\x1f\x8b", FileKind("gzip data", "unpack the file first, with gunzip")),
    (b"\xfd7zXZ\0", FileKind("xz data", "unpack the file first, with xz -d")),
    (b"\x28\xb5\x2f\xfd", FileKind("zstd data", "unpack the file first, with zstd -d")),
    (b"\x78\x01", FileKind("zlib data", "unpack the file first, with pigz -dz or Python's zlib")),
    (b"\x78\x9c", FileKind("zlib data", "unpack the file first, with pigz -dz or Python's zlib")),
    (b"\x78\xda", FileKind("zlib data", "unpack the file first, with pigz -dz or Python's zlib")),
    (b"BZh", FileKind("bzip2 data", "unpack the file first, with bunzip2")),
    (b"PK\x03\x04", FileKind("a zip archive", "unpack the file first, with unzip")),
    (b"\x7fELF", FileKind("a program (ELF)")),
    (b"%PDF", FileKind("a PDF document")),
    (b"\x89PNG", FileKind("a PNG image")),
    (
        b"\xffTCG",
        FileKind(
            "a TPM quote",
            "read the SNP report of an Azure guest from its TPM, with tpm2_nvread -C o 0x01400001",
        ),
    ),
    (b"HCLA", FileKind("an HCL report from an Azure guest", "give this file as the evidence")),
    (
        b"\x84\x44\xa1\x01\x38\x22",
        FileKind(
            "an AWS Nitro attestation document (COSE)",
            "request an SNP report inside an SNP guest, with snpcerts guest report",
        ),
    ),
    (
        b"\xd2\x84\x44\xa1\x01\x38\x22",
        FileKind(
            "an AWS Nitro attestation document (COSE)",
            "request an SNP report inside an SNP guest, with snpcerts guest report",
        ),
    ),
)
_COSE: Final = FileKind(
    "a COSE message (RFC 9052)",
    "give only the message's payload, which is the third of its four parts",
)
_FORM: Final = FileKind(
    "a multipart form (multipart/form-data)", "give only the body of one of its parts"
)
_ANSWER: Final = re.compile(r"HTTP/[\d.]{1,3} \d{3}\b")
_TDX_TYPE, _SGX_TYPE = 0x81, 0
_SGX_START: Final = b"\3\0\2\0"  # version 3, signed with ECDSA P-256
_PKCS7_OID: Final = bytes.fromhex("06092a864886f70d010702")
_PKCS12_START: Final = re.compile(rb"\x30[\x82\x80].{0,2}\x02\x01\x03\x30", re.DOTALL)
_KEY_START: Final = re.compile(
    rb"\x30(?:\x82..|\x81.|.)\x02\x01[\x00\x01][\x02\x04\x30]", re.DOTALL
)
_REQUEST_START: Final = re.compile(rb"\x30\x82..\x30\x82..\x02\x01\x00\x30", re.DOTALL)
_HTML: Final = re.compile(
    r"\s*+(?:<!--(?:(?!-->).){0,400}+-->\s*+)*+<(?:!doctype html|html|head|body|title)\b",
    re.I | re.S,
)
_XML: Final = re.compile(r"\s*<(?:\?xml\b|[A-Za-z][\w:.-]*[\s>/])")
_TOKEN: Final = re.compile(r"\s*eyJ[\w-]+\.[\w-]+\.[\w-]*\s*")
_DISPLAYED: Final = re.compile(r"\s*Attestation Report:?\s")
_LFS: Final = "version https://git-lfs"
_AMD_SIZES: Final = (2048, 4096)
_HIGHEST_VERSION: Final = 255  # of a report; higher than any that AMD will need

_PEM_KINDS: Final = {
    "CERTIFICATE": "a certificate in PEM",
    "X509 CERTIFICATE": "a certificate in PEM",
    "TRUSTED CERTIFICATE": "a certificate in PEM",
    "X509 CRL": "a revocation list in PEM",
    "CERTIFICATE REQUEST": "a certificate request",
    "NEW CERTIFICATE REQUEST": "a certificate request",
    "PKCS7": "a PKCS #7 bundle",
    "CMS": "a CMS message",
    "PUBLIC KEY": "a public key",
}


def kind_of(data: bytes) -> FileKind:
    """Return the most likely kind of a file with the content ``data``. Never raises an error."""
    if not data:
        return FileKind("empty")
    if not any(data):
        return FileKind(
            f"{len(data)} zero bytes", "its content was probably never written: get the file again"
        )
    for start, kind in _BINARY:
        if data.startswith(start):
            return kind
    if data[257:262] == b"ustar":
        return FileKind("a tar archive", "unpack the file first, with tar -xf")
    if data[2:6] == b"HCLA":
        return FileKind(
            "an HCL report after a two-byte size (TPM2B)",
            "remove the first two bytes, with tail -c +3",
        )
    if data[:2] in (b"\xd2\x84", b"\xd2\x9f"):
        return _COSE
    if data[:2] == b"--" and b"\nContent-Disposition:" in data[:400]:
        return _FORM
    found = _structure(data) or _der(data)
    if found is not None:
        return found
    text = text_of(data)
    if text is not None:
        return _text(text)
    if b"-----BEGIN " in data:
        return _pem(data.decode("latin-1"))
    return FileKind(
        f"{len(data)} bytes of an unknown kind, starting with {data[:8].hex()}", None, False
    )


def looks_like_report(data: bytes) -> bool:
    """Return whether ``data`` begins like a report, which may be truncated."""
    version = int.from_bytes(data[:4], "little")
    # A quote has a two-byte version and then a key type, so its first four bytes are no version.
    return len(data) >= 64 and version in VERSIONS and data[0x34:0x38] == b"\1\0\0\0"


def resembles_report(data: bytes) -> bool:
    """Return whether ``data`` may begin with a report, even if one field has a wrong value.

    At least two of version, policy and signature algorithm must be plausible. A file with fewer is
    neither an altered report nor a report of a future version, but something else.
    """
    version = int.from_bytes(data[:4], "little")
    policy = int.from_bytes(data[8:16], "little")
    algorithm = int.from_bytes(data[0x34:0x38], "little")
    plausible = (
        0 < version <= _HIGHEST_VERSION,
        policy & POLICY_RESERVED_ONE and policy <= POLICY_KNOWN,
        algorithm == SIGNATURE_ALGO_ECDSA_P384_SHA384,
    )
    return len(data) >= REPORT_SIZE and sum(map(bool, plausible)) >= 2


def looks_like_table(data: bytes) -> bool:
    """Return whether ``data`` begins with a certificate table entry whose GUID is known."""
    guids = {guid.bytes for guid in GUID_NAMES} | {guid.bytes_le for guid in GUID_NAMES}
    return len(data) >= ENTRY_SIZE and data[:16] in guids


def _structure(data: bytes) -> FileKind | None:
    if looks_like_report(data):
        if len(data) < REPORT_SIZE:
            return FileKind(
                f"a truncated report: {len(data)} of {REPORT_SIZE} bytes",
                "copy the report again, as a binary file",
            )
        return FileKind("an attestation report", "give this file as the evidence")
    if looks_like_table(data):
        return FileKind("a certificate table", "give this file with --table or --certs")
    version, kind = int.from_bytes(data[:2], "little"), int.from_bytes(data[4:8], "little")
    if len(data) > 432 and version in (4, 5) and kind == _TDX_TYPE:
        return FileKind(
            "an Intel TDX quote",
            "request a report in an SEV-SNP guest: this quote comes from another kind of guest",
        )
    if len(data) > 432 and data[:4] == _SGX_START and kind == _SGX_TYPE:
        return FileKind(
            "an Intel SGX quote",
            "request a report in an SEV-SNP guest: this quote comes from an enclave",
        )
    usage, bits = (
        int.from_bytes(data[0x24:0x28], "little"),
        int.from_bytes(data[0x38:0x3C], "little"),
    )
    if data[:4] == b"\1\0\0\0" and usage in (0, 0x13) and bits in _AMD_SIZES:
        return FileKind(
            "a certificate in AMD's binary SEV format, which is not X.509",
            "get the X.509 chain instead, with snpcerts kds fetch chain",
        )
    if len(data) >= 0x60 and data[0x30:0x34] == b"\1\1\x60\0" and data[0x34] in range(1, 19):
        return FileKind(
            "an encrypted guest message",
            "give the decrypted report: request one inside the guest, with snpcerts guest report",
        )
    return None


def _der(data: bytes) -> FileKind | None:
    if _PKCS12_START.match(data):
        return FileKind(
            "a PKCS #12 file", "extract the certificates, with openssl pkcs12 -nokeys -in FILE"
        )
    if data[:1] == b"\x30" and _PKCS7_OID in data[:32]:
        return FileKind("a PKCS #7 bundle")
    if _REQUEST_START.match(data):
        return FileKind("a certificate request")
    if _KEY_START.match(data):
        return FileKind("a private key")
    return None


def _text(text: str) -> FileKind:
    if not text.strip():
        return FileKind("blank")
    if _HTML.match(text):
        return FileKind(
            "an HTML page", "it is probably a server's error page: fetch the file again"
        )
    if "-----BEGIN " in text:
        return _pem(text)
    if _ANSWER.match(text):
        return FileKind(
            "a server's response with its headers",
            "fetch the file without the headers, as curl does without -i",
        )
    if text.startswith(_LFS):
        return FileKind("a Git LFS pointer", "fetch the file itself, with git lfs pull")
    if _DISPLAYED.match(text):
        return FileKind(
            "a report printed for people, as by snpguest display",
            "give the binary report from which this text was printed",
        )
    if text.startswith("#!"):
        return FileKind("a script")
    if starts_like_json(text):
        return FileKind("JSON text")
    if _XML.match(text):
        return FileKind(
            "an XML document", "it is probably a server's error page: fetch the file again"
        )
    if _TOKEN.fullmatch(text):
        return FileKind(
            "a signed token (JWT)",
            "ask for the evidence itself, because the token holds only its issuer's verdict",
        )
    short = " ".join(text.split())
    if len(short) <= _SHOWN:
        return FileKind(f"the text {printable(short)!r}")
    return FileKind(f"text that starts with {printable(short[:_SHOWN])!r}")


def _pem(text: str) -> FileKind:
    labels = list(dict.fromkeys(block.label for block in pem_blocks(text)))
    if not labels:
        return FileKind(
            "truncated PEM, with a BEGIN line but no END line",
            "copy the whole text, from the BEGIN line to the END line",
        )
    return kind_of_label(labels[0])


def kind_of_label(label: str) -> FileKind:
    """Return the kind of content that a PEM block with that label has."""
    if label.endswith("PRIVATE KEY"):
        return FileKind("a private key")
    known = _PEM_KINDS.get(label)
    return FileKind(known if known is not None else f"PEM of {printable(label[:_SHOWN])!r}")
