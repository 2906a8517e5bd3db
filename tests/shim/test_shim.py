# SPDX-License-Identifier: Apache-2.0
"""The shim in front of a scripted KVM: requests, slots, kicks, and doing nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from .conftest import ROOT
from .scenarios import SCENARIOS

# By scenario: settings other than the defaults, and the messages that the operator gets.
SETTINGS: dict[str, dict[str, str]] = {
    "a_writer_makes_it_busy": {"SNPCERTS_CERTS_TIMEOUT": "0"},
    "a_writer_that_ends_in_time_is_waited_for": {"SNPCERTS_CERTS_TIMEOUT": "59999"},
}
_UNKNOWN = "the VMM may add memory through a descriptor that the shim does not know"
SAID: dict[str, list[str]] = {
    "a_file_that_cannot_be_served_is_an_empty_table": [
        "guests get no certificates: No such file or directory",
        "guests get no certificates: it is not a regular file",
        "guests get no certificates: it is too large",
        "readable again",
    ],
    "a_sandbox_that_forbids_the_usual_way_gets_an_empty_table": ["it is not a regular file"],
    "a_file_with_less_than_it_says_is_an_empty_table": ["it shrank during the read"],
    "no_descriptor_left_is_an_empty_table": ["guests get no certificates: Too many open files"],
    "a_buffer_that_is_not_memory_is_eio_and_nothing_written": ["No such file or directory"],
    "memory_that_another_process_may_add_is_not_eio": [_UNKNOWN],
    "memory_added_through_a_descriptor_that_cannot_be_followed_is_not_eio": [_UNKNOWN],
    "more_vms_than_there_is_room_for": ["more than 16 VMs"],
}


OTHER_DEVICE = "a_file_replaced_by_one_of_another_device_is_opened_anew"


def run(
    name: str,
    libraries: Path,
    file: Path,
    settings: dict[str, str] | None = None,
    before: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SNPCERTS_")
    }
    environment |= {
        "LD_PRELOAD": f"{libraries / 'shim.so'}:{libraries / 'fake_kvm.so'}",
        "SNPCERTS_CERTS_FILENAME": str(file),
        "FAKE_CERTS": str(file),
    }
    if "replaced_b" in name:
        environment["FAKE_NEW"] = str(file.with_suffix(".new"))
    if name == "a_slot_is_gone_only_once_nothing_writes_to_it":
        environment["FAKE_HOLD"] = str(file.with_suffix(".hold"))
        os.mkfifo(environment["FAKE_HOLD"])
    environment |= SETTINGS.get(name, {}) | (settings or {})
    argv = [*before, sys.executable, "-m", "tests.shim.scenarios", name, str(file)]
    return subprocess.run(
        argv, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
    )


APART = ("nothing_is_enabled", OTHER_DEVICE)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in APART])
def test_a_request(name: str, libraries: Path, tmp_path: Path) -> None:
    made = run(name, libraries, tmp_path / "certs.bin")
    assert made.returncode == 0, made.stderr
    lines = made.stderr.splitlines()
    assert len(lines) == len(SAID.get(name, [])), made.stderr
    for line, words in zip(lines, SAID.get(name, []), strict=True):
        assert line.startswith("snpcerts shim: ")
        assert words in line


# Creates the first file on each of two new file systems, so that both files have the same inode
# number. The certificate file and its replacement are links to these two files.
TWO_DEVICES = """
set -e
mkdir "$1.a" "$1.b"
mount -t tmpfs a "$1.a"
mount -t tmpfs b "$1.b"
: >"$1.a/f"
: >"$1.b/f"
ln -s "$1.a/f" "$1"
ln -s "$1.b/f" "${1%.bin}.new"
shift
exec "$@"
"""


def test_a_file_on_another_device_with_the_same_number_is_another_file(
    libraries: Path, tmp_path: Path
) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to mount two file systems")
    file = tmp_path / "certs.bin"
    apart = ["unshare", "--mount", "sh", "-c", TWO_DEVICES, "sh", str(file)]
    made = run(OTHER_DEVICE, libraries, file, before=apart)
    assert (made.returncode, made.stderr) == (0, "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"FAKE_ATTR": "none"}, "this kernel's KVM does not request"),
        ({"FAKE_ATTR": "0"}, "or SNP is off"),
        ({"SNPCERTS_CERTS_FILENAME": ""}, "SNPCERTS_CERTS_FILENAME is not set"),
        ({"SNPCERTS_CERTS_FILENAME": "certs.bin"}, "not an absolute path"),
        ({"SNPCERTS_CERTS_FILENAME": "/" + "x" * 4096}, "not an absolute path"),
        ({"SNPCERTS_CERTS_TIMEOUT": ""}, "SNPCERTS_CERTS_TIMEOUT is not a number"),
        ({"SNPCERTS_CERTS_TIMEOUT": "-1"}, "SNPCERTS_CERTS_TIMEOUT is not a number"),
        ({"SNPCERTS_CERTS_TIMEOUT": "5 s"}, "SNPCERTS_CERTS_TIMEOUT is not a number"),
        ({"SNPCERTS_CERTS_TIMEOUT": "60000"}, "below 60000"),
        ({"SNPCERTS_CERTS_TIMEOUT": "99999999999999999999999"}, "below 60000"),
    ],
)
def test_the_shim_does_nothing_and_says_so_once(
    settings: dict[str, str], words: str, libraries: Path, tmp_path: Path
) -> None:
    made = run("nothing_is_enabled", libraries, tmp_path / "certs.bin", settings)
    assert made.returncode == 0, made.stderr
    (line,) = made.stderr.splitlines()
    assert words in line


def test_a_program_without_vms_hears_nothing(libraries: Path) -> None:
    environment = os.environ | {"LD_PRELOAD": str(libraries / "shim.so")}
    made = subprocess.run(["/bin/ls", "/"], capture_output=True, env=environment)
    assert (made.returncode, made.stderr) == (0, b"")


def test_a_closed_standard_error_does_no_harm(libraries: Path, tmp_path: Path) -> None:
    """A full pipe that no process reads does no harm either: the shim drops the line."""
    name = "a_table_is_served"
    program = f"""
import os, sys
sys.argv = ["scenarios", {name!r}, {str(tmp_path / "certs.bin")!r}]
from pathlib import Path
from tests.shim.scenarios import *
import signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
file = Path({str(tmp_path / "certs.bin")!r})
reading, writing = os.pipe()
os.set_blocking(writing, False)
try:
    while True:
        os.write(writing, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(writing, True)
os.dup2(writing, 2)
os.close(writing)
_, vcpu, memory = guest()
assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)  # missing: it would like to say so
file.write_bytes(TABLE)
os.close(reading)
assert vcpu.ask(0, 4) == Answer(0, 4, TAKEN)  # readable again
print("done")
"""
    environment = os.environ | {
        "LD_PRELOAD": f"{libraries / 'shim.so'}:{libraries / 'fake_kvm.so'}",
        "SNPCERTS_CERTS_FILENAME": str(tmp_path / "certs.bin"),
    }
    argv = [sys.executable, "-c", program]
    made = subprocess.run(
        argv, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )
    assert made.stdout == "done\n"
