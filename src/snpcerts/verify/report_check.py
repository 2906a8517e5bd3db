# SPDX-License-Identifier: Apache-2.0
"""Checks a report alone, and compares it with the leaf that should endorse its signing key.

Source: SNP ABI (56860) table "ATTESTATION_REPORT Structure"; KDS (57230)
chapter 3 for the leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from snpcerts.abi.product import Product, hwid_of_chip_id
from snpcerts.abi.report import Report, malformations
from snpcerts.abi.tcb import TcbLayout, TcbVersion
from snpcerts.endorsement.judge import mismatches
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.vek import EndorsementCert
from snpcerts.errors import FormatError
from snpcerts.verify.evidence import RuntimeData
from snpcerts.verify.verdict import ReportTcbs

# The order of P-384's base point (FIPS 186-5, SP 800-186 section 3.2.1.4).
P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)

_ECDSA = ec.ECDSA(hashes.SHA384())

_MALFORMED = {
    "VERSION": ReasonCode.REPORT_VERSION,
    "POLICY": ReasonCode.REPORT_POLICY,
    "SIGNATURE_ALGO": ReasonCode.REPORT_SIGNATURE_ALGORITHM,
    "FLAGS": ReasonCode.REPORT_FLAGS,
    "SIGNING_KEY": ReasonCode.REPORT_SIGNING_KEY,
    "RESERVED": ReasonCode.REPORT_RESERVED,
}


def check_layout(report: Report) -> list[Reason]:
    """Return the defects in a report's layout, in the order of their offsets."""
    return [Reason(_MALFORMED[each.field], str(each)) for each in malformations(report)]


def read_tcbs(report: Report, product: Product) -> tuple[ReportTcbs, tuple[Reason, ...]]:
    """Return the report's TCBs in the product's layout, and a reason for each that cannot be
    read.
    """
    fields = report.fields
    return _read_tcbs(
        fields.current_tcb,
        fields.reported_tcb,
        fields.committed_tcb,
        fields.launch_tcb,
        product.tcb_layout,
    )


@functools.lru_cache(maxsize=1024)
def _read_tcbs(
    current: bytes, reported: bytes, committed: bytes, launch: bytes, layout: TcbLayout
) -> tuple[ReportTcbs, tuple[Reason, ...]]:
    """Read the raw TCBs as :func:`read_tcbs` does. Results are cached, because a fleet's reports
    name the same few TCBs.
    """
    named = {"current": current, "reported": reported, "committed": committed, "launch": launch}
    read: dict[str, TcbVersion] = {}
    reasons: list[Reason] = []
    for name, data in named.items():
        try:
            read[name] = TcbVersion.unpack(data, layout)
        except FormatError as error:
            reasons.append(Reason(ReasonCode.REPORT_TCB, f"{name.upper()}_TCB: {error}"))
    return ReportTcbs(**read), tuple(reasons)


def check_leaf(
    report: Report, reported: TcbVersion | None, leaf: EndorsementCert, *, allow_masked: bool
) -> Iterator[Reason]:
    """Check that the leaf is for the report's product (version 3 and later), chip and reported TCB.

    A VCEK belongs to one chip, a VLEK to no chip. With ``allow_masked``, a zero chip ID is
    accepted, and only the signature then shows that the report is from the VCEK's chip.
    ``reported`` is None if the reported TCB could not be read; the caller then already has a reason
    that says so.
    """
    fields, product = report.fields, report.product
    if product is None and fields.version >= 3:
        yield unknown_product(report)
    hwid, chip_id = None, fields.chip_id
    if leaf.hwid is None or chip_id == leaf.hwid:
        pass
    elif report.chip_id_masked:
        if not allow_masked:
            yield Reason(
                ReasonCode.CHIP_ID_MASKED,
                (
                    "CHIP_ID is all zero (MASK_CHIP_ID is set on the host), so the VCEK's "
                    "hwID cannot be compared with it"
                ),
            )
    else:
        hwid = hwid_of_chip_id(chip_id, leaf.product)
        if hwid == leaf.hwid and any(chip_id[leaf.product.hwid_size :]):
            yield Reason(
                ReasonCode.CHIP_ID_MISMATCH,
                f"CHIP_ID must be zero after its first {leaf.product.hwid_size} bytes "
                f"on {leaf.product.value}",
            )
    yield from mismatches(leaf, product=product, hwid=hwid, tcb=reported, expected_by="the report")


def unknown_product(report: Report) -> Reason:
    """Return the reason to refuse a report whose processor belongs to no supported product."""
    fields, product = report.fields, report.product
    found = f"CPUID family {fields.cpuid_family:#x} model {fields.cpuid_model:#x}"
    if product is None:
        return Reason(
            ReasonCode.PRODUCT_UNKNOWN,
            f"expected the CPUID values of a known product, found {found}",
        )
    return Reason(
        ReasonCode.PRODUCT_UNKNOWN, f"{found} belongs to {product.value}: {product.unpinned_text}"
    )


def check_runtime_data(
    report: Report, runtime_data: RuntimeData, *, any_vmpl: bool
) -> Iterator[Reason]:
    """Check that REPORT_DATA is the digest of the runtime data that came with the report.

    Runtime data is trusted only from VMPL 0, where the paravisor runs, because the guest's own code
    runs at another VMPL and could request a report over any claims. ``any_vmpl`` is for callers
    that make their own demand on the VMPL.
    """
    expected, found = runtime_data.report_data(), report.fields.report_data
    if found != expected:
        yield Reason(
            ReasonCode.RUNTIME_DATA_MISMATCH,
            (
                f"the {runtime_data.digest} of the runtime data is {expected.hex()}, "
                f"but REPORT_DATA is {found.hex()}"
            ),
        )
    if report.fields.vmpl != 0 and not any_vmpl:
        yield Reason(
            ReasonCode.RUNTIME_DATA_VMPL,
            (
                "the report with the runtime data was requested at VMPL "
                f"{report.fields.vmpl}, expected 0 (or a VMPL that the policy names)"
            ),
        )


def check_signature(report: Report, key: ec.EllipticCurvePublicKey) -> Iterator[Reason]:
    """Check the report's signature: ECDSA P-384 with SHA-384 over the first 672 bytes."""
    r, s = report.signature
    for name, value in (("R", r), ("S", s)):
        if not 1 <= value < P384_ORDER:
            yield Reason(
                ReasonCode.REPORT_SIGNATURE,
                f"expected {name} of the signature to be at least 1 and below the order of P-384",
            )
            return
    try:
        key.verify(encode_dss_signature(r, s), report.signed_bytes, _ECDSA)
    except InvalidSignature:
        yield Reason(
            ReasonCode.REPORT_SIGNATURE,
            "the signature was not made by the leaf's key over this report",
        )
