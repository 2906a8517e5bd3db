# SPDX-License-Identifier: Apache-2.0
"""Proves the signing key with a report, because ``/dev/sev`` does not always show this key.

A report counts if all of these hold: it is fresh (its REPORT_DATA is 64 random bytes that this
program chose, and the file's shared lock was held from before the request until after the answer);
it comes from this chip, shows the firmware's current state, and was requested with the KEY_SEL in
question; and a trusted certificate verifies it. Any other report neither proves nor contradicts
anything. An unsigned report does not count, because anyone can make one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from snpcerts.abi.cert_table import VCEK_GUID, VLEK_GUID, CertTable
from snpcerts.abi.guest_message import KeySelect
from snpcerts.abi.product import Product
from snpcerts.abi.report import Report, SigningKey, malformations
from snpcerts.abi.tcb import TcbVersion
from snpcerts.certfile.hold import hold_in_place
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import FormatError, RefusedError, RetryLaterError, SnpCertsError
from snpcerts.host.agent import Agent, Synced
from snpcerts.host.config import FileConfig
from snpcerts.host.event import Event, EventKind
from snpcerts.host.expected_content import Key, key_sel
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.known import Proof
from snpcerts.host.remembered import expected_kind
from snpcerts.verify.report_check import check_signature

NONCE_SIZE: Final = 64

Ask = Callable[[bytes, KeySelect], bytes]
"""Lets a guest request a report with 64 bytes of report data and a KEY_SEL; returns the report
(1184 bytes).
"""


class NoProofError(RefusedError):
    """The report does not show the current signing key."""

    code = "no-proof"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key that may be the signing key, with a trusted certificate for it."""

    key: Key
    leaf: EndorsementCert
    der: bytes


@dataclass(frozen=True, slots=True)
class Proved:
    """The result of a proof.

    ``believed`` is the key that the firmware's status implies. ``synced`` is the result of
    updating the files after the proof.
    """

    proof: Proof
    believed: Key
    synced: Synced

    @property
    def contradicts(self) -> bool:
        """Whether the signing key differs from the one that the firmware's status implies."""
        return (self.proof.kind, self.proof.tcb) != (self.believed.kind, self.believed.tcb)


def prove(agent: Agent, file: FileConfig, ask: Ask, *, nonce: bytes) -> Proved:
    """Prove the signing key with a report from a guest of ``file``, record the proof, and make the
    files match that key.

    ``nonce`` is 64 fresh random bytes. Raises :class:`NoProofError` for a report that does not
    count, :class:`RetryLaterError` if the firmware's state changed meanwhile or the lock was not
    granted, and the errors of ``ask``. In all these cases nothing has changed.
    """
    select = key_sel(file)
    before = agent.firmware.state()
    candidates = tuple(candidate_keys(agent, before, expected_kind(before, select)))
    with hold_in_place(file.path, agent.config.lock_wait):
        state = agent.firmware.state()
        if _numbers(state) != _numbers(before):
            raise _changed()
        report = ask(nonce, select)
        if _numbers(agent.firmware.state()) != _numbers(state):
            raise _changed()
        firmware = agent.firmware
        proof = judged(
            report,
            nonce,
            state,
            select,
            candidates,
            chip=firmware.hwid,
            product=firmware.product,
            at=agent.table_cache.clock(),
        )
        agent.firmware.prove(state, proof)
    believed = Key(expected_kind(state, select), state.reported)
    key = Key(proof.kind, proof.tcb)
    if key == believed:
        agent.tell(Event(EventKind.PROVEN, f"proven by a report: the signing key is the {key}"))
    else:
        agent.tell(
            Event(
                EventKind.CONTRADICTED,
                (
                    f"a report contradicts the firmware's status: the signing key is the {key}, "
                    f"not the {believed}"
                ),
            )
        )
    return Proved(proof, believed, agent.sync())


def judged(
    data: bytes,
    nonce: bytes,
    state: FirmwareState,
    select: KeySelect,
    candidates: Sequence[Candidate],
    *,
    chip: bytes,
    product: Product,
    at: datetime,
) -> Proof:
    """Return what the report ``data`` proves.

    Raises :class:`NoProofError`, with the reason, if it proves nothing.
    """
    try:
        report = Report.unpack(data)
    except FormatError as error:
        raise NoProofError(
            f"the answer is not a report: {error}",
            hint=(
                "COMMAND must write only the 1184 bytes of the report to its standard output, as "
                "'snpcerts guest report -o -' does"
            ),
        ) from None
    wrong = malformations(report)
    if wrong:
        raise NoProofError(f"the report is malformed: {wrong[0]}")
    if not hmac.compare_digest(report.fields.report_data, nonce):
        raise NoProofError(
            "the report does not answer this request: its REPORT_DATA is not the requested nonce",
            hint="old reports prove nothing; COMMAND must pass {report_data} to the guest as it is",
        )
    _of_this_host(report, state, chip, product)
    kind = expected_kind(state, select)
    signer = {SigningKey.VCEK: VekKind.VCEK, SigningKey.VLEK: VekKind.VLEK}.get(
        report.signing_key or SigningKey.VCEK
    )
    if signer is None:
        raise NoProofError(
            "the report is not signed, so it proves nothing",
            hint="with MASK_CHIP_KEY set, this firmware does not sign reports; the file stays empty"
            if state.chip_key_masked
            else f"check that the guest requests the report with --key-sel {select.name.lower()}",
        )
    if signer is not kind:
        raise NoProofError(
            (
                f"the report is signed with the {signer.name}, but KEY_SEL {int(select)} selects "
                f"the {kind.name}: the report was requested with another KEY_SEL"
            ),
            hint=f"request the report with --key-sel {select.name.lower()}",
        )
    if report.chip_id_masked and kind is VekKind.VLEK:
        raise NoProofError(
            (
                "the report's CHIP_ID is masked. All hosts of a provider can have the same VLEK, "
                "so the report may be from another host"
            ),
            hint="clear MASK_CHIP_ID: while it is set, nothing can be proven with a VLEK",
        )
    for each in candidates:
        if not any(check_signature(report, each.leaf.public_key)):
            digest = hashlib.sha256(each.der).hexdigest()
            return Proof(select, kind, each.key.tcb, digest, at)
    tried = "; ".join(str(each.key) for each in candidates) or "none"
    raise NoProofError(
        f"no available certificate verifies the report (tried: {tried})",
        hint=(
            "for a VCEK, check that the key server answers; for a VLEK, check that the "
            "--vlek-certs directory contains its certificate. If the right certificate was tried, "
            "the report is forged"
        ),
    )


def is_of_another_chip(report: Report, chip: bytes) -> bool:
    """Return whether the report names a chip other than the one with this ID (8 or 64 bytes)."""
    found = report.fields.chip_id
    return not report.chip_id_masked and found != chip.ljust(len(found), b"\0")


def _of_this_host(report: Report, state: FirmwareState, chip: bytes, product: Product) -> None:
    fields = report.fields
    if is_of_another_chip(report, chip):
        raise NoProofError(
            "the report is from another chip: its CHIP_ID starts with "
            f"{fields.chip_id[:8].hex()}, but this chip's starts with {chip[:8].hex()}"
        )
    if report.chip_id_masked and not state.chip_id_masked:
        raise NoProofError("the report's CHIP_ID is masked, but this host's is not")
    for name, raw, expected in (
        ("REPORTED_TCB", fields.reported_tcb, state.reported),
        ("CURRENT_TCB", fields.current_tcb, state.current),
    ):
        try:
            found = TcbVersion.unpack(raw, product.tcb_layout)
        except FormatError as error:
            raise NoProofError(f"the report's {name}: {error}") from None
        if found != expected:
            raise NoProofError(f"the report's {name} is {found}, but the firmware says {expected}")
    if report.mask_chip_key != state.chip_key_masked:
        raise NoProofError("the report and the firmware disagree about MASK_CHIP_KEY")


def candidate_keys(agent: Agent, state: FirmwareState, kind: VekKind) -> Iterable[Candidate]:
    """Yield the keys that might be the signing key. A key whose certificates are not available is
    left out, and an event says why.

    For a VCEK, these are the keys at the reported and the current TCB. For a VLEK, they are the key
    at the reported TCB and those with stored certificates.
    """
    tcbs = (
        (state.reported, state.current)
        if kind is VekKind.VCEK
        else (state.reported, *agent.table_cache.kept_vleks())
    )
    for tcb in dict.fromkeys(tcbs):
        key = Key(kind, tcb)
        try:
            agent.fetch([key])
        except SnpCertsError as error:
            agent.tell(Event(EventKind.UNAVAILABLE, str(error)))
            continue
        table = agent.table_cache.table_of(key)
        found = None if table is None else _leaf(table, kind)
        if found is not None:
            yield Candidate(key, *found)


def _leaf(table: CertTable, kind: VekKind) -> tuple[EndorsementCert, bytes] | None:
    der = table.get(VCEK_GUID if kind is VekKind.VCEK else VLEK_GUID)
    return None if der is None else (EndorsementCert.from_bytes(der), der)


def _numbers(state: FirmwareState) -> tuple[object, ...]:
    return (
        state.current,
        state.reported,
        state.vlek_loaded,
        state.chip_id_masked,
        state.chip_key_masked,
        state.initialised,
        state.version,
    )


def _changed() -> RetryLaterError:
    return RetryLaterError(
        "the firmware's state changed while the guest requested the report",
        hint="run the command again",
    )
