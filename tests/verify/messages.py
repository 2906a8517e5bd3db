# SPDX-License-Identifier: Apache-2.0
"""go-sev-guest's messages, exactly as its .proto file has them: names, numbers, types."""

from __future__ import annotations

from snpcerts.abi.report import ReportLayout

NUMBERS = {
    "version": 1,
    "guest_svn": 2,
    "policy": 3,
    "vmpl": 6,
    "signature_algo": 7,
    "current_tcb": 8,
    "platform_info": 9,
    "flags": 10,
    "reported_tcb": 18,
    "committed_tcb": 20,
    "current_build": 21,
    "current_minor": 22,
    "current_major": 23,
    "committed_build": 24,
    "committed_minor": 25,
    "committed_major": 26,
    "launch_tcb": 27,
    "launch_mit_vector": 30,
    "current_mit_vector": 31,
}
BLOBS = {
    "family_id": 4,
    "image_id": 5,
    "report_data": 11,
    "measurement": 12,
    "host_data": 13,
    "id_key_digest": 14,
    "author_key_digest": 15,
    "report_id": 16,
    "report_id_ma": 17,
    "chip_id": 19,
    "signature": 28,
}
CPUID = 29


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def blob(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def report_fields(report: bytes) -> dict[int, bytes]:
    """Return the encoded fields of a report by number; fields that are zero are left out."""
    fields = ReportLayout.unpack(report)
    out: dict[int, bytes] = {}
    for name, field in NUMBERS.items():
        value = getattr(fields, name)
        if isinstance(value, bytes):
            value = int.from_bytes(value, "little")
        if value:
            out[field] = number(field, value)
    for name, field in BLOBS.items():
        out[field] = blob(field, getattr(fields, name))
    signature = cpuid(fields.cpuid_family, fields.cpuid_model, fields.cpuid_stepping)
    if signature:
        out[CPUID] = number(CPUID, signature)
    return dict(sorted(out.items()))


def cpuid(family: int, model: int, stepping: int) -> int:
    base, extended = (0xF, family - 0xF) if family >= 0xF else (family, 0)
    return extended << 20 | model >> 4 << 16 | base << 8 | (model & 0xF) << 4 | stepping & 0xF


def report_message(report: bytes) -> bytes:
    return b"".join(report_fields(report).values())


def attestation(report: bytes, chain: bytes | None = None, product: bytes | None = None) -> bytes:
    out = blob(1, report_message(report))
    out += b"" if chain is None else blob(2, chain)
    return out + (b"" if product is None else blob(3, product))


def extra(key: str, data: bytes) -> bytes:
    return blob(7, blob(1, key.encode()) + blob(2, data))
