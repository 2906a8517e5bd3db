# SPDX-License-Identifier: Apache-2.0
"""An emulated chain under AMD's names, for verifiers that compare names.

The emulator's certificates say in their names that they are not AMD's. This module signs the same
contents again, with the same emulated keys, under the names that AMD's certificates have. A
verifier that trusts only AMD's keys still refuses them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.certificates import vcek_of
from snpcerts.emulator.amd.signing import sign_again
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.endorsement import structure
from snpcerts.endorsement.anchors import EMULATED
from snpcerts.endorsement.certificate import Certificate

_AMD = "Advanced Micro Devices"


@dataclass(frozen=True)
class RenamedChain:
    """A certificate table, and the ASK and ARK in PEM."""

    table: bytes
    bundle: bytes


def renamed_chain(platform: Path) -> RenamedChain:
    """Return a chain for the platform's current VCEK, under AMD's names."""
    home = PlatformHome(platform)
    firmware, authority = home.firmware(), renamed_authority(home.authority())
    reported = firmware.snp_platform_status().reported_tcb
    tcb = TcbVersion.unpack(reported, firmware.product.tcb_layout)
    issued = vcek_of(authority, firmware.chip, tcb)
    return RenamedChain(issued.table().encode(), authority.chain_pem())


class _RenamedAuthority(EmulatedAuthority):
    """Issues VCEKs under AMD's names."""

    def issue_vcek(
        self,
        hwid: bytes,
        tcb: TcbVersion,
        public_key: ec.EllipticCurvePublicKey,
        *,
        not_before: datetime | None = None,
    ) -> Certificate:
        issued = EmulatedAuthority.issue_vcek(self, hwid, tcb, public_key, not_before=not_before)
        return _renamed(issued, self.ask_signer.key)


def renamed_authority(authority: EmulatedAuthority) -> EmulatedAuthority:
    """Return an authority with the same keys, whose certificates have AMD's names."""
    root = authority.ark_signer.key
    ark, ask, asvk = (
        replace(signer, certificate=_renamed(signer.certificate, root))
        for signer in (authority.ark_signer, authority.ask_signer, authority.asvk_signer)
    )
    return _RenamedAuthority(authority.product, ark, ask, asvk)


def _renamed(certificate: Certificate, key: rsa.RSAPrivateKey) -> Certificate:
    tbs = structure.read(structure.TbsCertificate, certificate.tbs_certificate_bytes)
    tbs.subject = structure.read(asn1.TLV, _name(certificate.subject).public_bytes())
    tbs.issuer = structure.read(asn1.TLV, _name(certificate.issuer).public_bytes())
    return sign_again(tbs, key)


def _name(name: x509.Name) -> x509.Name:
    def value(attribute: x509.NameAttribute[Any]) -> str:
        if attribute.oid == NameOID.ORGANIZATION_NAME:
            return _AMD
        return str(attribute.value).removesuffix(f" {EMULATED}")

    return x509.Name([x509.NameAttribute(item.oid, value(item)) for item in name])
