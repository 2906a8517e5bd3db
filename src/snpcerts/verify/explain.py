# SPDX-License-Identifier: Apache-2.0
"""Explains what each field and bit of a report means, and judges nothing.

Source: SNP ABI (56860) table "ATTESTATION_REPORT Structure".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from snpcerts.abi.product import Product
from snpcerts.abi.report import VMPL_HOST, Report, SigningKey, malformations
from snpcerts.verify.bits import GUEST_POLICY_BITS, PLATFORM_INFO_BITS, Bit
from snpcerts.verify.report_check import read_tcbs
from snpcerts.verify.verdict import ReportTcbs

_NO_AGENT = b"\xff" * 32


@dataclass(frozen=True, slots=True)
class FieldLine:
    """One field of a report: its section, name, value and meaning ("" if the value needs no
    explanation).
    """

    section: str
    name: str
    value: str
    meaning: str = ""


def guessed_product(report: Report) -> tuple[Product | None, str]:
    """Return the product that a report is for, and how that was determined. None if several are
    possible.

    A version 2 report does not name its product, but the length of its chip ID leaves only some
    products.
    """
    if report.product is not None:
        return report.product, "by its CPUID fields"
    if report.fields.version >= 3:
        return None, "its CPUID fields match no known product"
    if report.chip_id_masked:
        return None, "a version 2 report does not name its product, and the chip ID is hidden"
    if not report.products:
        version = report.fields.version
        return None, f"no known product has version {version} reports with chip IDs of this length"
    first, *others = report.products
    length = "short" if first.hwid_size < len(report.fields.chip_id) else "long"
    if not others:
        return first, f"by its {length} chip ID"
    names = " or ".join(product.value for product in (first, *others))
    return None, f"{names}, by its {length} chip ID"


def tcbs_of(report: Report) -> ReportTcbs:
    """Return the report's four TCBs. All are None if their layout is not known."""
    product, _ = guessed_product(report)
    if product is None and report.fields.version < 3 and not report.chip_id_masked:
        # Products whose chip IDs have the same length also have the same TCB layout.
        product = next(iter(report.products), None)
    return ReportTcbs() if product is None else read_tcbs(report, product)[0]


def explain(report: Report) -> Iterator[FieldLine]:
    """Yield a line for every field of a report, the most interesting fields first."""
    fields = report.fields
    product, how = guessed_product(report)
    yield FieldLine("report", "version", str(fields.version))
    yield FieldLine("report", "product", "unknown" if product is None else product.value, how)
    if fields.version >= 3:
        cpuid = f"{fields.cpuid_family:#x} {fields.cpuid_model:#x} {fields.cpuid_stepping}"
        yield FieldLine("report", "CPUID", cpuid, "family, model, stepping")
    hidden = "hidden: MASK_CHIP_ID is set, or a VLEK signed the report"
    note = hidden if report.chip_id_masked else ""
    yield FieldLine("report", "chip ID", fields.chip_id.hex(), note)
    yield from _signing(report)

    yield FieldLine("guest", "measurement", fields.measurement.hex())
    yield FieldLine("guest", "report data", fields.report_data.hex(), _zero(fields.report_data))
    yield FieldLine("guest", "host data", fields.host_data.hex(), _zero(fields.host_data))
    vmpl = "requested by the host, not by a guest" if fields.vmpl == VMPL_HOST else ""
    yield FieldLine("guest", "VMPL", str(fields.vmpl), vmpl)
    yield FieldLine("guest", "guest SVN", str(fields.guest_svn))
    yield FieldLine("guest", "family ID", fields.family_id.hex())
    yield FieldLine("guest", "image ID", fields.image_id.hex())
    yield FieldLine(
        "guest", "ID key digest", fields.id_key_digest.hex(), _zero(fields.id_key_digest)
    )
    author = "" if report.author_key_en else "no author key (AUTHOR_KEY_EN is 0)"
    yield FieldLine("guest", "author key digest", fields.author_key_digest.hex(), author)
    yield FieldLine("guest", "report ID", fields.report_id.hex())
    agent = "no migration agent" if fields.report_id_ma == _NO_AGENT else ""
    yield FieldLine("guest", "migration agent report ID", fields.report_id_ma.hex(), agent)

    yield FieldLine("guest policy", "POLICY", f"{fields.policy:#x}")
    minimum = f"{fields.policy >> 8 & 0xFF}.{fields.policy & 0xFF}"
    yield FieldLine("guest policy", "minimum ABI", minimum)
    yield from _bits("guest policy", GUEST_POLICY_BITS, fields.policy)

    yield FieldLine("platform", "PLATFORM_INFO", f"{fields.platform_info:#x}")
    yield from _bits("platform", PLATFORM_INFO_BITS, fields.platform_info)
    named = sum(1 << bit.index for bit in PLATFORM_INFO_BITS.values())
    unnamed = fields.platform_info & ~named
    if unnamed:
        yield FieldLine("platform", "other bits", f"{unnamed:#x}", "no public name")
    current = f"{fields.current_major}.{fields.current_minor}.{fields.current_build}"
    committed = f"{fields.committed_major}.{fields.committed_minor}.{fields.committed_build}"
    yield FieldLine("platform", "firmware", current, "running now")
    yield FieldLine(
        "platform", "committed firmware", committed, "the firmware cannot be rolled back below this"
    )
    if fields.version >= 5 or fields.launch_mit_vector or fields.current_mit_vector:
        yield FieldLine("platform", "mitigations at launch", f"{fields.launch_mit_vector:#x}")
        yield FieldLine("platform", "mitigations now", f"{fields.current_mit_vector:#x}")

    for name, meaning in _TCBS.items():
        tcb = tcbs_of(report).named()[name]
        raw: bytes = getattr(fields, f"{name}_tcb")
        value = raw.hex() if tcb is None else f"{tcb}"
        yield FieldLine("TCB", name, value, meaning)

    for malformation in malformations(report):
        yield FieldLine(
            "wrong", malformation.field, f"at {malformation.offset:#x}", malformation.message
        )


_TCBS = {
    "reported": "the signing key is derived from this",
    "current": "running now",
    "committed": "the firmware cannot be rolled back below this",
    "launch": "set when the guest was launched",
}


def _signing(report: Report) -> Iterator[FieldLine]:
    key = report.signing_key
    meanings = {
        SigningKey.VCEK: "the key of this chip at its reported TCB",
        SigningKey.VLEK: "the cloud provider's key at the reported TCB",
        SigningKey.NONE: "no key signed",
    }
    name = f"reserved ({report.fields.flags >> 2 & 7})" if key is None else key.name
    yield FieldLine("report", "signed by", name, "" if key is None else meanings[key])
    masked = report.mask_chip_key
    yield FieldLine("report", "MASK_CHIP_KEY", str(int(masked)), _MASKED[masked].get(key, ""))


# Meanings by the value of MASK_CHIP_KEY, then by the key that signed.
_MASKED: Final[dict[bool, dict[SigningKey | None, str]]] = {
    True: {
        SigningKey.VCEK: (
            "the host masks the chip's key, yet that key signed; no known firmware does this"
        ),
        SigningKey.VLEK: (
            "the host masks the chip's key, but this firmware still signs with the VLEK"
        ),
        SigningKey.NONE: "the host masks the chip's key, and no VLEK signed in its place",
    },
    False: {
        SigningKey.NONE: (
            "the host does not mask the chip's key; the report does not say why no key signed"
        )
    },
}


def _zero(data: bytes) -> str:
    return "" if any(data) else "all zero"


def _bits(section: str, bits: dict[str, Bit], word: int) -> Iterator[FieldLine]:
    for name, bit in bits.items():
        yield FieldLine(section, name, str(int(bit.of(word))), bit.words(word))


def explained_json(report: Report) -> dict[str, Any]:
    """Return the report's fields as JSON values: bytes in lower-case hexadecimal, bits by name."""
    fields = report.fields
    product, how = guessed_product(report)
    tcbs = tcbs_of(report)
    return {
        "version": fields.version,
        "product": None if product is None else product.value,
        "product_known": how,
        "cpuid": None
        if fields.version < 3
        else {
            "family": fields.cpuid_family,
            "model": fields.cpuid_model,
            "stepping": fields.cpuid_stepping,
        },
        "chip_id": fields.chip_id.hex(),
        "signing_key": None if report.signing_key is None else report.signing_key.name.lower(),
        "mask_chip_key": report.mask_chip_key,
        "author_key_en": report.author_key_en,
        "guest_svn": fields.guest_svn,
        "vmpl": fields.vmpl,
        **{
            name: getattr(fields, name).hex()
            for name in (
                "family_id",
                "image_id",
                "report_data",
                "measurement",
                "host_data",
                "id_key_digest",
                "author_key_digest",
                "report_id",
                "report_id_ma",
            )
        },
        "guest_policy": {
            "value": fields.policy,
            "abi_major": fields.policy >> 8 & 0xFF,
            "abi_minor": fields.policy & 0xFF,
            **{name: bit.of(fields.policy) for name, bit in GUEST_POLICY_BITS.items()},
        },
        "platform_info": {
            "value": fields.platform_info,
            **{name: bit.of(fields.platform_info) for name, bit in PLATFORM_INFO_BITS.items()},
        },
        "tcb": {
            name: {
                "raw": getattr(fields, f"{name}_tcb").hex(),
                "components": None if tcb is None else tcb.components(),
            }
            for name, tcb in tcbs.named().items()
        },
        "firmware": [fields.current_major, fields.current_minor, fields.current_build],
        "committed_firmware": [
            fields.committed_major,
            fields.committed_minor,
            fields.committed_build,
        ],
        "launch_mitigations": fields.launch_mit_vector,
        "current_mitigations": fields.current_mit_vector,
        "malformed": [str(each) for each in malformations(report)],
    }
