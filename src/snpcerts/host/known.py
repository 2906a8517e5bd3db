# SPDX-License-Identifier: Apache-2.0
"""What is known about the signing keys beyond what ``/dev/sev`` reports.

The device says that a VLEK is loaded, not for which TCB; and which TCB is reported, not which one
the VCEK was derived for. On some firmware the two differ: AMD's published firmware (Genoa, 1.55.25)
keeps a VLEK through SNP_COMMIT and SNP_SET_CONFIG, and derives the VCEK from the running TCB when
SNP is initialised, whatever is reported. So the facts contain a doubt, as text, if the numbers do
not determine the key, and a proof if a report has shown it.
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
    """A report over our nonce, requested with ``select``, was signed with this key.

    ``tcb`` and ``certificate`` (SHA-256 of the DER) are those of the certificate that verified it,
    whatever TCB the report says.
    """

    select: KeySelect
    kind: VekKind
    tcb: TcbVersion
    certificate: str
    at: datetime


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """The remembered facts about the keys, and what is uncertain.

    An empty doubt means none. ``lost_masks`` are masks that were set until SNP was initialised
    again, and no longer are.
    """

    vlek: RememberedVlek | None = None
    vlek_doubt: str = ""
    vcek_doubt: str = ""
    proofs: tuple[Proof, ...] = ()
    lost_masks: tuple[str, ...] = ()

    def proof(self, select: KeySelect) -> Proof | None:
        """Return what has been proven for reports requested with ``select``."""
        return next((each for each in self.proofs if each.select is select), None)

    def proven(self, proof: Proof) -> KnownKeys:
        """Return a copy with one more proof, in place of an older one of the same kind."""
        others = tuple(each for each in self.proofs if each.select is not proof.select)
        return replace(self, proofs=(*others, proof))


NOTHING_DOUBTED = KnownKeys()
