# SPDX-License-Identifier: Apache-2.0
"""The host's state for operators: the firmware, the files, and whether the files match the signing
key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from snpcerts.abi.cert_table import VCEK_GUID, VLEK_GUID, CertTable
from snpcerts.abi.guest_message import KeySelect as KeySel
from snpcerts.certfile.holders import Holder, holders_of_each
from snpcerts.endorsement.crl import RevocationList
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import FormatError
from snpcerts.host.expected_content import Key, NoKey, signing_key
from snpcerts.host.file_state import FileState
from snpcerts.host.host_firmware import FirmwareState, HostFirmware
from snpcerts.host.initialisation import Initialisation, initialisation
from snpcerts.host.known import Proof
from snpcerts.host.mitigations import Mitigations, mitigations
from snpcerts.printable import printable

COMMITTED = "shown only by attestation reports, not by any host interface"


@dataclass(frozen=True, slots=True)
class FileStatus:
    """The state of one file, and the holders of its lock."""

    file_state: FileState
    holders: tuple[Holder, ...]

    @property
    def leaf(self) -> EndorsementCert | None:
        """The VCEK or VLEK certificate in the file, whether it is the right one or not."""
        return self.file_state.leaf or leaf_of(self.file_state.table)


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The host's whole state at one moment."""

    firmware: HostFirmware
    state: FirmwareState
    files: tuple[FileStatus, ...]
    lists: Mapping[VekKind, RevocationList] = field(default_factory=dict)
    initialisation: Initialisation = field(default_factory=initialisation)
    mitigations: Mitigations | None = field(default_factory=mitigations)

    @property
    def in_step(self) -> bool:
        """Whether every file has the right content."""
        return all(each.file_state.in_step for each in self.files)

    def lines(self) -> list[str]:
        """Return the status as lines of text."""
        state = self.state
        out = [
            f"{self.firmware.product.value}, chip {self.firmware.hwid.hex()}",
            f"  firmware       {state.version}, SNP "
            + ("initialised" if state.initialised else "not initialised")
            + f", {state.guests} guests",
            f"  current TCB    {state.current}",
            f"  reported TCB   {state.reported}",
            f"  committed TCB  {COMMITTED}",
            f"  signing key    {_signing(state)}",
            *_known_lines(state),
            *_mitigation_lines(self.mitigations),
            *self._revocation_lines(),
        ]
        for each in self.files:
            out += _file_lines(each)
        out.append(self._verdict())
        return [printable(line) for line in out]

    def _verdict(self) -> str:
        if not self.in_step:
            return "NOT in step: run 'snpcerts host sync'"
        empty = sum(isinstance(each.file_state.expected, NoKey) for each in self.files)
        if not empty:
            return "in step"
        which = "" if len(self.files) == 1 else f" from {empty} of {len(self.files)} files"
        return f"in step, but guests get no certificates{which}: see 'empty, since'"

    def _revocation_lines(self) -> Iterator[str]:
        expected = (each.file_state.expected for each in self.files)
        for kind in dict.fromkeys(each.kind for each in expected if isinstance(each, Key)):
            found = self.lists.get(kind)
            text = "no list"
            if found is not None:
                text = (
                    f"list issued {found.this_update:%Y-%m-%d}, "
                    f"valid until {found.next_update:%Y-%m-%d}"
                )
            yield f"  revocations    {kind.name}s: {text}"

    def to_json(self) -> dict[str, object]:
        """Return the status as JSON values."""
        state, key = self.state, signing_key(self.state)
        return {
            "product": self.firmware.product.value,
            "hwid": self.firmware.hwid.hex(),
            "firmware_version": state.version,
            "snp_initialised": state.initialised,
            "guests": state.guests,
            "current_tcb": state.current.components(),
            "reported_tcb": state.reported.components(),
            "committed_tcb": None,
            "signing_key": None if key is None else key.value,
            "signing_key_basis": basis(state),
            "vcek_doubt": state.known.vcek_doubt or None,
            "vlek": _vlek_json(state),
            "proofs": [_proof_json(each) for each in state.known.proofs],
            "lost_masks": list(state.known.lost_masks),
            "initialisation": {
                "boot": self.initialisation.boot or None,
                "kvm_amd": self.initialisation.module or None,
                "certain": self.initialisation.certain,
            },
            "mitigations": None if self.mitigations is None else self.mitigations.to_json(),
            "vlek_loaded": state.vlek_loaded,
            "mask_chip_id": state.chip_id_masked,
            "mask_chip_key": state.chip_key_masked,
            "in_step": self.in_step,
            "revocation_lists": {
                kind.value: {
                    "this_update": found.this_update.isoformat(),
                    "next_update": found.next_update.isoformat(),
                }
                for kind, found in self.lists.items()
            },
            "files": [_file_json(each) for each in self.files],
        }


def status_of(
    firmware: HostFirmware,
    file_states: Sequence[FileState],
    lists: Mapping[VekKind, RevocationList],
) -> HostStatus:
    """Return the host's status, with the holders of the files' locks. ``lists`` are the cached
    revocation lists.
    """
    holders = holders_of_each([each.file.path for each in file_states])
    files = tuple(map(FileStatus, file_states, holders))
    return HostStatus(firmware, firmware.state(), files, lists)


def leaf_of(table: CertTable | None) -> EndorsementCert | None:
    """Return the VCEK or VLEK certificate in a table, if there is a readable one."""
    for guid in (VCEK_GUID, VLEK_GUID):
        data = None if table is None else table.get(guid)
        if data is not None:
            try:
                return EndorsementCert.from_bytes(data)
            except FormatError:
                continue
    return None


def basis(state: FirmwareState) -> str:
    """Return how the agent knows which key signs by default.

    ``proven`` by a report, ``believed`` because all observations imply it, or ``unknown``.
    """
    if state.known.proof(KeySel.DEFAULT) is not None:
        return "proven"
    if state.vlek_loaded:
        unknown = bool(state.known.vlek_doubt) or state.chip_key_masked
    else:
        unknown = bool(state.known.vcek_doubt) and not state.chip_key_masked
    return "unknown" if unknown else "believed"


def _signing(state: FirmwareState) -> str:
    masked = "; MASK_CHIP_ID is set" if state.chip_id_masked else ""
    proof = state.known.proof(KeySel.DEFAULT)
    if proof is not None:
        return (
            f"{proof.kind.name} at {proof.tcb}, proven on {proof.at:%Y-%m-%d %H:%M:%SZ} by a "
            f"report{masked}"
        )
    key = signing_key(state)
    if state.chip_key_masked and state.vlek_loaded:
        return (
            "the loaded VLEK or no key: MASK_CHIP_KEY is set, and firmware versions behave "
            "differently in this case"
        )
    if key is None:
        return "no key: MASK_CHIP_KEY is set, so reports are not signed"
    if basis(state) == "unknown":
        return f"a {key.name}, but it is unknown which{masked}"
    loaded = "one is loaded" if state.vlek_loaded else "no VLEK is loaded"
    return f"{key.name} ({loaded}), believed{masked}"


def _known_lines(state: FirmwareState) -> Iterator[str]:
    known = state.known
    if known.vlek_doubt:
        yield f"  loaded VLEK    of unknown TCB: {known.vlek_doubt}"
    elif known.vlek is not None:
        yield f"  loaded VLEK    {known.vlek.tcb}, since {known.vlek.at:%Y-%m-%d %H:%M:%SZ}"
    if known.vcek_doubt:
        yield f"  VCEK           of unknown TCB: {known.vcek_doubt}"
    for each in known.proofs:
        if each.select is not KeySel.DEFAULT:
            yield (
                f"  KEY_SEL {int(each.select)}      {each.kind.name} at {each.tcb}, proven on "
                f"{each.at:%Y-%m-%d %H:%M:%SZ} by a report"
            )
    for name in known.lost_masks:
        yield f"  lost           {name} was set until SNP was initialised again"


def _mitigation_lines(found: Mitigations | None) -> Iterator[str]:
    if found is not None:
        yield f"  mitigations    {found}"


def _vlek_json(state: FirmwareState) -> dict[str, object] | None:
    known = state.known
    if not state.vlek_loaded:
        return None
    return {
        "tcb": None if known.vlek is None or known.vlek_doubt else known.vlek.tcb.components(),
        "loaded_for_tcb": None if known.vlek is None else known.vlek.tcb.components(),
        "loaded_at": None if known.vlek is None else known.vlek.at.isoformat(),
        "certificate_sha256": None if known.vlek is None else known.vlek.certificate,
        "doubt": known.vlek_doubt or None,
    }


def _proof_json(proof: Proof) -> dict[str, object]:
    return {
        "key_sel": int(proof.select),
        "kind": proof.kind.value,
        "tcb": proof.tcb.components(),
        "certificate_sha256": proof.certificate,
        "at": proof.at.isoformat(),
        "by": "report",
    }


def _file_lines(status: FileStatus) -> list[str]:
    file_state, leaf = status.file_state, status.leaf
    out = [f"{file_state.file.path}: {file_state.match.value}"]
    if leaf is not None:
        whose = (
            f"chip {leaf.hwid[:8].hex()}{'...' if len(leaf.hwid) > 8 else ''}"
            if leaf.hwid is not None
            else f"provider {leaf.csp_id!r}"
        )
        out.append(f"  holds          {leaf.kind.name}, {leaf.product.value}, {whose}")
        out.append(f"  for TCB        {leaf.tcb}")
    elif file_state.table is not None:
        out.append(f"  holds          {len(file_state.table)} entries, no VCEK or VLEK")
    if file_state.not_after is not None:
        out.append(f"  valid until    {file_state.not_after:%Y-%m-%d %H:%M:%SZ}")
    if not file_state.in_step:
        out.append(f"  should hold    {file_state.expected}")
    elif isinstance(file_state.expected, NoKey):
        out.append(f"  empty, since   {file_state.expected.reason}")
    out += (f"  problem: {problem}" for problem in file_state.problems)
    out += (f"  locked by      {holder}" for holder in status.holders)
    return out


def _file_json(status: FileStatus) -> dict[str, object]:
    file_state, leaf = status.file_state, status.leaf
    return {
        "path": file_state.file.path,
        "standing": file_state.match.value,
        "in_step": file_state.in_step,
        "wanted": str(file_state.expected),
        "problems": list(file_state.problems),
        "entries": None if file_state.table is None else [each.name for each in file_state.table],
        "leaf": None
        if leaf is None
        else {
            "kind": leaf.kind.value,
            "product": leaf.product.value,
            "tcb": leaf.tcb.components(),
            "hwid": None if leaf.hwid is None else leaf.hwid.hex(),
            "csp_id": leaf.csp_id,
        },
        "not_after": None if file_state.not_after is None else file_state.not_after.isoformat(),
        "locks": [
            {
                "pid": holder.pid,
                "command": holder.command,
                "exclusive": holder.exclusive,
                "vm": holder.vm,
                "started": None if holder.since is None else holder.since.isoformat(),
            }
            for holder in status.holders
        ],
    }
