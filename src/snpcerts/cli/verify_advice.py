# SPDX-License-Identifier: Apache-2.0
"""Says what to do next, for each cause of a verdict other than *verified*."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from snpcerts.endorsement.reason import EXPIRED, ReasonCode

if TYPE_CHECKING:
    from snpcerts.verify.verdict import Verdict

_LATER: Final = "try again later"
_SUPPLY: Final = (
    "supply missing certificates with --certs DIR or --fetch, and a missing revocation list with "
    "--crl KIND=FILE or --fetch"
)
_SUPPLY_VLEK: Final = (
    "a VLEK's certificate comes from the cloud provider, never from the key server: save the "
    "host's table in the guest (snpcerts guest report --table-out FILE) and give it with --table "
    "FILE, or give the certificate with --certs DIR"
)
_ANOTHER_KEY: Final = (
    "the certificate is not for the key that signed the report: supply the right certificate "
    "with --certs DIR or --fetch. After a firmware update, a host's table is out of date until "
    "'snpcerts host sync' has run on that host"
)
_ANOTHER_CHAIN: Final = (
    "the certificates do not belong together: give the leaf, the ASK (or ASVK) and the ARK of "
    "one product with --certs DIR, or use --fetch"
)
_ARCHIVED: Final = (
    "the certificate is newer than the time in --at, because the key server issues a new "
    "certificate for each request: give a certificate that was archived at that time, with "
    "--certs DIR or --offline --cache DIR"
)
_PAST: Final = (
    "if the evidence is archived, verify it as of the time when it was made, with --at TIME"
)
_NONCE: Final = (
    "the report data of an HCL report is the digest of its runtime data, and a nonce is the user "
    "data in the runtime data: give the nonce with --user-data HEX instead of --report-data"
)
_MASKED: Final = (
    "the host hides its chip ID: to accept that, use a policy file with allow_masked_chip_id = true"
)
_MISSING: Final = frozenset(
    {
        ReasonCode.VCEK_MISSING,
        ReasonCode.ASK_MISSING,
        ReasonCode.ARK_MISSING,
        ReasonCode.CRL_MISSING,
        ReasonCode.CRL_EXPIRED,
        ReasonCode.CRL_TOO_OLD,
        ReasonCode.COLLATERAL_NOT_FOUND,
    }
)
_OF_ANOTHER_KEY: Final = frozenset(
    {ReasonCode.TCB_MISMATCH, ReasonCode.CHIP_ID_MISMATCH, ReasonCode.PRODUCT_MISMATCH}
)
_OF_ANOTHER_CHAIN: Final = frozenset(
    {
        ReasonCode.CHAIN_PRODUCT,
        ReasonCode.LEAF_ISSUER,
        ReasonCode.LEAF_SIGNATURE,
        ReasonCode.ASK_ISSUER,
        ReasonCode.ASK_SIGNATURE,
        ReasonCode.ASK_NAME,
        ReasonCode.ARK_NAME,
        ReasonCode.LEAF_KIND,
    }
)


def advice(verdict: Verdict) -> Iterator[str]:
    """Yield one sentence for each cause of the verdict that has a remedy, the most likely cause
    first.

    Yields nothing if no cause has a remedy.
    """
    codes = {reason.code for reason in verdict.reasons}
    if ReasonCode.VLEK_MISSING in codes:
        yield _SUPPLY_VLEK
    elif codes & _MISSING:
        yield _SUPPLY
    if codes & _OF_ANOTHER_KEY:
        yield _ANOTHER_KEY
    elif codes & _OF_ANOTHER_CHAIN:
        yield _ANOTHER_CHAIN
    if ReasonCode.LEAF_NOT_YET_VALID in codes:
        yield _ARCHIVED
    elif codes & EXPIRED:
        yield _PAST
    if ReasonCode.POLICY_REPORT_DATA in codes and _has_runtime_data(verdict):
        yield _NONCE
    if ReasonCode.CHIP_ID_MASKED in codes:
        yield _MASKED
    if codes == {ReasonCode.COLLATERAL_UNAVAILABLE}:
        yield _LATER


def _has_runtime_data(verdict: Verdict) -> bool:
    return any(
        check.name == "runtime-data" and check.state.value in ("passed", "failed")
        for check in verdict.checks
    )
