# SPDX-License-Identifier: Apache-2.0
"""Decides whether a certificate, chain or revocation list may be stored: it must verify as the
requested resource, up to a trusted ARK.

Bodies are untrusted wherever they come from: the upstream server, an import, or another mirror.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.crl import load_crl
from snpcerts.endorsement.judge import (
    ChainBytes,
    ChipJudge,
    JudgeMemory,
    judge_authorities,
    judge_list,
)
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.vek import VekKind
from snpcerts.kds.body import ChainPair, der_of, read_chain, read_vcek, same_key
from snpcerts.kds.errors import KdsUntrustedError
from snpcerts.kds.url import ChainResource, CrlResource, Resource, VcekResource
from snpcerts.mirror.stored import Admitted

_OF_ANOTHER_ISSUER = frozenset({ReasonCode.LEAF_SIGNATURE, ReasonCode.LEAF_ISSUER})


class OtherIssuerError(KdsUntrustedError):
    """A VCEK was not signed by the stored ASK, which AMD may have replaced."""


class Admission:
    """Verifies response bodies and imported files with a set of trusted roots. Thread-safe."""

    def __init__(self, anchors: Sequence[Anchor]) -> None:
        self.anchors = tuple(anchors)
        self._memory = JudgeMemory(limit=64)

    def vcek(
        self,
        resource: VcekResource,
        body: bytes,
        chain: ChainPair,
        at: datetime,
        stored: bytes | None = None,
    ) -> Admitted:
        """Verify a VCEK certificate. ``stored`` is the certificate that the new one would replace.

        Raises :class:`FormatError` for a body that is not a certificate, :class:`KdsUntrustedError`
        for a certificate that does not verify as this resource, and :class:`OtherIssuerError` for
        one that the ASK of ``chain`` did not sign.
        """
        leaf = read_vcek(body)
        judge = ChipJudge(
            resource.product,
            resource.hwid,
            self.anchors,
            expected_by="the request",
            memory=self._memory,
        )
        der = der_of(leaf)
        judged = judge.judge(ChainBytes(der, *chain.der()), VekKind.VCEK, resource.tcb, at)
        if any(reason.code in _OF_ANOTHER_ISSUER for reason in judged.reasons):
            raise OtherIssuerError(_not(resource), reasons=_texts(judged.reasons))
        if judged.reasons:
            raise _untrusted(resource, judged.reasons)
        if stored is not None and not same_key(der, stored):
            raise KdsUntrustedError(
                _not(resource),
                reasons=[
                    "the certificate's key or extensions differ from those of the stored "
                    "certificate, which verifies"
                ],
            )
        ends = min(leaf.not_valid_after_utc, chain.not_after)
        return Admitted(resource, der, leaf.not_valid_before_utc.timestamp(), ends.timestamp())

    def chain(self, resource: ChainResource, body: bytes, at: datetime) -> Admitted:
        """Verify a chain. Raises the same errors as :meth:`vcek`."""
        pair = read_chain(body)
        reasons = judge_authorities(
            resource.kind, resource.product, pair.intermediate, pair.root, self.anchors, at
        )
        if reasons:
            raise _untrusted(resource, reasons)
        return Admitted(
            resource, pair.pem(), pair.not_before.timestamp(), pair.not_after.timestamp()
        )

    def crl(
        self,
        resource: CrlResource,
        body: bytes,
        chain: ChainPair,
        at: datetime,
        stored: bytes | None = None,
    ) -> Admitted:
        """Verify a revocation list with the root of ``chain``. The list must not be older than
        ``stored``.

        Raises the same errors as :meth:`vcek`.
        """
        found = load_crl(body)
        reasons = judge_list(resource.kind, found, None, chain.root).problems_at(at)
        if reasons:
            raise _untrusted(resource, reasons)
        if stored is not None and found.this_update < load_crl(stored).this_update:
            raise KdsUntrustedError(
                _not(resource), reasons=["the revocation list is older than the stored list"]
            )
        return Admitted(
            resource, found.der, found.this_update.timestamp(), found.next_update.timestamp()
        )


def chain_of(resource: Resource) -> ChainResource:
    """Return the chain that is needed to verify a VCEK or a revocation list."""
    kind = VekKind.VCEK if isinstance(resource, VcekResource) else resource.kind
    return ChainResource(resource.product, kind)


def _untrusted(resource: Resource, reasons: Sequence[Reason]) -> KdsUntrustedError:
    return KdsUntrustedError(_not(resource), reasons=_texts(reasons))


def _not(resource: Resource) -> str:
    return f"{resource}: the body does not verify as this resource"


def _texts(reasons: Sequence[Reason]) -> list[str]:
    return [str(reason) for reason in reasons]
