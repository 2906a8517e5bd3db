# SPDX-License-Identifier: Apache-2.0
"""Finds every certificate and revocation list in a file, whatever its name and format.

========================================  ============================================
shape                                     from
========================================  ============================================
DER, one or several                       the key server; ``.der``, ``.crt``, ``.cer``
PEM, with any text around and between     openssl, ``jq``, mail, issues, YAML
the same after a byte order mark, or      editors, PowerShell
in UTF-16
PEM of "TRUSTED CERTIFICATE"              ``openssl x509 -trustout``
PKCS #7, DER or PEM                       ``openssl crl2pkcs7``, Windows (``.p7b``)
base64 or hexadecimal of any of these     environment variables, Kubernetes secrets
JSON, with any of these as its values     Azure's IMDS (THIM): ``vcekCert``,
                                          ``certificateChain``
certificate table                         a host's certificate file; ``auxblob``
========================================  ============================================

This module checks only whether a certificate can be read. The time and memory that it takes are
proportional to the file's size, and the number of certificates is bounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from snpcerts.abi.cert_table import CertTable
from snpcerts.endorsement.certificate import MAX_CERTIFICATE_SIZE, load_certificate
from snpcerts.endorsement.crl import load_crl
from snpcerts.endorsement.der import read_element
from snpcerts.endorsement.encoded_text import (
    MAX_TEXT,
    PemBlock,
    bytes_in,
    bytes_of_json,
    pem_blocks,
    read_json,
    starts_like_json,
    text_of,
)
from snpcerts.endorsement.file_kind import kind_of, kind_of_label, looks_like_table
from snpcerts.errors import FormatError

MAX_CERTIFICATES: Final = 64
# At most this many DER elements of a file or a PKCS #7 are read. The rest is ignored.
_MAX_ELEMENTS: Final = 4096
_TOO_MANY: Final = f"more than {_MAX_ELEMENTS} DER elements; the rest is not read"
_MAX_DEPTH: Final = 4  # a table in base64 in JSON in base64
_LEAST: Final = 200  # characters; every certificate has more
_SEQUENCE, _CONSTRUCTED_0 = 0x30, 0xA0
_PKCS7_OID: Final = bytes.fromhex("2a864886f70d010702")
_PEM_BUNDLES: Final = ("PKCS7", "CMS")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The certificates and revocation lists in a file: their DER, each once, in the order of the
    file.

    ``others`` describes the other parts of the file, and says what was not read.
    """

    certificates: tuple[bytes, ...] = ()
    lists: tuple[bytes, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the file contains neither a certificate nor a revocation list."""
        return not self.certificates and not self.lists


def read_bundle(data: bytes) -> Bundle:
    """Return every certificate and revocation list in ``data``. Never raises an error, whatever
    ``data`` is.
    """
    if len(data) > MAX_TEXT:
        found = f"a file of {len(data)} bytes (more than {MAX_TEXT} bytes are not read)"
        return Bundle(others=(found,))
    reader = _BundleReader()
    reader.read(data, 0)
    return Bundle(tuple(reader.certificates), tuple(reader.lists), tuple(reader.others))


class _BundleReader:
    """Reads a file and collects what it contains, in dictionaries that serve as ordered sets."""

    def __init__(self) -> None:
        self.certificates: dict[bytes, None] = {}
        self.lists: dict[bytes, None] = {}
        self.others: dict[str, None] = {}
        # The number of other parts. Only the first MAX_CERTIFICATES are described, because
        # describing a part takes as long as reading it.
        self.unknown = 0

    def read(self, data: bytes, depth: int) -> None:
        """Read data in any format. One format may be nested in another, such as base64 in JSON."""
        if depth > _MAX_DEPTH or not data:
            self._other(data)
        elif looks_like_table(data):
            table, _ = CertTable.decode_lenient(data)
            for entry in table:
                self.read(entry.data, depth + 1)
        elif data[0] == _SEQUENCE and data[1:2] >= b"\x80":
            self._elements(data)
        else:
            text = text_of(data)
            if text is None and b"-----BEGIN " in data:
                text = data.decode("latin-1")
            if text is None or not self._text(text, depth):
                self._other(data)

    def _text(self, text: str, depth: int) -> bool:
        """Read text, and return whether it encodes anything."""
        if starts_like_json(text):
            try:
                self._json(read_json(text, "JSON"), depth)
            except FormatError:
                pass
            else:
                return True
        if "-----BEGIN " in text:
            for block in pem_blocks(text):
                self._block(block)
            return True
        encoded = bytes_in(text) if len(text) >= _LEAST else None
        if encoded is None or len(encoded) < _LEAST // 2:
            return False
        self.read(encoded, depth + 1)
        return True

    def _json(self, value: Any, depth: int) -> None:
        for each in _leaves(value):
            if isinstance(each, list):
                self.read(bytes_of_json(each) or b"", depth + 1)
            elif "-----BEGIN " in each or starts_like_json(each):
                self._text(each, depth + 1)
            else:
                found = bytes_in(each)
                if found is not None and len(found) >= _LEAST // 2:
                    self.read(found, depth + 1)

    def _block(self, block: PemBlock) -> None:
        if block.content is None:
            self.others[f"a PEM block {block.label[:40]!r} whose body is not base64"] = None
        elif block.label in _PEM_BUNDLES or block.label.endswith(("CERTIFICATE", "CRL")):
            # In a "TRUSTED CERTIFICATE", openssl's trust settings follow the certificate.
            self._elements(block.content, first_alone=block.label == "TRUSTED CERTIFICATE")
        else:
            self.others[kind_of_label(block.label).name] = None

    def _elements(self, data: bytes, *, first_alone: bool = False) -> None:
        """Read consecutive DER elements, and the elements inside a structure that encloses
        certificates.
        """
        at = 0
        for _ in range(_MAX_ELEMENTS):
            if at >= len(data):
                return
            try:
                element = read_element(data, at, "certificate")
            except FormatError:
                if data[at:].strip(b"\0\r\n\t "):
                    self._other(data[at:])
                return
            der = data[element.start : element.end]
            if not self._one(der):
                inner = list(itertools.islice(_enclosed(der), _MAX_ELEMENTS + 1))
                if not inner:
                    self._other(der)
                for each in inner[:_MAX_ELEMENTS]:
                    if not self._one(each):
                        self._other(each)
                if len(inner) > _MAX_ELEMENTS:
                    self.others[_TOO_MANY] = None
            at = element.end
            if first_alone:
                return
        if at < len(data):
            self.others[_TOO_MANY] = None

    def _one(self, der: bytes) -> bool:
        """Keep an element if it is a certificate or a revocation list. Return whether it was one of
        these.
        """
        if len(der) < _LEAST // 2:
            return False
        if der in self.certificates or der in self.lists:
            return True
        if len(self.certificates) + len(self.lists) >= MAX_CERTIFICATES:
            self.others[
                f"more than {MAX_CERTIFICATES} certificates and revocation lists; the rest is not "
                "read"
            ] = None
            return True
        if len(der) <= MAX_CERTIFICATE_SIZE:
            try:
                load_certificate(der, "certificate")
            except FormatError:
                pass
            else:
                self.certificates[der] = None
                return True
        try:
            load_crl(der)
        except FormatError:
            return False
        self.lists[der] = None
        return True

    def _other(self, data: bytes) -> None:
        self.unknown += 1
        if self.unknown <= MAX_CERTIFICATES:
            self.others[_named(data)] = None


def _named(data: bytes) -> str:
    if data[:1] == b"\x30":
        try:
            load_certificate(data, "certificate")
        except FormatError as error:
            kind = kind_of(data)
            return kind.name if "unknown kind" not in kind.name else error.problem
    return kind_of(data).name


def _leaves(value: Any) -> Iterator[str | list[Any]]:
    """Yield the texts and arrays of numbers in a JSON value that are long enough for a
    certificate.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += reversed(each.values())
        elif isinstance(each, list):
            if len(each) >= _LEAST // 2 and bytes_of_json(each) is not None:
                yield each
            else:
                waiting += reversed(each)
        elif isinstance(each, str) and len(each) >= _LEAST:
            yield each


def _enclosed(der: bytes) -> Iterator[bytes]:
    """Yield the certificates and revocation lists in a PKCS #7 or CMS SignedData, unparsed.

    RFC 5652 section 5.1: ContentInfo is {contentType, [0] SignedData}; SignedData is
    {version, digestAlgorithms, encapContentInfo, [0] certificates, [1] crls, ...}.
    """
    what = "PKCS #7"
    try:
        whole = read_element(der, 0, what).content
        kind = read_element(whole, 0, what)
        if kind.content != _PKCS7_OID:
            return
        explicit = read_element(whole, kind.end, what).content
        signed = read_element(explicit, 0, what).content
        at = 0
        for _ in range(3):
            at = read_element(signed, at, what).end
        while at < len(signed):
            part = read_element(signed, at, what)
            at = part.end
            if part.tag not in (_CONSTRUCTED_0, _CONSTRUCTED_0 + 1):
                continue
            inner = 0
            while inner < len(part.content):
                element = read_element(part.content, inner, what)
                yield part.content[element.start : element.end]
                inner = element.end
    except FormatError:
        return
