# SPDX-License-Identifier: Apache-2.0
"""The X.509 side of AMD's endorsement keys: VCEK, VLEK, their chains and the pinned roots.

``judge`` decides for all other packages whether certificates certify a key. If they do not, it
returns every reason; ``reason`` has the codes. It uses ``chain`` (leaf, issuer and ARK),
``anchors`` (the trusted ARKs), ``signature`` (AMD's signature algorithm) and ``crl`` (revocation
lists). ``vek`` reads what a VCEK or VLEK certificate certifies.

Parsing: ``certificate`` reads one certificate, ``der`` and ``structure`` read the parts of one, and
``ca_name`` reads an authority's name. ``encoding`` converts between DER and PEM. Files in any form:
``encoded_text`` decodes hexadecimal, base64, PEM and JSON; ``bundle`` finds all certificates in a
file; ``file_kind`` recognises files of the wrong kind; ``sorting`` finds a chain among
certificates; ``table_certificates`` selects certificates for a certificate table. Imports ``abi``.
"""

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
