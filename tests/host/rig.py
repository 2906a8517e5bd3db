# SPDX-License-Identifier: Apache-2.0
"""An agent on emulated firmware in one process, which does what the commands do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.product import Product
from snpcerts.abi.psp import Command, SnpConfig, SnpPlatformStatus
from snpcerts.abi.tcb import TcbVersion
from snpcerts.certfile import system
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.reader import Found
from snpcerts.certfile.step import Performer
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.certificates import Issued, vcek_of, vlek_of
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.psp.chip import Chip, CloudProvider
from snpcerts.emulator.psp.firmware import Firmware, FirmwareError
from snpcerts.endorsement.anchors import anchor_from_certificate
from snpcerts.endorsement.judge import ChipJudge
from snpcerts.endorsement.vek import VekKind
from snpcerts.host.agent import Agent
from snpcerts.host.config import Config, FileConfig
from snpcerts.host.event import Event, EventKind
from snpcerts.host.host_firmware import HostFirmware
from snpcerts.host.initialisation import Initialisation
from snpcerts.host.key_memory import Memory, MemoryFile
from snpcerts.host.sev import SevError
from snpcerts.host.table_cache import TableCache
from snpcerts.host.vlek_store import VlekStore
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError
from snpcerts.kds.source import CertificateSource
from tests.x509_library import by_the_library

FIRST = Initialisation("this boot", "1")


class FirmwareDevice:
    """``/dev/sev`` without the device: commands go straight to the emulated firmware."""

    def __init__(self, firmware: Firmware, saved_in: PlatformHome | None = None) -> None:
        self.firmware = firmware
        self._saved_in = saved_in
        self.broken = False

    def snp_platform_status(self) -> SnpPlatformStatus:
        if self.broken:
            raise SevError(Command.SNP_PLATFORM_STATUS, errno.EBUSY, 0)
        return self.firmware.snp_platform_status()

    def hwid(self) -> bytes:
        return self.firmware.get_id()

    def snp_commit(self) -> None:
        self._do(Command.SNP_COMMIT, self.firmware.snp_commit)

    def snp_set_config(self, config: SnpConfig) -> None:
        self._do(Command.SNP_SET_CONFIG, lambda: self.firmware.snp_set_config(config))

    def snp_vlek_load(self, hashstick: bytes) -> None:
        self._do(Command.SNP_VLEK_LOAD, lambda: self.firmware.snp_vlek_load(hashstick))

    def _do(self, command: Command, call: Callable[[], None]) -> None:
        try:
            call()
        except FirmwareError as no:
            raise SevError(command, errno.EIO, int(no.status)) from None
        if self._saved_in is not None:
            # Saving is one rename, so the command has its whole effect or none.
            self._saved_in.save(self.firmware)


@dataclass
class KeyServer:
    """A certificate source whose faults a test sets."""

    authority: EmulatedAuthority
    chip: Chip
    down: bool = False
    missing: bool = False
    lie: Callable[[TcbVersion], Issued] | None = None
    asked: list[TcbVersion] = field(default_factory=list)
    retry_after: float | None = None
    revoked: tuple[int, ...] = ()
    known: dict[VekKind, bytes] = field(default_factory=dict)
    lists_asked: int = 0
    _lists: dict[tuple[int, ...], bytes] = field(default_factory=dict)

    def vcek(
        self,
        product: Product,
        hwid: bytes,
        tcb: TcbVersion,
        *,
        at: datetime | None = None,  # noqa: ARG002 (the interface)
    ) -> Issued:
        self._answer()
        self.asked.append(tcb)
        assert (product, hwid) == (self.chip.product, self.chip.hwid)
        return vcek_of(self.authority, self.chip, tcb) if self.lie is None else self.lie(tcb)

    def chain(
        self,
        product: Product,
        kind: VekKind = VekKind.VCEK,
        *,
        at: datetime | None = None,  # noqa: ARG002 (the interface)
    ) -> tuple[bytes, bytes]:
        assert (product, kind) == (self.chip.product, VekKind.VLEK)
        self._answer()
        some = vlek_of(self.authority, CloudProvider.create("CN=any"), TcbVersion(1, 0, 1, 1))
        return some.intermediate, some.root

    def crl(
        self,
        product: Product,
        kind: VekKind = VekKind.VCEK,
        *,
        at: datetime | None = None,  # noqa: ARG002 (the interface)
        max_age: timedelta | None = None,  # noqa: ARG002 (the interface)
        budget: float | None = None,
    ) -> bytes:
        assert product is self.chip.product
        assert budget is not None, "the agent must limit its wait for a list"
        self.lists_asked += 1
        self._answer()
        self.known[kind] = self.issue_list()
        return self.known[kind]

    def issue_list(self) -> bytes:
        """Return the revocation list; it is signed only once."""
        if self.revoked not in self._lists:
            crl = self.authority.crl(self.revoked)
            self._lists[self.revoked] = crl.der
        return self._lists[self.revoked]

    def known_crl(self, product: Product, kind: VekKind = VekKind.VCEK) -> bytes | None:
        assert product is self.chip.product
        return self.known.get(kind)

    def _answer(self) -> None:
        if self.down:
            raise KdsUnavailableError("no answer", retry_after=self.retry_after)
        if self.missing:
            raise KdsNotFoundError("404")


@dataclass
class Rig:
    """One host: firmware, key server, agent, and all of the agent's output."""

    folder: Path
    device: FirmwareDevice
    server: KeyServer
    config: Config
    now: datetime | None = None
    performer: Performer = system.perform
    initialisation: Initialisation = FIRST
    events: list[Event] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, authority: EmulatedAuthority, **file: object) -> Rig:
        chip = Chip.create(Product.MILAN)
        config = Config(
            files=(FileConfig(str(folder / "certs.bin"), **file),),  # type: ignore[arg-type]
            vlek_certificates=folder / "vlek",
            lock_wait=0.2,
        )
        return cls(folder, FirmwareDevice(Firmware(chip)), KeyServer(authority, chip), config)

    @property
    def firmware(self) -> Firmware:
        return self.device.firmware

    @property
    def file(self) -> Path:
        return Path(self.config.files[0].path)

    def with_file(self, name: str, **file: object) -> Path:
        """Add a certificate file."""
        path = self.folder / name
        more = FileConfig(str(path), **file)  # type: ignore[arg-type]
        self.config = replace(self.config, files=(*self.config.files, more))
        return path

    def agent(self) -> Agent:
        """A new agent, as each command makes one."""
        product = self.firmware.product
        store = MemoryFile(self.config.memory_path, product, lock_wait=0.2)
        host = HostFirmware(
            self.device,
            product,
            lambda chip: Memory(store, chip, which=lambda: self.initialisation, clock=self.time),
        )
        anchors = (anchor_from_certificate(self.server.authority.ark),)
        table_cache = TableCache(
            ChipJudge(host.product, host.hwid, anchors, self._known_crl),
            cast("CertificateSource", self.server),
            VlekStore(self.config.vlek_certificates),
            clock=self.time,
        )
        return Agent(
            self.config, host, table_cache, listener=self.events.append, performer=self.performer
        )

    def time(self) -> datetime:
        """Return the time of the host's clock."""
        return self.now or datetime.now(UTC)

    def _known_crl(self, kind: VekKind) -> bytes | None:
        return self.server.known_crl(self.firmware.product, kind)

    def reported(self) -> TcbVersion:
        return self.firmware.state.reported

    def lower(self, microcode: int = 1) -> TcbVersion:
        """Return a lower TCB that may be reported instead of the current one."""
        now = self.reported()
        return replace(now, microcode=now.components()["microcode"] - microcode)

    def provider(self) -> CloudProvider:
        return CloudProvider("CN=cloud.example", bytes(32))

    def vlek(self, tcb: TcbVersion | None = None) -> tuple[bytes, bytes]:
        """A hashstick for this chip, and the certificate of its VLEK."""
        tcb = tcb or self.reported()
        provider = self.provider()
        issued = vlek_of(self.server.authority, provider, tcb)
        return provider.hashstick_for(self.firmware.chip, tcb), issued.leaf

    def table(self, path: Path | None = None) -> CertTable:
        return CertTable.decode((path or self.file).read_bytes())

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]

    def seen_by_guest(self, path: Path | None = None) -> str:
        """What a guest of this file gets: ``empty``, ``right`` or ``wrong``.

        Judged by the public keys alone, not by the agent's own judgement.
        """
        from snpcerts.abi.cert_table import VCEK_GUID, VLEK_GUID

        path = path or self.file
        table = self.table(path) if path.exists() else CertTable()
        if not table.entries:
            return "empty"
        key = self.firmware.signing_public_key()
        leaves = [table.get(guid) for guid in (VCEK_GUID, VLEK_GUID)]
        keys = [by_the_library(leaf).public_key() for leaf in leaves if leaf]
        return "right" if keys == [key] else "wrong"


def served(path: Path) -> Found:
    """Return what a VMM would find."""
    seen: list[Found] = []
    CertFile(str(path)).serve(deliver=seen.append, handshake=lambda: None, lock_wait=0)
    return seen[0]
