# SPDX-License-Identifier: Apache-2.0
"""``attest`` with each interface: the emulated device, a model of configfs-tsm, and neither."""

from __future__ import annotations

import base64
import errno
import json
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest

from snpcerts.abi.cert_table import CertTable
from snpcerts.cli.main import main
from snpcerts.errors import RefusedError
from snpcerts.guest import configfs_tsm
from snpcerts.guest.attestation import Interface, Paths, attest, own_vmpl
from tests.documented_json import documented
from tests.emulated import SNPCERTS, Emulated
from tests.guest.test_configfs_tsm import DATA, ROOT, TABLE, Kernel


class Mounted(Kernel):
    """The model of the kernel's directory, in the place of a real one."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def inside(self, path: str) -> str:
        return path.replace(str(self.place), ROOT)

    def make(self, path: str) -> None:
        super().make(self.inside(path))

    def remove(self, path: str) -> None:
        super().remove(self.inside(path))

    def write(self, path: str, data: bytes) -> None:
        super().write(self.inside(path), data)

    def read(self, path: str, limit: int) -> bytes:
        return super().read(self.inside(path), limit)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """A machine whose configfs-tsm is at ``tsm`` and that has no other interface."""
    (tmp_path / "tsm").mkdir()
    made = Mounted(tmp_path / "tsm")
    monkeypatch.setattr(configfs_tsm, "SystemFiles", lambda: made)
    return made


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(str(tmp_path / "sev-guest"), str(tmp_path / "tsm"))


def test_without_the_device_configfs_is_asked(kernel: Mounted, paths: Paths) -> None:
    got = attest(DATA, certificates=True, paths=paths)
    assert got.via is Interface.CONFIGFS_TSM
    assert got.report[:65] == b"\0" + DATA
    assert got.certificates == CertTable.decode(TABLE)
    assert (kernel.requests, kernel.entries) == (1, {})


def test_certificates_are_not_read_unless_requested(kernel: Mounted, paths: Paths) -> None:
    kernel.table = b"nonsense"
    assert attest(DATA, certificates=False, paths=paths).certificates is None
    kernel.table = b""
    assert attest(DATA, certificates=True, paths=paths).certificates == CertTable()


def test_the_guests_own_vmpl_is_the_default(kernel: Mounted, paths: Paths, tmp_path: Path) -> None:
    kernel.floor = 2
    assert attest(DATA, certificates=False, vmpl=3, paths=paths).report[0] == 3
    with pytest.raises(RefusedError, match="refused the request"):
        attest(DATA, certificates=False, vmpl=1, paths=paths)
    assert attest(DATA, certificates=False, paths=paths).report[0] == 2
    said = tmp_path / "vmpl"
    assert own_vmpl(str(said)) == 0
    for text, level in (("2\n", 2), ("0\n", 0), ("9\n", 0), ("x", 0)):
        said.write_text(text, encoding="ascii")
        assert own_vmpl(str(said)) == level


def test_with_neither_interface_both_are_named(tmp_path: Path, paths: Paths) -> None:
    with pytest.raises(RefusedError, match=r"neither .*sev-guest nor .*tsm exists") as error:
        attest(DATA, certificates=False, paths=paths)
    assert error.value.hint is not None
    assert "modprobe sev-guest" in error.value.hint
    assert "mount -t configfs" in error.value.hint


@pytest.mark.parametrize("via", list(Interface))
def test_an_interface_named_by_the_user_is_the_only_one_tried(
    via: Interface, paths: Paths, tmp_path: Path
) -> None:
    name = "sev-guest" if via is Interface.SEV_GUEST else "configfs-tsm"
    with pytest.raises(RefusedError) as error:
        attest(DATA, certificates=False, via=via, paths=paths)
    assert "neither" not in str(error.value)
    assert name in str(error.value)
    assert error.value.hint


def test_a_failing_device_does_not_fall_back_to_configfs(
    kernel: Mounted, paths: Paths, tmp_path: Path
) -> None:
    """The operator must learn that the device cannot be used."""
    (tmp_path / "sev-guest").write_bytes(b"")
    with pytest.raises(RefusedError, match="sev-guest"):
        attest(DATA, certificates=False, paths=paths)
    (tmp_path / "sev-guest").unlink()
    (tmp_path / "sev-guest").mkdir()
    with pytest.raises(RefusedError, match="Is a directory"):
        attest(DATA, certificates=False, paths=paths)
    assert kernel.requests == 0


def test_the_guest_report_command(
    kernel: Mounted, paths: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, table = tmp_path / "report.bin", tmp_path / "table.bin"
    argv = ["guest", "report", "-o", str(report), "--table-out", str(table)]
    argv += ["--device", paths.device, "--tsm", paths.tsm, "--report-data", "ab", "--json"]
    for via in ("auto", "configfs-tsm"):
        assert main([*argv, "--via", via]) == 0
        answer = documented("guest report", capsys.readouterr().out)
        assert (answer["via"], answer["table_entries"]) == ("configfs-tsm", 1)
        assert report.read_bytes()[1:3] == b"\xab\0"
        assert table.read_bytes() == TABLE
    assert main([*argv, "--via", "sev-guest"]) == 1
    assert "sev-guest" in capsys.readouterr().err
    kernel.fails["inblob"] = errno.EBUSY
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert "inblob" in error
    assert "Traceback" not in error
    kernel.fails.clear()
    kernel.meddle_after = "auxblob"
    assert main(argv) == 3, "must also exit with 3 if another process has used the entry"


@pytest.mark.parametrize("form", ["tsm-json", "tsm-cbor"])
def test_report_and_certificates_are_written_as_a_tsm_report(
    kernel: Mounted, paths: Paths, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "out"
    argv = ["guest", "report", "-o", str(out), "--format", form, "--report-data", "ab"]
    argv += ["--device", paths.device, "--tsm", paths.tsm]
    assert main(argv) == 0
    if form == "tsm-cbor":
        found = cbor2.loads(out.read_bytes())
    else:
        found = json.loads(out.read_text())
        for name in ("outblob", "auxblob"):
            found[name] = base64.urlsafe_b64decode(found[name] + "===")
    assert found["outblob"][1:3] == b"\xab\0"
    assert (found["auxblob"], found["provider"]) == (TABLE, "sev_guest\n")
    assert kernel.requests == 1


def test_in_an_emulated_guest_the_device_answers(emulated: Emulated, tmp_path: Path) -> None:
    served = str(emulated.certs / "table.bin")
    for via in ("auto", "sev-guest"):
        argv = [*SNPCERTS, "guest", "report", "-o", str(tmp_path / "r"), "--via", via, "--json"]
        made = emulated.run("guest", "--certs", served, "--", *argv)
        assert documented("guest report", made.stdout)["via"] == "sev-guest", made.stderr


def test_paths_are_those_of_the_kernel() -> None:
    assert replace(Paths()) == Paths("/dev/sev-guest", "/sys/kernel/config/tsm/report")
