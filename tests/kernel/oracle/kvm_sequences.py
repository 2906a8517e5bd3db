# SPDX-License-Identifier: Apache-2.0
"""Random lives of VMs, weighted toward important paths, on the kernel's code and on the emulator.

Uniformly random input hardly ever gets as far as a certificate request. ``mutants.py`` measures
how good the weights are: by how many mutants of the kernel's functions the sequences find.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from snpcerts.abi.ghcb import USAGE, VALID_BITMAP, ExitCode, MsrCode
from snpcerts.abi.guest_message import MSG_TYPE_OFFSET
from snpcerts.abi.kvm import RUN_EXIT, RUN_EXIT_SIZE, RUN_IMMEDIATE_EXIT, ExitReason
from snpcerts.abi.psp import SevStatus

from .difference import DifferenceError
from .kvm import CPUID, IN_GUEST, MSRS, PAGE, PAGES, EmulatedKvm, FirmwareScript, KernelKvm, Setting
from .user import weighted

GHCB, REQUEST, RESPONSE, DATA = 4 * PAGE, 8 * PAGE, 9 * PAGE, 16 * PAGE
_RUNS_MAX: Final = 5  # KVM_RUNs after one exit of the guest

# Offsets of the GHCB fields that KVM reads.
_FIELDS: Final = {
    "cpl": 0x0CB,
    "xss": 0x140,
    "rax": 0x1F8,
    "rcx": 0x308,
    "rdx": 0x310,
    "rbx": 0x318,
    "rsi": 0x330,
    "code": 0x390,
    "info1": 0x398,
    "info2": 0x3A0,
    "scratch": 0x3A8,
    "xcr0": 0x3E8,
}
_EXIT_CODES: Final = tuple(int(each) for each in ExitCode)
_SHARED: Final = 0x800
# What guest memory holds at first. In memory of zeros, a write of zeros would go unnoticed.
_FILLED: Final = random.Random(0).randbytes(PAGES * PAGE)
# Exit codes (SVM_EXIT_*) of instructions that a guest asks KVM to emulate.
CPUID_EXIT, IOIO, MSR, VMMCALL = 0x72, 0x7B, 0x7C, 0x81
_INSTRUCTIONS: Final = (
    0x27,
    0x37,
    0x6E,
    0x6F,
    CPUID_EXIT,
    0x76,
    IOIO,
    MSR,
    VMMCALL,
    0x87,
    0x89,
    0x8A,
    0x8B,
    *(4 * (IOIO,)),
)


class Life:
    """One VM on both sides."""

    def __init__(self, kernel: KernelKvm, emulator: EmulatedKvm, seed: str) -> None:
        self._random = random.Random(seed)
        self._sides: tuple[KernelKvm, EmulatedKvm] = (kernel, emulator)
        self._story: list[str] = []
        self._unmapped: set[int] = set()
        # Pages that must not be unmapped: those without a slot, and the GHCB's page once it has
        # been changed during an exit. KVM keeps that page mapped and sees the change; without the
        # page, the emulator has only its copy, which lacks the change.
        self._kept: set[int] = set()
        self._what = ""
        self.exits: set[str] = set()

    def live(self) -> None:
        """Go through the sequence; raises :class:`DifferenceError` at the first difference."""
        pick = self._random
        setting = Setting(
            snp=pick.random() < 0.93,
            certs=pick.random() < 0.8,
            irqchip=pick.random() < 0.2,
            hypercalls=pick.random() < 0.8,
            ghcb_version=2,
            features=pick.choice((0, 0, 1 << 5)),
            second=pick.random() < 0.5,
            no_slot=frozenset(pick.sample(range(10, PAGES), 2) if pick.random() < 0.3 else ()),
            sev_fd=weighted(pick, ((0, 92), (1, 4), (2, 4))),
        )
        self._kept |= setting.no_slot
        self._tell(f"{setting}")
        for side in self._sides:
            side.reset(setting)
            side.write(0, _FILLED)
        try:
            if pick.random() < 0.2:
                self._mess_with_run(first=True)
            self._run("first")
            if pick.random() < 0.93:
                self._exit(GHCB | MsrCode.REGISTER_GPA_REQ, "register")
            for _ in range(pick.randint(1, 3)):
                self._guest_exits()
        finally:
            self._sides[1].close()

    # What the guest does.

    def _guest_exits(self) -> None:
        pick = self._random
        self._firmware()
        kind = weighted(pick, (("msr", 18), ("ghcb", 80), ("junk", 2)))
        if kind == "msr":
            msr = self._msr_request()
            self._exit(msr, f"msr {msr & 0xFFF:#x}")
        elif kind == "junk":
            self._exit(pick.getrandbits(64), "msr junk")
        else:
            code = self._ghcb_page()
            gpa = weighted(
                pick, ((GHCB, 95), (GHCB + PAGE, 2), (0, 1), (PAGES * PAGE, 1), (1 << 60, 1))
            )
            self._exit(gpa, f"code {code:#x}")

    def _msr_request(self) -> int:
        pick = self._random
        code = weighted(
            pick,
            (
                (MsrCode.PSC_REQ, 30),
                (MsrCode.CPUID_REQ, 15),
                (MsrCode.REGISTER_GPA_REQ, 8),
                (MsrCode.SEV_INFO_REQ, 5),
                (MsrCode.AP_RESET_HOLD_REQ, 5),
                (MsrCode.PREFERRED_GPA_REQ, 5),
                (MsrCode.HV_FEATURES_REQ, 5),
                (MsrCode.TERMINATE, 5),
                (pick.randrange(1, 0x1000), 5),
            ),
        )
        if code == MsrCode.PSC_REQ:
            operation = weighted(pick, ((1, 45), (2, 45), (pick.randrange(16), 10)))
            return operation << 52 | pick.getrandbits(pick.choice((4, 40))) << 12 | code
        if code == MsrCode.CPUID_REQ:
            function = pick.choice((*CPUID, pick.getrandbits(32)))
            return function << 32 | pick.getrandbits(20) << 12 | code
        return pick.getrandbits(52) << 12 | code if pick.random() < 0.7 else int(code)

    def _ghcb_page(self) -> int:
        pick = self._random
        code = weighted(
            pick,
            (
                (int(ExitCode.SNP_EXT_GUEST_REQUEST), 40),
                (int(ExitCode.SNP_GUEST_REQUEST), 14),
                (int(ExitCode.PSC), 14),
                (pick.choice(_INSTRUCTIONS), 14),
                (int(pick.choice((ExitCode.MMIO_READ, ExitCode.MMIO_WRITE))), 6),
                (int(ExitCode.AP_CREATION), 4),
                (int(ExitCode.AP_JUMP_TABLE), 3),
                (pick.choice(_EXIT_CODES), 6),
                (
                    pick.choice(
                        (0x8000_0006, 0x8000_0014, pick.getrandbits(32), pick.getrandbits(64))
                    ),
                    2,
                ),
            ),
        )
        fields = {name: pick.getrandbits(64) for name in _FIELDS}
        wanted = {"code", "info1", "info2"}
        if code in (ExitCode.SNP_EXT_GUEST_REQUEST, ExitCode.SNP_GUEST_REQUEST):
            wanted |= {"rax", "rbx"}
            fields["info1"] = self._address(REQUEST)
            fields["info2"] = self._address(RESPONSE)
            if pick.random() < 0.04:
                fields["info2"] = fields["info1"]
            fields["rax"] = self._address(DATA)
            fields["rbx"] = weighted(pick, ((0, 15), (1, 15), (4, 50), (pick.getrandbits(64), 20)))
            message = bytearray(pick.randbytes(PAGE))
            message[MSG_TYPE_OFFSET] = weighted(pick, ((5, 85), (3, 5), (pick.randrange(256), 10)))
            self._write(REQUEST, bytes(message), "request")
        elif code == ExitCode.PSC:
            wanted.add("scratch")
            fields["scratch"] = self._scratch()
        elif code in (ExitCode.MMIO_READ, ExitCode.MMIO_WRITE):
            wanted.add("scratch")
            fields["scratch"] = self._scratch()
            fields["info1"] = pick.choice((0xFEC0_0000, 0x1000, pick.getrandbits(52)))
            fields["info2"] = weighted(
                pick, ((pick.randrange(0, 10), 90), (pick.getrandbits(64), 10))
            )
        elif code == ExitCode.AP_CREATION:
            wanted.add("rax")
            target = weighted(pick, ((0, 30), (1, 40), (2, 20), (pick.getrandbits(32), 10)))
            fields["info1"] = target << 32 | weighted(
                pick, ((0, 30), (1, 30), (2, 30), (pick.getrandbits(32), 10))
            )
            fields["rax"] = weighted(pick, ((1, 60), (0x21, 30), (0, 10)))
            fields["info2"] = weighted(
                pick,
                (
                    (5 * PAGE, 60),
                    (1 << 21, 10),
                    (pick.getrandbits(40) << 12, 15),
                    (pick.getrandbits(64), 15),
                ),
            )
        elif code == ExitCode.AP_JUMP_TABLE:
            fields["info1"] = pick.choice((0, 1, 1, 2))
        elif code in (CPUID_EXIT, MSR, VMMCALL, IOIO):
            wanted |= {"rax", "rcx", "rdx", "rbx", "cpl", "xcr0", "rsi"}
            self._instruction(code, fields, wanted)
        elif pick.random() < 0.5:
            wanted |= set(_FIELDS)
        if pick.random() < 0.12:
            wanted.discard(pick.choice(sorted(wanted)))
        if pick.random() < 0.1:
            wanted.add(pick.choice(list(_FIELDS)))
        fields["code"] = code
        self._page(fields, wanted, usage=0 if pick.random() < 0.97 else pick.choice((1, 1 << 31)))
        if code == ExitCode.PSC:
            self._psc_entries(fields["scratch"])
        return code

    def _instruction(self, code: int, fields: dict[str, int], wanted: set[str]) -> None:
        pick = self._random
        if code == CPUID_EXIT:
            fields["rax"] = pick.choice((*CPUID, 0xD, pick.getrandbits(32)))
            if pick.random() < 0.3:
                wanted.discard("xcr0")
        elif code == MSR:
            fields["info1"] = pick.choice((0, 1))
            fields["rcx"] = pick.choice((*MSRS, pick.getrandbits(32)))
        elif code == VMMCALL:
            fields["cpl"] = pick.choice((0, 0, 0, 3))
            fields["rax"] = pick.choice((12, 12, 12, 1, 5, 9, 10, 11, pick.getrandbits(64)))
            fields["rbx"] = pick.choice((0, PAGE, pick.getrandbits(40) << 12, pick.getrandbits(64)))
            fields["rcx"] = pick.choice((0, 1, 16, pick.getrandbits(64)))
            fields["rdx"] = pick.choice((0, 1, 0x10, 0x11, pick.getrandbits(64)))
        else:
            size = pick.choice((0, 1, 2, 4))
            fields["info1"] = pick.getrandbits(16) << 16 | size << 4 | pick.choice((0, 1, 4, 5))
            fields["info2"] = weighted(
                pick,
                (
                    (pick.randrange(0, 70), 70),
                    (pick.randrange(0, 3000), 15),
                    (pick.getrandbits(64), 15),
                ),
            )
            fields["scratch"] = self._scratch()
            wanted.add("scratch")

    def _scratch(self) -> int:
        pick = self._random
        return weighted(
            pick,
            (
                (GHCB + _SHARED, 80),
                (GHCB + _SHARED + pick.randrange(0, 2032), 8),
                (GHCB + 0xFF0 - pick.randrange(0, 10), 6),
                (GHCB + pick.randrange(PAGE), 4),
                (DATA, 3),
                (0, 1),
                (pick.getrandbits(64), 2),
            ),
        )

    def _psc_entries(self, scratch: int) -> None:
        """Write a list of page state changes to ``scratch``, if that is in the GHCB."""
        pick = self._random
        if not GHCB + _SHARED <= scratch <= GHCB + PAGE - 8:
            return
        room = (GHCB + 0xFF0 - scratch - 8) // 8
        count = min(max(room, 1), weighted(pick, ((1, 30), (pick.randrange(1, 6), 50), (253, 5))))
        first = weighted(pick, ((0, 80), (pick.randrange(0, 4), 18), (pick.getrandbits(16), 2)))
        last = weighted(
            pick, ((count - 1, 85), (pick.randrange(0, 256), 10), (pick.getrandbits(16), 5))
        )
        entries, gfn = [], pick.randrange(0, 64)
        operation = pick.choice((1, 2))
        for _ in range(count):
            huge = pick.random() < 0.25
            if pick.random() < 0.25:
                operation = weighted(pick, ((1, 40), (2, 40), (pick.randrange(16), 20)))
            if pick.random() < 0.2 or (huge and pick.random() < 0.9):
                gfn = pick.randrange(0, 16) * 512 if huge else pick.getrandbits(40)
            done = weighted(pick, ((0, 85), (pick.randrange(0, 600), 15)))
            entries.append(
                done & 0xFFF
                | (gfn & (1 << 40) - 1) << 12
                | operation << 52
                | huge << 56
                | pick.getrandbits(7) << 57
            )
            gfn += 512 if huge else 1
        data = struct.pack("<HHI", first, last, 0) + struct.pack(f"<{count}Q", *entries)
        room = GHCB + 0xFF0 - scratch
        self._write(scratch, data[: max(room, 0)], f"psc {count}")

    def _address(self, usual: int) -> int:
        pick = self._random
        return weighted(
            pick,
            (
                (usual, 84),
                (pick.randrange(PAGES) * PAGE, 6),
                (usual + pick.randrange(PAGE), 4),
                (PAGES * PAGE, 2),
                (pick.getrandbits(64) & ~0xFFF, 4),
            ),
        )

    def _page(self, fields: dict[str, int], valid: set[str], usage: int) -> None:
        page = bytearray(PAGE)
        for name, at in _FIELDS.items():
            if name == "cpl":
                page[at] = fields[name] & 0xFF
            else:
                page[at : at + 8] = fields[name].to_bytes(8, "little")
            if name in valid:
                page[VALID_BITMAP + at // 64] |= 1 << at // 8 % 8
        page[_SHARED : _SHARED + 2032] = self._random.randbytes(2032)
        page[USAGE : USAGE + 4] = usage.to_bytes(4, "little")
        self._write(
            GHCB, bytes(page), f"ghcb { ({k: hex(v) for k, v in fields.items() if k in valid}) }"
        )

    # What the VMM does, and what others do to memory meanwhile.

    def _exit(self, msr: int, what: str) -> None:
        self._what = what
        self._tell(f"VMGEXIT {msr:#x} ({what})")
        if self._random.random() < 0.3:  # what KVM leaves alone stays
            self._set_run(RUN_EXIT, self._random.randbytes(RUN_EXIT_SIZE))
        inside = self._inside
        result = self._both([side.vmgexit(msr, inside=inside) for side in self._sides])
        if result is None:
            result = self._run("run")
        for _ in range(_RUNS_MAX):
            if result == IN_GUEST:
                return
            self._answer(result)
            result = self._run("answered")
        self._set_run(RUN_IMMEDIATE_EXIT, b"\0")

    def _answer(self, result: int) -> None:
        pick = self._random
        run = self._sides[0].run_page
        reason = int.from_bytes(run[8:12], "little")
        if pick.random() < 0.8:
            for at in (16, 288, 296):
                self._set_run(at, bytes(8))
        if result == 0:
            self._what += f", exit {reason}"
            self.exits.add(f"exit {reason}")
        if reason == ExitReason.SNP_REQ_CERTS and pick.random() < 0.95:
            answer = weighted(
                pick,
                (
                    (0, 45),
                    (28, 15),
                    (11, 12),
                    (5, 12),
                    (pick.getrandbits(32), 8),
                    (pick.getrandbits(64), 8),
                ),
            )
            gpa, npages = pick.getrandbits(64), pick.choice((0, 1, 5, pick.getrandbits(64)))
            self._set_run(RUN_EXIT, struct.pack("<3Q", gpa, npages, answer))
        elif reason == ExitReason.HYPERCALL:
            answer = weighted(
                pick, ((0, 60), (22, 12), (11, 12), (pick.getrandbits(64), 8), ((1 << 64) - 22, 8))
            )
            self._set_run(RUN_EXIT + 56, struct.pack("<Q", answer))
        elif reason == ExitReason.MMIO:
            self._set_run(RUN_EXIT + 8, pick.randbytes(8))
        elif reason == ExitReason.IO:
            data = pick.randbytes(16)
            self._set_run(PAGE, data)
        if pick.random() < 0.25:
            self._tamper()
        if pick.random() < 0.15:
            self._mess_with_run()
        self._set_run(RUN_IMMEDIATE_EXIT, bytes([pick.random() < 0.25]))

    def _tamper(self) -> None:
        """Another vCPU or the VMM changes memory."""
        pick = self._random
        kind = pick.choice(("ghcb", "request", "unmap", "map", "scratch"))
        if kind == "ghcb":
            at = pick.choice(list(_FIELDS.values())) & ~7
            self._kept.add(GHCB // PAGE)
            self._write(GHCB + at, pick.randbytes(8), f"tamper {at:#x}")
        elif kind == "request":
            self._write(REQUEST, pick.randbytes(64), "request again")
        elif kind == "scratch":
            self._kept.add(GHCB // PAGE)
            self._write(
                GHCB + _SHARED + pick.randrange(0, 8) * 8, pick.randbytes(8), "scratch again"
            )
        elif kind == "unmap":
            page = pick.choice((GHCB, REQUEST, RESPONSE, DATA)) // PAGE
            if page in self._kept:
                return
            self._tell(f"unmap {page}")
            self._unmapped.add(page)
            for side in self._sides:
                side.unmap(page)
        elif self._unmapped - {GHCB // PAGE}:
            # Map no new page for the GHCB: KVM would keep the old one, the emulator would not.
            page = min(self._unmapped - {GHCB // PAGE})
            self._unmapped.remove(page)
            self._tell(f"map {page}")
            for side in self._sides:
                side.map(page)

    def _mess_with_run(self, *, first: bool = False) -> None:
        pick = self._random
        kind = pick.choice(("cr8", "valid", "dirty", "junk"))
        if kind == "cr8":
            self._set_run(
                16, pick.choice((0, 5, 15, 16, pick.getrandbits(64))).to_bytes(8, "little")
            )
        elif kind == "valid":
            self._set_run(288, pick.choice((0, 1, 8)).to_bytes(8, "little"))
        elif kind == "dirty":
            self._set_run(296, pick.choice((0, 1, 8)).to_bytes(8, "little"))
        elif not first:
            self._set_run(pick.choice((8, 12, 13, 14, 24, 96, 280, 600)), pick.randbytes(1))

    def _firmware(self) -> None:
        pick = self._random
        code = weighted(pick, ((0, 70), (-5, 20), (-19, 3), (-110, 3), (-16, 4)))
        status = int(pick.choice([each for each in SevStatus if each])) if code == -5 else 0
        script = FirmwareScript(code, status, pick.randbytes(PAGE))
        self._tell(f"firmware {code} {status:#x}")
        for side in self._sides:
            side.script(script)

    # Both sides.

    _inside = False

    def _write(self, gpa: int, data: bytes, what: str) -> None:
        self._tell(f"write {gpa:#x} {what}")
        for page in range(gpa // PAGE, (gpa + max(len(data), 1) - 1) // PAGE + 1):
            if page in self._unmapped or page >= PAGES:
                return
        for side in self._sides:
            side.write(gpa, data)

    def _set_run(self, at: int, data: bytes) -> None:
        if any(data):
            self._tell(f"kvm_run[{at}] = {data[:24].hex()}")
        for side in self._sides:
            side.run_page[at : at + len(data)] = data

    def _run(self, what: str) -> int:
        self._tell(f"KVM_RUN ({what})")
        results = [side.run() for side in self._sides]
        result = self._both(results)
        assert result is not None
        return result

    def _both(self, results: Sequence[int | None]) -> int | None:
        kernel, emulator = results
        if kernel is None or emulator is None:
            return None
        self._inside = kernel == IN_GUEST
        seen = self._sides[0].seen(kernel)
        found = seen.differences(self._sides[1].seen(emulator))
        self._tell(f"-> {kernel}")
        if found:
            raise DifferenceError(f"{self._what}: {' '.join(found)}", found, self._story)
        return kernel

    def _tell(self, line: str) -> None:
        self._story.append(line)


def lives(
    path: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Yield for each life: its number, its exits to userspace, and the difference, if any."""
    kernel, emulator = KernelKvm(path), EmulatedKvm()
    for number in numbers:
        life = Life(kernel, emulator, f"{seed}:{number}")
        found = None
        try:
            life.live()
        except DifferenceError as differs:
            found = differs
        yield number, life.exits, found
