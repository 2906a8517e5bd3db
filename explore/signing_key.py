# SPDX-License-Identifier: Apache-2.0
"""Checks what the agent believes about the signing key, for each interpretation of the firmware.

The check combines a small model of the firmware with the shipped code:
:class:`snpcerts.host.key_memory.Memory` with its rules, and
:func:`snpcerts.host.expected_content.expected_content`. Sources disagree about how the signing key
changes, and ``/dev/sev`` does not show some of the changes; each :class:`Choices` is one
interpretation. The exploration visits every order of commands (of the agent and of other programs),
reloads, restarts and kills, up to a depth. After each check by the agent, the expected content of a
file must match the signing key. The exploration assumes that the agent makes a check between any
two changes by other programs: if two changes undid each other between two checks, only a report
could show it.

The model's chip has two TCBs, which is enough for a reported TCB below the current one.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from snpcerts.abi.guest_message import KeySelect as KeySel
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.host.config import FileConfig, GuestKeySelect
from snpcerts.host.expected_content import ExpectedContent, Key, expected_content, key_sel
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.initialisation import Initialisation
from snpcerts.host.key_memory import Memory, UnusableError
from snpcerts.host.known import Proof
from snpcerts.host.remembered import Remembered, expected_kind

HIGH: Final = TcbVersion(4, 0, 24, 219)
LOW: Final = TcbVersion(4, 0, 24, 213)
FILES: Final = (
    FileConfig("/vcek"),
    FileConfig("/vlek", VekKind.VLEK, without_vlek=VekKind.VCEK),
    FileConfig("/named", key_select=GuestKeySelect.NAMED),
)
_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Choices:
    """One interpretation of what AMD's firmware does."""

    name: str
    keeps_vlek: bool  # whether a VLEK survives SNP_COMMIT and SNP_SET_CONFIG
    vlek_signs_masked: bool
    running_vcek_after_init: bool
    init_clears_masks: bool


READINGS: Final = (
    Choices("genoa-1.55.25", True, True, True, True),
    Choices("documented", False, False, False, True),
    Choices("masks survive", False, False, False, False),
    Choices("only the VLEK is kept", True, False, False, True),
)


@dataclass(frozen=True, slots=True)
class Psp:
    """The firmware, including the state that its status does not show."""

    choices: Choices
    reported: TcbVersion = HIGH
    vcek: TcbVersion = HIGH  # the TCB that the VCEK was derived for
    vlek: TcbVersion | None = None
    masked: bool = False
    loads: int = 0  # number of loads of kvm_amd

    def state(self) -> FirmwareState:
        """Return the result of SNP_PLATFORM_STATUS."""
        return FirmwareState(
            current=HIGH,
            reported=self.reported,
            vlek_loaded=self.vlek is not None,
            chip_id_masked=False,
            chip_key_masked=self.masked,
            initialised=True,
            version="1.55.25",
            guests=0,
        )

    def configured(self, reported: TcbVersion, *, masked: bool) -> Psp:
        """Apply SNP_SET_CONFIG. If ``reported`` is the current TCB, this also models SNP_COMMIT."""
        vlek = self.vlek
        if reported != self.reported and not self.choices.keeps_vlek:
            vlek = None
        return replace(self, reported=reported, vcek=reported, vlek=vlek, masked=masked)

    def loaded(self) -> Psp:
        """Apply SNP_VLEK_LOAD of a VLEK for the reported TCB."""
        return replace(self, vlek=self.reported)

    def reloaded(self) -> Psp:
        """Apply SNP_SHUTDOWN and SNP_INIT."""
        return replace(
            self,
            vlek=None,
            vcek=HIGH if self.choices.running_vcek_after_init else self.reported,
            masked=self.masked and not self.choices.init_clears_masks,
            loads=self.loads + 1,
        )

    def signs(self, select: KeySel) -> Key | None:
        """Return the key that signs a report; None if the firmware makes no report, or does not
        sign it.
        """
        if expected_kind(self.state(), select) is VekKind.VCEK:
            return None if self.masked else Key(VekKind.VCEK, self.vcek)
        if self.vlek is None or (self.masked and not self.choices.vlek_signs_masked):
            return None
        return Key(VekKind.VLEK, self.vlek)


class KilledError(BaseException):
    """The agent was killed with SIGKILL, and does nothing afterwards."""


@dataclass
class Host:
    """The firmware, and the agent's record on disk."""

    psp: Psp
    kept: Remembered | None = None
    kill_at: int = 0  # the number of the act at which the agent is killed; 0: never
    acts: int = 0

    def memory(self, kind: type[Memory] = Memory) -> Memory:
        """Return the key memory of an agent that starts now."""
        self.acts = 0
        return kind(
            self,
            b"chip",
            which=lambda: Initialisation("boot", str(self.psp.loads)),
            clock=lambda: _NOW,
        )

    def read_firmware(self) -> FirmwareState:
        """Return what the firmware reports now."""
        return self.psp.state()

    # The methods of the store that Memory uses.

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def load(self) -> Remembered:
        if self.kept is None:
            raise UnusableError("there is no record of this host's keys")
        return self.kept

    def save(self, what: Remembered) -> None:
        self.act()
        self.kept = what

    def act(self) -> None:
        """Count an act: the agent is about to change the record or the firmware."""
        self.acts += 1
        if self.acts == self.kill_at:
            raise KilledError

    def become(self, psp: Psp) -> None:
        """Apply a command of the agent."""
        self.act()
        self.psp = psp


Decide = Callable[[FirmwareState, FileConfig], ExpectedContent]


@dataclass(frozen=True, slots=True)
class Agent:
    """The shipped agent or a wrong one.

    ``memory`` is its key memory. ``see`` may distort the state that the memory returns. ``decide``
    chooses the expected content of a file.
    """

    name: str = "shipped"
    wrong: str = ""
    memory: type[Memory] = Memory
    decide: Decide = expected_content
    see: Callable[[FirmwareState], FirmwareState] = lambda state: state


@dataclass(frozen=True, slots=True)
class Happening:
    """One event that may happen. ``kills`` is the number of acts at which the agent may be
    killed.
    """

    name: str
    do: Callable[[Host, Memory], None]
    kills: int = 0


def _toggled(psp: Psp) -> TcbVersion:
    return LOW if psp.reported == HIGH else HIGH


def _ours(change: Callable[[Psp], Psp]) -> Callable[[Host, Memory], None]:
    def do(host: Host, memory: Memory) -> None:
        memory.configure(host.read_firmware, lambda: host.become(change(host.psp)))

    return do


def _others(change: Callable[[Psp], Psp]) -> Callable[[Host, Memory], None]:
    def do(host: Host, memory: Memory) -> None:
        del memory
        host.psp = change(host.psp)

    return do


def _load(host: Host, memory: Memory) -> None:
    tcb = host.psp.reported
    memory.load_vlek(
        host.read_firmware, lambda: host.become(host.psp.loaded()), tcb, b"certificate"
    )


def _prove(host: Host, memory: Memory) -> None:
    """For each key selection that the files use, let a guest prove which key signs. An unsigned
    report proves nothing.
    """
    for select in (KeySel.DEFAULT, KeySel.VCEK):
        key = host.psp.signs(select)
        if key is not None:
            state = memory.observe(host.read_firmware)
            proof = Proof(select, key.kind, key.tcb, "certificate", _NOW)
            memory.prove(host.read_firmware, state, proof)


def _config(psp: Psp) -> Psp:
    return psp.configured(_toggled(psp), masked=psp.masked)


def _again(psp: Psp) -> Psp:
    return psp.configured(psp.reported, masked=psp.masked)


def _mask(psp: Psp) -> Psp:
    return psp.configured(psp.reported, masked=not psp.masked)


def _commit(psp: Psp) -> Psp:
    return psp.configured(HIGH, masked=psp.masked)


HAPPENINGS: Final = (
    Happening("host load-vlek", _load, kills=4),
    Happening("host set-config --reported-tcb", _ours(_config), kills=3),
    Happening("host set-config --again", _ours(_again), kills=3),
    Happening("host set-config --mask-chip-key", _ours(_mask), kills=3),
    Happening("host commit", _ours(_commit), kills=3),
    Happening("host prove-key", _prove, kills=2),
    Happening("another program sets the reported TCB", _others(_config)),
    Happening("another program loads a VLEK", _others(Psp.loaded)),
    Happening("another program sets MASK_CHIP_KEY", _others(_mask)),
    Happening("kvm_amd is loaded again", _others(Psp.reloaded)),
)


@dataclass(slots=True)
class Explored:
    """The result of an exploration. ``schedule`` leads to the problem ``wrong``, if there is
    one.
    """

    states: int = 0
    transitions: int = 0
    wrong: str = ""
    schedule: list[str] = field(default_factory=list)
    filled: int = 0  # checks after which a file had certificates
    reasons: set[str] = field(default_factory=set)  # why files were empty


def explore(choices: Choices, agent: Agent = Agent(), *, depth: int = 4) -> Explored:
    """Visit every sequence of up to ``depth`` events, breadth first. The agent makes a check after
    each event.
    """
    result = Explored()
    first = Host(Psp(choices))
    _look(first, agent, result)
    seen = {(first.psp, first.kept)}
    frontier: deque[tuple[Psp, Remembered | None, tuple[str, ...]]] = deque(
        [(first.psp, first.kept, ())]
    )
    while frontier:
        psp, kept, way = frontier.popleft()
        if len(way) == depth:
            continue
        for happening in HAPPENINGS:
            for kill_at in range(happening.kills + 1):
                result.transitions += 1
                host = Host(psp, kept, kill_at)
                killed = ""
                try:
                    happening.do(host, host.memory(agent.memory))
                except KilledError:
                    killed = f", killed before its act {kill_at}"
                else:
                    if kill_at:
                        continue  # the agent makes fewer acts than that
                here = (*way, happening.name + killed)
                host.kill_at = 0
                result.wrong = _look(host, agent, result)
                if result.wrong:
                    result.schedule = list(here)
                    result.states = len(seen)
                    return result
                if (host.psp, host.kept) not in seen:
                    seen.add((host.psp, host.kept))
                    frontier.append((host.psp, host.kept, here))
    result.states = len(seen)
    return result


def _look(host: Host, agent: Agent, result: Explored) -> str:
    """Let a restarted agent make a check. Return a sentence that says what is wrong with the
    agent's conclusion, or an empty string.
    """
    state = agent.see(host.memory(agent.memory).observe(host.read_firmware))
    for file in FILES:
        want = agent.decide(state, file)
        if not isinstance(want, Key):
            if not want.reason:
                return f"{file.path} is empty without a reason"
            result.reasons.add(want.reason)
            continue
        result.filled += 1
        signs = host.psp.signs(key_sel(file))
        if signs != want or want.tcb != host.psp.reported:
            return (
                f"{file.path} holds the certificates of the {want}; reports are signed with "
                f"{signs or 'nothing'} and say TCB {host.psp.reported}"
            )
    return ""


# Wrong agents. Each lacks one rule.


def _without(**fields: object) -> Callable[[FirmwareState], FirmwareState]:
    def see(state: FirmwareState) -> FirmwareState:
        return replace(state, known=replace(state.known, **fields))  # type: ignore[arg-type]  # fields of Known

    return see


def _no_doubt_of_masks(state: FirmwareState, file: FileConfig) -> ExpectedContent:
    return expected_content(state, replace(file, masked_vlek_signs=True))


class _RecordsBeforeLoading(Memory):
    """A memory that records a VLEK as loaded before it loads the VLEK, so that an interrupted load
    is not noticed.
    """

    def load_vlek(
        self,
        read: Callable[[], FirmwareState],
        give: Callable[[], None],
        tcb: TcbVersion,
        certificate: bytes,
    ) -> None:
        super().load_vlek(read, lambda: None, tcb, certificate)
        give()


class _BlindToReloads(Memory):
    """A memory that assumes that every initialisation of SNP is the first one."""

    def observe(self, read: Callable[[], FirmwareState]) -> FirmwareState:
        self._which = lambda: Initialisation("boot", "1")
        return super().observe(read)

    def configure(self, read: Callable[[], FirmwareState], give: Callable[[], None]) -> None:
        self._which = lambda: Initialisation("boot", "1")
        super().configure(read, give)


class _KeepsProofs(Memory):
    """A memory that keeps a proof, whatever changes."""

    def observe(self, read: Callable[[], FirmwareState]) -> FirmwareState:
        try:
            before = self._store.load().state.known.proofs
        except UnusableError:
            before = ()
        state = super().observe(read)
        return replace(state, known=replace(state.known, proofs=before or state.known.proofs))


class _TrustsWhatIsLoaded(Memory):
    """A memory that assumes that a VLEK loaded by another program is for the reported TCB."""

    def observe(self, read: Callable[[], FirmwareState]) -> FirmwareState:
        state = super().observe(read)
        known = state.known
        return state if known.vlek else replace(state, known=replace(known, vlek_doubt=""))


MUTANTS: Final = (
    Agent(
        "vlek-is-dropped",
        "assumes that a VLEK is always for the reported TCB",
        see=_without(vlek_doubt=""),
    ),
    Agent(
        "vcek-is-reported",
        "assumes that the VCEK is always for the reported TCB",
        see=_without(vcek_doubt=""),
    ),
    Agent(
        "masked-vlek-signs",
        "assumes that MASK_CHIP_KEY affects only the VCEK",
        decide=_no_doubt_of_masks,
    ),
    Agent("blind-to-reloads", "assumes that SNP is initialised only once", memory=_BlindToReloads),
    Agent("proofs-last", "keeps a proof when the conditions of the proof change", _KeepsProofs),
    Agent(
        "written-before", "records a VLEK as loaded before it loads the VLEK", _RecordsBeforeLoading
    ),
    Agent(
        "trusts-strangers",
        "assumes that other programs' VLEKs are for the reported TCB",
        _TrustsWhatIsLoaded,
    ),
)
