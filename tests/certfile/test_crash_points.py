# SPDX-License-Identifier: Apache-2.0
"""A writer killed before and after each of its system calls, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import EMPTY, CertTable
from snpcerts.abi.product import Product
from snpcerts.abi.psp import SnpConfig
from snpcerts.abi.tcb import TcbVersion
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.reader import Empty, Found, Table
from snpcerts.certfile.writer import Strategy
from snpcerts.demo.demo_host import EmulatedHost
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.firmware import Firmware

from ..keys import authority_of
from ..sizes import sized
from .tracing import can_trace, killed_at

EACH = sized(5, 1)  # the writer is killed at every EACH-th place

# SNPCERTS_FILE_SYSTEMS names more file systems, as in "xfs=/mnt/xfs btrfs=/mnt/btrfs".
FILE_SYSTEMS = {"ext4": tempfile.gettempdir(), "tmpfs": "/dev/shm"}  # noqa: S108 (it is tmpfs)
FILE_SYSTEMS |= dict(
    each.split("=", 1) for each in os.environ.get("SNPCERTS_FILE_SYSTEMS", "").split()
)


def kind_of(folder: str) -> str:
    """The type of the file system that holds ``folder``, from /proc/mounts."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, each, *_ = line.split()
        inside = os.path.commonpath([place, os.path.realpath(folder)]) == place
        if inside and len(place) >= len(best):
            best, kind = place, each
    return kind


@pytest.fixture(params=FILE_SYSTEMS)
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    place = FILE_SYSTEMS[request.param]
    if not os.path.isdir(place) or kind_of(place) != request.param:
        pytest.skip(f"{place} is not {request.param} on this machine")
    path = Path(tempfile.mkdtemp(dir=place))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def host() -> EmulatedHost:
    firmware = Firmware(Chip.create(Product.MILAN))
    return EmulatedHost.of(firmware, authority_of(Product.MILAN), tcbs=2)


def served(path: Path) -> Found:
    seen: list[Found] = []
    CertFile(str(path)).serve(deliver=seen.append, handshake=lambda: None, lock_wait=0)
    return seen[0]


class Scene:
    """A certificate file, and firmware with its state on disk: both outlive a killed process."""

    def __init__(self, folder: Path, host: EmulatedHost) -> None:
        self.file = folder / "certs" / "certs.bin"
        self.home = PlatformHome(folder)
        self.host = host
        self.file.parent.mkdir()
        self.home.save(host.firmware)
        CertFile(str(self.file)).publish(self.right_table())

    def right_table(self) -> CertTable:
        firmware = self.home.firmware()
        reported = firmware.snp_platform_status().reported_tcb
        return self.host.tables[TcbVersion.unpack(reported, firmware.product.tcb_layout)]

    def move_key(self, firmware: Firmware) -> CertTable:
        """Change the reported TCB, as a firmware command would; return the right table for the new
        one. The state is saved by one rename, so never half.
        """
        status = firmware.snp_platform_status()
        now = TcbVersion.unpack(status.reported_tcb, firmware.product.tcb_layout)
        other = next(tcb for tcb in self.host.tcbs if tcb != now)
        firmware.snp_set_config(SnpConfig(reported_tcb=other.pack()))
        self.home.save(firmware)
        return self.host.tables[other]

    def update(self, strategy: Strategy) -> None:
        firmware = self.home.firmware()
        certs = CertFile(str(self.file))
        certs.update(lambda: self.move_key(firmware), strategy=strategy, lock_wait=10)


@pytest.mark.skipif(not can_trace(), reason="ptrace is not allowed on this machine")
@pytest.mark.parametrize("strategy", Strategy, ids=lambda each: each.value)
def test_a_kill_at_any_system_call_leaves_the_empty_or_the_right_table(
    folder: Path, host: EmulatedHost, strategy: Strategy
) -> None:
    scene = Scene(folder, host)
    places: list[str] = []
    seen: set[type] = set()
    while (place := killed_at(len(places) * EACH, lambda: scene.update(strategy))) is not None:
        places.append(place)
        right = scene.right_table()
        found = served(scene.file)
        assert found in (Empty(), Table(right.encode())), (len(places), place)
        # The table is whole, or the empty table's 24 bytes stand in place of its first entry.
        content = scene.file.read_bytes()
        assert content.startswith(EMPTY) or content == right.encode(), (len(places), place)
        seen.add(type(found))
        CertFile(str(scene.file)).publish(right, strategy=strategy)
        assert served(scene.file) == Table(right.encode())
        assert {each.name for each in scene.file.parent.iterdir()} == {
            "certs.bin",
            ".certs.bin.turn",
        }
    assert seen == {Empty, Table}
    calls = [each.removeprefix("before ") for each in places if each != "after"]
    assert len(places) > 2 * 20 // EACH
    for call in ("fcntl", "pwrite64", "fsync", "rename", "close"):
        assert call in calls or EACH > 1, places


def test_the_scene_itself_can_fail(folder: Path, host: EmulatedHost) -> None:
    """If the firmware changes and the file does not, the served table is not the right one."""
    scene = Scene(folder, host)
    scene.move_key(scene.home.firmware())
    assert served(scene.file) != Table(scene.right_table().encode())
