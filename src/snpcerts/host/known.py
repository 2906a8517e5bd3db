# SPDX-License-Identifier: Apache-2.0
"""Facts about the signing keys beyond what ``/dev/sev`` reports.

The device reports that a VLEK is loaded, but not for which TCB. It reports the reported TCB, but
not the TCB that the VCEK was derived from. A key's TCB can differ from the reported TCB: AMD's
published firmware (Genoa, 1.55.25) keeps a VLEK through SNP_COMMIT and SNP_SET_CONFIG, and when SNP
is initialised, it derives the VCEK from the current TCB, whatever the reported TCB is. So if what
the device reports does not determine the key, the facts include a doubt, as text. If a report has
shown which key signs, they include a proof.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from snpcerts.abi.guest_message import KeySelect
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind


@dataclass(frozen=True, slots=True)
class RememberedVlek:
    """The VLEK that ``host load-vlek`` loaded: its TCB, and the SHA-256 of its certificate."""

    tcb: TcbVersion
    certificate: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Proof:
    """Proof that a report with our nonce, requested with ``select``, was signed with this key.

    ``tcb`` and ``certificate`` (SHA-256 of the DER) come from the certificate that verified the
    report, whatever TCB the report names.
    """

    select: KeySelect
    kind: VekKind
    tcb: TcbVersion
    certificate: str
    at: datetime


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What is remembered about the signing keys, and why a key is in doubt.

    Each doubt is the text of the reason, or an empty string if there is no doubt. ``lost_masks``
    are the masks that were cleared when SNP was initialised again.
    """

    vlek: RememberedVlek | None = None
    vlek_doubt: str = ""
    vcek_doubt: str = ""
    proofs: tuple[Proof, ...] = ()
    lost_masks: tuple[str, ...] = ()

    def proof(self, select: KeySelect) -> Proof | None:
        """Return the proof of the key that signs reports requested with ``select``, or None."""
        return next((each for each in self.proofs if each.select is select), None)

    def proven(self, proof: Proof) -> KnownKeys:
        """Return a copy with one more proof, which replaces an older proof for the same
        ``select``.
        """
        others = tuple(each for each in self.proofs if each.select is not proof.select)
        return replace(self, proofs=(*others, proof))


NOTHING_DOUBTED = KnownKeys()
