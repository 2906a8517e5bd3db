# SPDX-License-Identifier: Apache-2.0
"""The X.509 side of AMD's endorsement keys: VCEK, VLEK, their chains and the pinned roots."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snpcerts.endorsement.anchors import AMD_ANCHORS as AMD_ANCHORS
    from snpcerts.endorsement.anchors import Anchor as Anchor
    from snpcerts.endorsement.anchors import anchor_from_certificate as anchor_from_certificate
    from snpcerts.endorsement.certificate import Certificate as Certificate
    from snpcerts.endorsement.certificate import load_certificate as load_certificate
    from snpcerts.endorsement.crl import RevocationList as RevocationList
    from snpcerts.endorsement.crl import load_crl as load_crl
    from snpcerts.endorsement.vek import EndorsementCert as EndorsementCert
    from snpcerts.endorsement.vek import VekKind as VekKind
else:
    from snpcerts.exports import lazy_exports

    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "anchors": ("AMD_ANCHORS", "Anchor", "anchor_from_certificate"),
            "certificate": ("Certificate", "load_certificate"),
            "crl": ("RevocationList", "load_crl"),
            "vek": ("EndorsementCert", "VekKind"),
        },
    )
