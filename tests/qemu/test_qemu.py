# SPDX-License-Identifier: Apache-2.0
"""Stock QEMU, unmodified, with the shim: real vCPUs on real KVM, with a fake SNP side."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import ASK_GUID, EMPTY, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK
from snpcerts.certfile.file import CertFile

from .rig import ENDED, LIMIT, Answer, Qemu, run_with

UNTOUCHED = 0xEE  # what the guest fills its buffer with


def a_table(size: int = 9000) -> CertTable:
    """A table whose certificates differ in every byte from those of a table of another size."""
    blob = bytes((size + index) % 251 + 1 for index in range(size))
    return CertTable((TableEntry(VCEK_GUID, blob), TableEntry(ASK_GUID, blob[::-1][:1000])))


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    path = tmp_path / "certs.bin"
    CertFile(str(path)).publish(a_table())
    return path


def test_the_guest_reads_the_certificate_files_bytes(qemu: Qemu, certs: Path) -> None:
    made = qemu.run(qemu.snp_command(qemu.tools.rom(3, 0)), certs=certs)
    assert made.returncode == ENDED, made.stderr
    assert "snpcerts" not in made.stderr
    table = certs.read_bytes()
    for first, second in qemu.answers():
        assert first == Answer(errno.ENOSPC, 3)
        assert (second.ret, second.pages) == (0, 3)
        assert second.buffer.startswith(table)
        assert set(second.buffer[len(table) :]) == {UNTOUCHED}
    assert len(qemu.answers()) == 3


def test_without_the_shim_the_guest_gets_no_certificates(qemu: Qemu) -> None:
    """This shows that the fake SNP host does not hand out certificates itself."""
    made = qemu.run(qemu.snp_command(qemu.tools.rom(1, 1)), certs=None)
    assert made.returncode == ENDED, made.stderr
    ((first, second),) = qemu.answers()
    assert first.ret == second.ret == errno.EIO
    assert set(second.buffer) == {UNTOUCHED}


def test_a_kernel_without_the_exit_runs_the_guest_as_ever(qemu: Qemu, certs: Path) -> None:
    old = replace(qemu, settings={"NO_REQ_CERTS": "1"})
    made = old.run(qemu.snp_command(qemu.tools.rom(1, 1)), certs=certs)
    assert made.returncode == ENDED, made.stderr
    assert "snpcerts: warning: this kernel's KVM does not request certificates" in made.stderr
    assert "snpcerts shim: guests get no certificates: this kernel's KVM" in made.stderr
    assert qemu.answers()[0][0].ret == errno.EIO


def test_a_missing_file_is_an_empty_table(qemu: Qemu, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    made = qemu.run(qemu.snp_command(qemu.tools.rom(2, 1)), certs=missing)
    assert made.returncode == ENDED, made.stderr
    for first, second in qemu.answers():
        assert first.ret == second.ret == 0
        assert second.buffer.startswith(EMPTY)
        assert set(second.buffer[len(EMPTY) :]) == {UNTOUCHED}
    message = f"snpcerts shim: {missing}: guests get no certificates: No such file or directory"
    assert made.stderr.splitlines().count(message) == 1


def test_an_update_makes_it_busy(qemu: Qemu, certs: Path) -> None:
    with open(certs, "r+b") as writer:
        fcntl.fcntl(writer, F_OFD_SETLK, EXCLUSIVE)
        made = qemu.run(qemu.snp_command(qemu.tools.rom(2, 3)), certs=certs, timeout=5)
    assert made.returncode == ENDED, made.stderr
    for first, second in qemu.answers():
        assert first.ret == second.ret == errno.EAGAIN
        assert set(second.buffer) == {UNTOUCHED}


def test_tables_are_whole_while_updates_run(qemu: Qemu, certs: Path) -> None:
    tables = [a_table(size) for size in (500, 900, 1300, 1700, 2100)]
    CertFile(str(certs)).publish(tables[0])
    over, updates = threading.Event(), 0

    def update() -> None:
        nonlocal updates
        while not over.wait(0.005):
            updates += 1
            CertFile(str(certs)).publish(tables[updates % len(tables)])

    updating = threading.Thread(target=update)
    updating.start()
    try:
        made = qemu.run(qemu.snp_command(qemu.tools.rom(50, 1)), certs=certs, timeout=20)
    finally:
        over.set()
        updating.join()
    assert made.returncode == ENDED, made.stderr
    encoded = {table.encode() for table in tables}
    seen = set()
    for _, second in qemu.answers():
        if second.ret == errno.EAGAIN:
            continue
        assert second.ret == 0
        (table,) = (each for each in encoded if second.buffer.startswith(each))
        assert set(second.buffer[len(table) :]) <= {UNTOUCHED}
        seen.add(table)
    assert updates > 1
    assert len(seen) > 1


def test_stop_and_cont_reach_a_guest_that_asks_all_the_time(qemu: Qemu, certs: Path) -> None:
    """QEMU stops a VM by kicking its vCPUs. If a kick were lost, QEMU would wait forever."""
    argv = [*run_with(certs, 100), *qemu.snp_command(qemu.tools.rom(20_000, 0), "-qmp", "stdio")]
    vmm = subprocess.Popen(
        qemu.started(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=qemu.environment(fake=True),
    )
    assert vmm.stdin is not None
    assert vmm.stdout is not None
    said, heard = vmm.stdin, vmm.stdout
    watch = threading.Timer(LIMIT, vmm.kill)
    watch.start()

    def command(name: str) -> dict[str, object]:
        said.write(json.dumps({"execute": name}) + "\n")
        said.flush()
        for line in heard:
            answer = json.loads(line)
            if "return" in answer or "error" in answer:
                return dict(answer)
        raise AssertionError(f"QEMU ended or hung after {name!r}")

    try:
        command("qmp_capabilities")
        for _ in range(50):
            assert command("stop") == {"return": {}}
            assert command("cont") == {"return": {}}
            before = qemu.console.stat().st_size
            while qemu.console.stat().st_size == before:
                assert vmm.poll() is None, "the guest must keep requesting reports"
        assert command("quit") == {"return": {}}
        assert vmm.wait(LIMIT) == 0
    finally:
        watch.cancel()
        vmm.kill()
        vmm.wait()
        vmm.stdin.close()
        vmm.stdout.close()


@pytest.mark.slow  # firmware takes its time
def test_a_vm_that_is_not_snp_is_none_the_worse(any_qemu: Qemu, certs: Path) -> None:
    """The VM runs firmware, which moves memory slots, and a boot sector with many exits to QEMU."""
    drive = f"if=none,id=disk,format=raw,file={any_qemu.tools.boot_sector}"
    machine = ["-machine", "q35", "-smp", "2", "-drive", drive, "-device", "ide-hd,drive=disk"]
    argv = any_qemu.command(*machine)
    shown = []
    for each in (None, certs):
        made = any_qemu.run(argv, certs=each, fake=False)
        assert made.returncode == ENDED, made.stderr
        shown.append(any_qemu.console.read_bytes())
        assert "snpcerts shim" not in made.stderr
    assert shown[0] == shown[1]
    assert shown[1].endswith(b"B" + b"." * 1000)
