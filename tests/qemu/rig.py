# SPDX-License-Identifier: Apache-2.0
"""Starts a stock QEMU on this machine's KVM, which is made to look like that of an SNP host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snpcerts.abi.cert_table import PAGE_SIZE

HERE = Path(__file__).parent
ENDED = 0x10 << 1 | 1  # what isa-debug-exit makes of the guest's last word
LIMIT = 60.0  # seconds for a guest that takes less than one
LOADER = Path("/lib64/ld-linux-x86-64.so.2")  # by the AMD64 supplement of the System V ABI
NAMESPACE = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
WITH_LOADER = f"""
mount --bind "$1" {LOADER}
export LD_LIBRARY_PATH="$2"
shift 2
exec "$@"
"""


def fetched() -> Path:
    """Where fetch.sh puts QEMUs."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("SNPCERTS_QEMU") or Path(cache, "snpcerts", "qemu"))


@dataclass(frozen=True)
class Answer:
    """What the guest got for one request, and its buffer, if the guest printed that."""

    ret: int
    pages: int
    buffer: bytes = b""


@dataclass(frozen=True)
class Tools:
    """What is built for the tests: the fake SNP host, and code for guests."""

    folder: Path
    c_bit: int  # where QEMU finds it in this machine's CPUID, and insists on it

    @property
    def fake(self) -> Path:
        return self.folder / "fake_snp_kvm.so"

    @property
    def boot_sector(self) -> Path:
        return self.folder / "boot.bin"

    def rom(self, rounds: int, pages: int) -> Path:
        """Firmware that asks for certificates in ``rounds`` rounds.

        Each round has two requests: the first with a buffer of ``pages`` pages, the second with as
        many as the answer to the first names.
        """
        made = self.folder / f"rom-{rounds}-{pages}.bin"
        if not made.exists():
            assemble(HERE / "rom.S", made, f"ROUNDS={rounds}", f"PAGES={pages}")
        return made


def assemble(source: Path, output: Path, *symbols: str) -> None:
    """Assemble 16-bit code; write only its bytes, as they are in memory."""
    code = output.with_suffix(".o")
    argv = ["as", "--32", *(word for symbol in symbols for word in ("--defsym", symbol))]
    subprocess.run([*argv, "-o", code, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", code, output], check=True)


@dataclass(frozen=True)
class Qemu:
    """One QEMU, as unpacked, and a directory for its guest's output."""

    root: Path
    tools: Tools
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    def command(self, *machine: str) -> list[str]:
        share = self.root / "usr" / "share"
        argv = [str(self.root / "usr/bin/qemu-system-x86_64"), "-L", str(share / "qemu")]
        argv += ["-L", str(share / "seabios"), "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-accel", "kvm", "-cpu", "qemu64", "-m", "64"]
        argv += ["-chardev", f"file,id=console,path={self.console}"]
        argv += ["-device", "isa-debugcon,iobase=0x402,chardev=console"]
        return [*argv, "-device", "isa-debug-exit,iobase=0x501,iosize=2", *machine]

    def snp_command(self, rom: Path, *more: str) -> list[str]:
        """The command for an SNP guest, with the sandbox options that libvirt passes."""
        return self.command(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-machine",
            "q35,confidential-guest-support=sev0",
            "-object",
            f"sev-snp-guest,id=sev0,cbitpos={self.tools.c_bit},reduced-phys-bits=1",
            "-bios",
            str(rom),
            *more,
        )

    @property
    def console(self) -> Path:
        return self.folder / "console"

    @property
    def libraries(self) -> str:
        """The loader's search path: the directories of the libraries that this machine may lack."""
        folders = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
        return ":".join(str(self.root / each) for each in folders)

    @property
    def loader(self) -> Path | None:
        """The dynamic loader that came with this QEMU, if it has a C library of its own."""
        loader = self.root / "usr" / "lib" / "x86_64-linux-gnu" / LOADER.name
        return loader if loader.exists() else None

    def started(self, arguments: Sequence[str]) -> list[str]:
        """The command that starts a program in an environment where this QEMU can run unchanged.

        If this QEMU has a C library of its own, the environment is a mount namespace with QEMU's
        loader at the path in its ELF header. All programs in that namespace use this C library.
        """
        if self.loader is None:
            return list(arguments)
        return [
            *NAMESPACE,
            "sh",
            "-ec",
            WITH_LOADER,
            "sh",
            str(self.loader),
            self.libraries,
            *arguments,
        ]

    def environment(self, *, fake: bool) -> dict[str, str]:
        made = os.environ | self.settings
        if self.loader is None:
            made["LD_LIBRARY_PATH"] = self.libraries
        return made | {"LD_PRELOAD": str(self.tools.fake)} if fake else made

    def run(
        self, arguments: Sequence[str], *, certs: Path | None, fake: bool = True, timeout: int = 100
    ) -> subprocess.CompletedProcess[str]:
        """Run a command until it ends, under 'snpcerts run' if ``certs`` is given."""
        return subprocess.run(
            self.started([*(run_with(certs, timeout) if certs else []), *arguments]),
            capture_output=True,
            text=True,
            env=self.environment(fake=fake),
            timeout=LIMIT,
        )

    def answers(self) -> list[tuple[Answer, Answer]]:
        """What the ROM has written: for each round, the answers to its first and second request."""
        data = self.console.read_bytes()
        found: list[tuple[Answer, Answer]] = []
        while data:
            first, second = Answer(data[0], data[1]), Answer(data[2], data[3])
            size = second.pages * PAGE_SIZE
            assert len(data) >= 4 + size, "the guest must write its whole buffer"
            found.append((first, Answer(second.ret, second.pages, data[4 : 4 + size])))
            data = data[4 + size :]
        return found


def run_with(certs: Path, timeout: int) -> list[str]:
    argv = [sys.executable, "-m", "snpcerts", "run", "--certs-filename", str(certs)]
    return [*argv, "--certs-timeout", str(timeout), "--"]
