# SPDX-License-Identifier: Apache-2.0
"""What ``host check`` finds, as far as tests can provoke it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snpcerts.errors import RefusedError
from snpcerts.host import host_check
from snpcerts.host.config import Config, FileConfig
from snpcerts.host.host_check import Finding, Severity
from snpcerts.host.host_processor import product_of_host
from snpcerts.host.mitigations import mitigations

from .rig import Rig


def outcomes(config: Config) -> dict[str, Finding]:
    return {line.what: line for line in host_check.files(config)}


@pytest.mark.parametrize(
    ("release", "outcome"),
    [
        ("7.0.0-rc1", Severity.PASS),
        ("10.2.3", Severity.PASS),
        ("6.18.4-el10", Severity.WARN),
        ("strange", Severity.WARN),
    ],
)
def test_the_kernels_release(release: str, outcome: Severity) -> None:
    assert host_check.kernel(release).outcome is outcome


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ((Severity.PASS,), "no check failed: this host can serve certificates"),
        (
            (Severity.WARN, Severity.PASS),
            "no check failed, 1 warning: this host can serve certificates",
        ),
        (
            (Severity.WARN, Severity.FAIL, Severity.WARN, Severity.FAIL),
            "2 checks failed, 2 warnings: this host cannot serve certificates",
        ),
    ],
)
def test_the_last_line_is_the_answer(outcomes: tuple[Severity, ...], said: str) -> None:
    assert host_check.summary([Finding("x", each, "found") for each in outcomes]) == said


def _fails(fd: int) -> bool:
    raise OSError(25, os.strerror(25))


@pytest.mark.parametrize(
    ("supports", "path", "outcome", "text"),
    [
        (lambda _: True, "/dev/null", Severity.PASS, "is 1"),
        (lambda _: False, "/dev/null", Severity.FAIL, "sev_snp=1"),
        (_fails, "/dev/null", Severity.FAIL, "Inappropriate ioctl"),
        (lambda _: True, "/dev/no-kvm", Severity.FAIL, "load kvm_amd"),
    ],
)
def test_kvms_own_word(
    supports: Callable[[int], bool], path: str, outcome: Severity, text: str
) -> None:
    line = host_check.kvm(supports, path)
    assert line.outcome is outcome
    assert text in str(line)


def test_firmware_that_is_not_initialised_fails(rig: Rig) -> None:
    assert host_check.firmware(lambda: rig.agent().firmware).outcome is Severity.PASS
    rig.firmware.snp_shutdown()
    line = host_check.firmware(lambda: rig.agent().firmware)
    assert line.outcome is Severity.FAIL
    assert "not initialised" in line.found
    rig.device.broken = True
    assert host_check.firmware(lambda: rig.agent().firmware).outcome is Severity.FAIL


def test_a_sound_directory_passes_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    lines = outcomes(Config(files=(FileConfig(str(tmp_path / "certs.bin")),)))
    assert {line.outcome for line in lines.values()} == {Severity.PASS}
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_missing_or_open_to_others(tmp_path: Path) -> None:
    missing = outcomes(Config(files=(FileConfig(str(tmp_path / "no" / "certs.bin")),)))
    assert missing["directory"].to_do.startswith("mkdir -p")
    tmp_path.chmod(0o777)
    assert outcomes(Config(files=(FileConfig(str(tmp_path / "x")),)))["directory"].outcome is (
        Severity.WARN
    )


def test_a_file_with_another_mode_or_for_everyone(tmp_path: Path) -> None:
    path = tmp_path / "certs.bin"
    path.touch()
    path.chmod(0o644)
    config = Config(files=(FileConfig(str(path), mode=0o640),))
    assert outcomes(config)["certificate file"].outcome is Severity.FAIL
    config = Config(files=(FileConfig(str(path)),))
    assert "block updates" in str(outcomes(config)["certificate file"])
    path.unlink()
    path.mkdir()
    assert outcomes(config)["certificate file"].outcome is Severity.FAIL


def test_a_group_that_does_not_exist_fails_before_there_is_a_file(tmp_path: Path) -> None:
    config = Config(files=(FileConfig(str(tmp_path / "certs.bin"), group="no-such-group"),))
    line = outcomes(config)["certificate file"]
    assert line.outcome is Severity.FAIL
    assert "no group 'no-such-group'" in str(line)


def test_a_network_file_system_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_check, "file_system", lambda _: "nfs4")
    lines = outcomes(Config(files=(FileConfig(str(tmp_path / "certs.bin")),)))
    assert lines["file system"].outcome is Severity.FAIL


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 8:2 / /srv\\040x rw shared:1 - nfs4 host:/ rw\n"
        "3 2 8:3 / /srv\\040x/local rw - xfs /dev/sdb rw\n"
        "nonsense\n"
    )
    for path, kind in (("/srv x/y", "nfs4"), ("/srv x/local/y", "xfs"), ("/srv xyz", "ext4")):
        assert host_check.file_system(path, str(mounts)) == kind
    assert host_check.file_system("/", str(tmp_path / "missing")) == ""


def test_the_product_is_the_processors(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    text = "vendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: x\n"
    path.write_text(text.format("AuthenticAMD", 25, 17))
    assert product_of_host(str(path)).value == "Genoa"
    for words in (("AuthenticAMD", 6, 1), ("GenuineIntel", 25, 17), ("AuthenticAMD", "?", "")):
        path.write_text(text.format(*words))
        with pytest.raises(RefusedError, match="--product"):
            product_of_host(str(path))


@pytest.mark.parametrize(
    ("release", "names"),
    [
        ("6.8.0-31-generic", []),
        ("6.12.9", ["ghcb-not-registered"]),
        ("7.0.4-1-amd64", ["vlek-load-lost", "ghcb-not-registered"]),
        ("7.2.3", ["ghcb-not-registered"]),
        ("7.2.6", []),
        ("7.3.4", []),
        ("strange", []),
    ],
)
def test_known_faults_of_a_kernel_are_named_with_the_version_that_fixes_them(
    release: str, names: list[str]
) -> None:
    """The versions are those in the table's sources; a warning does not fail the check."""
    lines = list(host_check.faults(release))
    assert [line.what.removeprefix("kernel fault ") for line in lines] == names
    assert all("fixed in 7.2" in line.to_do and "source: " in line.found for line in lines)
    assert host_check.passed(lines)


def test_mitigations_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    assert mitigations(str(tmp_path)) is None
    (tmp_path / "supported_mitigations").write_text("0x3f\n")
    assert mitigations(str(tmp_path)) is None
    (tmp_path / "verified_mitigations").write_text("0x1f\n")
    found = mitigations(str(tmp_path))
    assert found is not None
    assert (found.supported, found.verified, found.unverified) == (0x3F, 0x1F, 0x20)
    assert str(found) == "supported 0x3f, verified 0x1f, unverified 0x20"
    (tmp_path / "verified_mitigations").write_text("all of them\n")
    assert mitigations(str(tmp_path)) is None
