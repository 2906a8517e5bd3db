# SPDX-License-Identifier: Apache-2.0
"""Evidence and certificates in every supported format, made from a report and its chain."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import cbor2

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.report import ReportLayout
from tests.endorsement.small_ca import SmallCa
from tests.verify.messages import attestation, blob

CA = SmallCa()
LEAF, ASK, ARK = CA.leaf.make(), CA.ask.make(), CA.ark.make()
DERS = (LEAF, ASK, ARK)
Ders = tuple[bytes, bytes, bytes]  # VCEK, ASK, ARK
Shape = Callable[[bytes], bytes]  # a report in its shape


def table_of(ders: Ders) -> bytes:
    guids = (VCEK_GUID, ASK_GUID, ARK_GUID)
    return CertTable(tuple(map(TableEntry, guids, ders))).encode()


TABLE = table_of(DERS)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def pem(der: bytes, label: str = "CERTIFICATE", end: str = "\n") -> str:
    body = base64.encodebytes(der).decode().strip().replace("\n", end)
    return f"-----BEGIN {label}-----{end}{body}{end}-----END {label}-----{end}"


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body).to_bytes(3, "big").lstrip(b"\0") or b"\0"
    head = bytes([len(body)]) if len(body) < 0x80 else bytes([0x80 + len(size)]) + size
    return bytes([tag]) + head + body


def pkcs7(*ders: bytes) -> bytes:
    data, signed = (bytes.fromhex(f"06092a864886f70d01070{last}") for last in (1, 2))
    content = tlv(0x30, b"\2\1\1", tlv(0x31), tlv(0x30, data), tlv(0xA0, *ders), tlv(0x31))
    return tlv(0x30, signed, tlv(0xA0, content))


def xxd(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        hex_words = " ".join(row[index : index + 2].hex() for index in range(0, len(row), 2))
        shown = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
        lines.append(f"{at:08x}: {hex_words:<39}  {shown}")
    return "\n".join(lines) + "\n"


def hexdump(data: bytes) -> str:
    lines, last, starred = [], b"", False
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        if row == last:
            lines += [] if starred else ["*"]
            starred = True
            continue
        last, starred = row, False
        left, right = (" ".join(f"{each:02x}" for each in half) for half in (row[:8], row[8:]))
        lines.append(f"{at:08x}  {left:<23}  {right:<23}  |................|")
    return "\n".join((*lines, f"{len(data):08x}")) + "\n"


def response(report: bytes, size: int = 4000) -> bytes:
    return (struct.pack("<II24x", 0, len(report)) + report).ljust(size, b"\0")


def compact(number: int) -> bytes:
    return (
        (number << 2 | 2).to_bytes(4, "little")
        if number > 0x3FFF
        else ((number << 2 | 1).to_bytes(2, "little") if number > 0x3F else bytes([number << 2]))
    )


def scale(report: bytes, *ders: bytes) -> bytes:
    out = b"\0\3" + compact(len(report)) + report + compact(len(ders))
    return out + b"".join(compact(len(each)) + each for each in ders) + b"\1\2\3"


def packed(value: Any) -> bytes:
    """MessagePack as rmp-serde writes it: bytes as arrays of numbers."""
    if isinstance(value, dict):
        inside = b"".join(packed(key) + packed(each) for key, each in value.items())
        return bytes([0x80 + len(value)]) + inside
    if isinstance(value, bytes | list):
        return b"\xdc" + len(value).to_bytes(2, "big") + b"".join(map(packed, value))
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value)]) + value.encode()
    return bytes([value]) if value < 0x80 else bytes([0xCC, value])


def dstack_packed(report: bytes, *ders: bytes) -> bytes:
    platform = {"report": report, "cert_chain": list(ders), "mr_config": "{}"}
    stack = {"report_data": bytes(64), "runtime_events": [], "config": "{}"}
    return packed(
        {
            "version": 1,
            "platform": {"kind": "sev-snp", "data": platform},
            "stack": {"kind": "dstack", "data": stack},
        }
    )


def octal(data: bytes, *, words: bool = False) -> str:
    """``od -tx1``, or with ``words`` ``od -x``."""
    rows = [data[at : at + 16] for at in range(0, len(data), 16)]
    lines = [
        f"{16 * index:07o} "
        + " ".join(
            row[at : at + 2][::-1].hex() if words else f"{row[at]:02x}"
            for at in range(0, 16, 1 + words)
        )
        for index, row in enumerate(rows)
    ]
    return "\n".join((*lines, f"{len(data):07o}")) + "\n"


def tpm(report: bytes, chain: bytes = b"") -> bytes:
    """go-tpm-tools' Attestation: a key, a quote, and the SNP Attestation in field 8."""
    key = bytes.fromhex("0001000b00040072") + bytes(250)
    return blob(1, key) + blob(2, b"quote") + blob(3, b"log") + blob(8, attestation(report, chain))


def by_sev_crate(report: bytes) -> dict[str, Any]:
    """The fields of a Milan report, as virtee/sev's serde writes them."""
    fields = ReportLayout.unpack(report)
    names = {"signature_algo": "sig_algo", "platform_info": "plat_info", "flags": "key_info"}
    names |= {"cpuid_family": "cpuid_fam_id", "cpuid_model": "cpuid_mod_id"}
    names |= {"cpuid_stepping": "cpuid_step"}
    out: dict[str, Any] = {"current": {}, "committed": {}}
    for name in ReportLayout.__slots__:
        value = getattr(fields, name)
        kind, _, part = name.partition("_")
        if part in ("major", "minor", "build"):
            out[kind][part] = value
        elif name.endswith("_tcb"):
            parts = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
            out[name] = {"fmc": None, **{key: value[at] for key, at in parts.items()}}
        elif name == "signature":
            out[name] = {"r": list(value[:72]), "s": list(value[72:144])}
        else:
            out[names.get(name, name)] = list(value) if isinstance(value, bytes) else value
    return out


def trustee(report: bytes, ders: Ders) -> bytes:
    chain = [
        {"cert_type": kind, "data": list(der)}
        for kind, der in zip(("VCEK", "ASK", "ARK"), ders, strict=True)
    ]
    return json.dumps({"attestation_report": by_sev_crate(report), "cert_chain": chain}).encode()


def ratsd(report: bytes, table: bytes) -> bytes:
    inner = {"provider": "sev_guest", "outblob": b64url(report), "auxblob": b64url(table)}
    media = "application/vnd.veraison.tsm-report+json"
    cmw = {"__cmwc_t": "tag:x", "tsm-report": [media, b64url(json.dumps(inner).encode())]}
    return json.dumps({"eat_nonce": "x" * 86, "cmw": b64(json.dumps(cmw).encode())}).encode()


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


# WHOLE has the shapes that contain the certificates, ALONE those of a report alone. The keys are
# the names in the documentation.
def whole(ders: Ders) -> dict[str, Shape]:
    leaf, ask, ark = ders
    table = table_of(ders)
    return {
        "report and table": lambda report: report + table,
        "go-sev-guest Attestation": lambda report: attestation(
            report, blob(1, leaf) + blob(2, ask) + blob(3, ark)
        ),
        "go-tpm-tools Attestation": lambda report: tpm(
            report, blob(1, leaf) + blob(2, ask) + blob(3, ark)
        ),
        "tsm-report+json": lambda report: _json(
            provider="sev_guest", outblob=b64url(report), auxblob=b64url(table)
        ),
        "tsm-report+cbor": lambda report: cbor2.dumps(
            {"auxblob": table, "outblob": report, "provider": "sev_guest"}
        ),
        "ratsd token": lambda report: ratsd(report, table),
        "Trustee": lambda report: trustee(report, ders),
        "attestation-rs": lambda report: _json(
            platform="snp",
            evidence={
                "attestation_report": b64(report),
                "cert_chain": {"vcek": b64(leaf), "ask": b64(ask), "ark": b64(ark)},
            },
        ),
        "Google {report, aux_blob}": lambda report: _json(report=b64(report), aux_blob=b64(table)),
        "Dstack JSON": lambda report: _json(
            attestation=scale(report, *(pem(each).encode() for each in ders)).hex()
        ),
        "Dstack SCALE": lambda report: scale(report, *ders),
        "Dstack MessagePack": lambda report: dstack_packed(report, *ders),
    }


WHOLE = whole(DERS)
ALONE: dict[str, Shape] = {
    "report": lambda report: report,
    "hexadecimal": lambda report: report.hex().encode() + b"\n",
    "hexadecimal with 0x and line endings": lambda report: b"0x" + report.hex().upper().encode(),
    "bytes in hexadecimal, as in C": lambda report: ", ".join(
        f"0x{each:02x}" for each in report
    ).encode(),
    "xxd": lambda report: xxd(report).encode(),
    "hexdump -C": lambda report: hexdump(report).encode(),
    "od -t x1": lambda report: octal(report).encode(),
    "od -x": lambda report: octal(report, words=True).encode(),
    "hexdump": lambda report: "".join(
        f"{at:07x} " + " ".join(report[i : i + 2][::-1].hex() for i in range(at, at + 16, 2)) + "\n"
        for at in range(0, len(report), 16)
    ).encode(),
    "xxd -i": lambda report: (
        "unsigned char report_bin[] = {\n  "
        + ",\n  ".join(
            ", ".join(f"0x{each:02x}" for each in report[at : at + 12])
            for at in range(0, len(report), 12)
        )
        + f"\n}};\nunsigned int report_bin_len = {len(report)};\n"
    ).encode(),
    "Go slice": lambda report: f"[]byte{{{', '.join(map(hex, report))}}}".encode(),
    "Go slice, printed": lambda report: f"[{' '.join(map(str, report))}]".encode(),
    "Python bytes": lambda report: repr(report).encode(),
    "Python bytes.fromhex": lambda report: f"bytes.fromhex('{report.hex()}')".encode(),
    "setting": lambda report: f"SNP_REPORT={b64(report)}\n".encode(),
    "YAML": lambda report: f"report: |\n  {b64(report)}\n".encode(),
    "form field": lambda report: f"report={quote(b64(report), safe='')}".encode(),
    "report and a line ending": lambda report: report + b"\n",
    "base64": base64.encodebytes,
    "base64 with Windows line endings": lambda report: base64.encodebytes(report).replace(
        b"\n", b"\r\n"
    ),
    "base64url": lambda report: b64url(report).encode(),
    "base64 in quotes": lambda report: json.dumps(b64(report)).encode(),
    "base64 in UTF-16": lambda report: b64(report).encode("utf-16"),
    "driver response": response,
    "driver response, 1216 bytes": lambda report: response(report, 0),
    "base64 of the driver response": lambda report: base64.b64encode(response(report)),
    "array of numbers": lambda report: json.dumps(list(report)).encode(),
    "go-tpm-tools Attestation, no certificates": tpm,
    "tsm-report+json, no table": lambda report: _json(provider="sev_guest", outblob=b64(report)),
}


# The forms of a file with all three certificates.
def bundles(ders: Ders) -> dict[str, bytes]:
    leaf, ask, ark = ders
    return {
        "DER, concatenated": b"".join(ders),
        "PEM": "".join(map(pem, ders)).encode(),
        "PEM, root first": "".join(map(pem, reversed(ders))).encode(),
        "PEM, each twice": "".join(map(pem, ders * 2)).encode(),
        "PEM with text around it": b"Bag Attributes\n friendlyName: caf\xe9: x\n"
        + "subject=CN\n".join(map(pem, ders)).encode()
        + b"the end",
        "PEM with trailing blanks": "".join(map(pem, ders)).replace("\n", " \t\n").encode(),
        "PEM with Windows line endings": "".join(pem(each, end="\r\n") for each in ders).encode(),
        "PEM with old Mac line endings": "".join(pem(each, end="\r") for each in ders).encode(),
        "PEM after a byte order mark": "".join(map(pem, ders)).encode("utf-8-sig"),
        "PEM in UTF-16": "".join(map(pem, ders)).encode("utf-16"),
        "PEM on one line": " ".join(pem(each, end=" ") for each in ders).encode(),
        "PEM with escaped line endings": "".join(map(pem, ders)).replace("\n", "\\n").encode(),
        "PEM indented, as in YAML": "".join(map(pem, ders)).replace("\n", "\n    ").encode(),
        "TRUSTED CERTIFICATE": "".join(
            pem(
                each + b"\x30\x0c\x30\x0a\x06\x08+\x06\x01\x05\x05\x07\x03\x01",
                "TRUSTED CERTIFICATE",
            )
            for each in ders
        ).encode(),
        "PKCS #7": pkcs7(*ders),
        "PKCS #7 in PEM": pem(pkcs7(*ders), "PKCS7").encode(),
        "base64 of DER": base64.b64encode(b"".join(ders)),
        "base64 of PEM": base64.b64encode("".join(map(pem, ders)).encode()),
        "hexadecimal of DER": b"".join(ders).hex().encode(),
        "Azure IMDS JSON": _json(
            vcekCert=pem(leaf),
            tcbm="DB18000000000004",
            certificateChain=pem(ask) + pem(ark),
            cacheControl="86400",
        ),
        "base64 of Azure IMDS JSON": base64.b64encode(
            _json(vcekCert=pem(leaf), certificateChain=pem(ask) + pem(ark))
        ),
        "JSON array of PEM": json.dumps([pem(each) for each in ders]).encode(),
        "JSON array of base64": json.dumps([b64(each) for each in ders]).encode(),
        "certificate table": table_of(ders),
    }


BUNDLES = bundles(DERS)
