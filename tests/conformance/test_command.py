# SPDX-License-Identifier: Apache-2.0
"""``snpcerts conformance``: reports, and messages about programs that it cannot judge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.cli.main import main
from snpcerts.conformance.result import Result, ResultState, to_junit
from snpcerts.conformance.served_file import ServedFile, table_of
from snpcerts.conformance.vmm_check import CHECKS, Level
from tests.documented_json import documented

from ..emulated import SNPCERTS
from .conftest import Build, conformance, judged


def test_the_report_for_people(build: Build) -> None:
    made = conformance(build("PAGE_TOO_MANY"), "{certs}", "1", options=("--only", "exact-pages"))
    assert made.returncode == 1
    lines = made.stdout.splitlines()
    assert lines[1].startswith("  FAIL  exact-pages")
    assert "2 pages needed" in lines[1]
    assert "asked: a table of exactly n pages" in lines[2]
    assert "rule:  api: npages counts pages" in lines[3]
    assert lines[-1].startswith("0 passed, 1 failed, 0 advice, 0 skipped in ")
    assert made.stderr == ""


def test_checks_skipped_for_the_same_reason_share_one_line() -> None:
    made = conformance("false", "{certs}")
    assert made.returncode == 1
    lines = made.stdout.splitlines()
    assert lines[1].startswith("  FAIL  vm-starts")
    grouped = [line for line in lines if " checks: not judged, because vm-starts did not" in line]
    assert grouped
    assert len(lines) < len(CHECKS) / 2


def test_the_report_for_build_servers(build: Build, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    options = ("--only", "exact-pages", "--only", "too-small", "--junit", str(report))
    made = conformance(build("PAGE_TOO_MANY"), "{certs}", "1", options=options)
    assert made.returncode == 1
    suite = ElementTree.parse(report).getroot()  # noqa: S314 (our own file)
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "0")
    cases = {case.get("name"): case.find("failure") for case in suite.iter("testcase")}
    assert cases.keys() == {"too-small", "exact-pages"}
    assert cases["too-small"] is None
    failure = cases["exact-pages"]
    assert failure is not None
    assert "pages needed" in str(failure.get("message"))


@given(detail=st.text(), arguments=st.lists(st.text(), max_size=3))
def test_junit_is_xml_whatever_a_vmm_says(detail: str, arguments: list[str]) -> None:
    results = [
        Result("busy", ResultState.FAILED, detail),
        Result("too-small", ResultState.SKIPPED, detail),
        Result("enabled", ResultState.PASSED),
    ]
    suite = ElementTree.fromstring(to_junit(results, arguments, 1.5))  # noqa: S314 (our own)
    assert suite.get("failures") == "1"


def test_the_checks_are_listed_with_their_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--list", "--json"]) == 0
    listed = documented("conformance", capsys.readouterr().out)
    assert [each["id"] for each in listed] == [check.id for check in CHECKS]
    assert all(each["rule"] for each in listed)
    assert main(["conformance", "--list"]) == 0
    assert "rule: " in capsys.readouterr().out


def test_the_page_for_authors_has_every_check_as_it_is() -> None:
    page = Path(__file__).parents[2] / "docs" / "vmm-authors.md"
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| `")]
    advice = {Level.MUST: "", Level.ADVICE: "advice: "}
    assert rows[-len(CHECKS) :] == [
        f"| `{c.id}` | {advice[c.level]}{c.asks} | {c.rule} |" for c in CHECKS
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["conformance"], 2, "expected the VMM's command line"),
        (["conformance", "--", "./vmm"], 2, "does not contain {certs}"),
        (
            ["conformance", "--only", "nonsense", "--", "vmm", "{certs}"],
            2,
            "unknown check 'nonsense'",
        ),
        (["conformance", "--", "no-such-program-anywhere", "{certs}"], 2, "no such program"),
        (["conformance", "--", "/etc/passwd", "{certs}"], 2, "not executable"),
        (["conformance", "--trace", "--", "vmm", "{certs}"], 2, "add --keep DIR"),
        (["conformance", "--trace", "/bin/sh", "-c", "{certs}"], 2, "put -- before"),
        (
            ["conformance", "--stop-signal", "NOPE", "--", "vmm", "{certs}"],
            2,
            "expected the name of a signal",
        ),
        (["conformance", "--busy-limit", "60000", "--", "vmm", "{certs}"], 2, "busy-limit"),
    ],
)
def test_wrong_use_is_reported_without_a_traceback(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_report_that_cannot_be_written_is_an_error(build: Build) -> None:
    options = ("--only", "enabled", "--junit", "/nowhere/report.xml")
    made = conformance(build("NOTHING"), "{certs}", "1", options=options)
    assert made.returncode == 1
    assert "/nowhere/report.xml" in made.stderr
    assert "Traceback" not in made.stderr


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (["false"], "the VMM ended (exit code 1)"),
        (["sh", "-c", "echo went wrong >&2; exit 3"], "exit code 3): went wrong"),
        (["sh", "-c", "sleep 60"], "did not run the guest within 1 s"),
    ],
)
def test_a_program_that_is_not_a_vmm_fails_the_first_check_and_skips_the_rest(
    program: list[str], said: str
) -> None:
    checks = judged(*program, "{certs}", options=("--timeout", "1"))
    first = checks.pop("vm-starts")
    assert first["state"] == "failed"
    assert said in first["detail"]
    assert {check["state"] for check in checks.values()} == {"skipped"}


def test_what_was_seen_is_kept_for_a_failed_check(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    options = ("--only", "exact-pages", "--only", "enabled", "--keep", str(folder), "--trace")
    made = conformance(build("PAGE_TOO_MANY"), "{certs}", "1", options=options)
    assert made.returncode == 1
    assert {each.name for each in folder.iterdir()} == {
        "exact-pages.log",
        "exact-pages.txt",
        "exact-pages.trace.json",
    }
    text = (folder / "exact-pages.txt").read_text("utf-8")
    order = ["exit for certificates", "lock,", "pread64,", "answers: ret 28", "ends the request"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    events = json.loads((folder / "exact-pages.trace.json").read_text("utf-8"))["traceEvents"]
    assert {"request", "asks the firmware"} <= {each["name"] for each in events}
    assert "        expected: ret 0 and the table" in made.stdout.splitlines()


def lock_and_firmware(trace: Path) -> tuple[int, int, bool]:
    """Return a timeline's numbers of locks and requests, and whether a lock covers each request."""
    events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    slices = [each for each in events if each["ph"] == "X"]
    held = [each for each in slices if each["name"] == "lock held"]
    signed = [each for each in slices if each["name"] == "has the request"]
    covered = all(
        any(
            lock["pid"] == each["pid"]
            and lock["ts"] <= each["ts"]
            and each["ts"] + each["dur"] <= lock["ts"] + lock["dur"] + 1
            for lock in held
        )
        for each in signed
    )
    return len(held), len(signed), covered


def test_a_timeline_shows_the_lock_held_until_the_firmware_has_the_request(
    build: Build, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    options = ("--only", "lock-until-signed", "--trace", str(trace))
    made = conformance(build("NOTHING"), "{certs}", "1", options=options)
    assert made.returncode == 0, made.stdout
    held, signed, covered = lock_and_firmware(trace)
    assert (held > 0, signed > 0, covered) == (True, True, True)
    made = conformance(build("NO_LOCK"), "{certs}", "1", options=options)
    assert made.returncode == 1
    held, signed, covered = lock_and_firmware(trace)
    assert (held > 0, signed > 0, covered) == (False, True, False)


def test_one_cause_of_many_failures_is_named_first(build: Build) -> None:
    options = ("--only", "busy", "--only", "lock-before-read", "--only", "lock-until-signed")
    made = conformance(build("NO_LOCK"), "{certs}", "1", options=options)
    first = made.stdout.splitlines()[1]
    assert first == "  3 checks fail for the same reason: the VMM never asks for a lock on the file"


def test_a_skipped_check_fails_the_run_on_demand(build: Build) -> None:
    options = ("--only", "vcpus-served", "--only", "enabled")
    assert conformance(build("NOTHING"), "{certs}", "1", options=options).returncode == 0
    made = conformance(build("NOTHING"), "{certs}", "1", options=(*options, "--fail-on-skip"))
    assert made.returncode == 1
    made = conformance(build("NOTHING"), "{certs}", "1", options=("--only", "vcpus-served"))
    assert made.returncode == 1
    assert "no check could be judged" in made.stderr


def patched(patch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``snpcerts conformance`` in a process that has executed ``patch``."""
    argv = [sys.executable, "-c", f"{patch}\nrun()", "conformance", *arguments]
    return subprocess.run(argv, capture_output=True, text=True)


# Records the kernel and the firmware behind each VMM's /dev/kvm.
NOTING = """
import sys
from snpcerts.__main__ import run
from snpcerts.conformance import trial

class Noted(trial.KvmDevice):
    def __init__(self, platform, guest, kernel):
        super().__init__(platform, guest, kernel)
        with open({seen!r}, "a") as seen:
            print(kernel.series, platform.firmware.state.choices, file=seen)

trial.KvmDevice = Noted
"""


def test_the_host_has_the_kernel_and_the_firmware_that_are_asked_for(
    build: Build, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    options = ("--only", "vm-starts", "--kernel", "7.2", "--firmware", "observed-2022")
    vmm = ("--", str(build("NOTHING")), "{certs}", "1")
    made = patched(NOTING.format(seen=str(seen)), *options, *vmm)
    assert made.returncode == 0, made.stdout + made.stderr
    assert set(seen.read_text().splitlines()) == {"7.2 observed-2022"}


# Records each measurement of how long the VMM was delayed.
MEASURING = """
import sys
from snpcerts.__main__ import run
from snpcerts.conformance import trial

def noted(processes, measure=trial.delay_time):
    with open({seen!r}, "a") as seen:
        print("measured", file=seen)
    return measure(processes)

trial.delay_time = noted
"""


def test_the_delay_of_a_hanging_vmm_is_measured_rarely(build: Build, tmp_path: Path) -> None:
    """A measurement takes milliseconds and makes the VMM wait meanwhile, so it must be rare."""
    seen = tmp_path / "seen"
    options = ("--timeout", "1", "--jobs", "2", "--only", "kick-not-lost")
    vmm = ("--", str(build("KICK_ERASED")), "{certs}", "1")
    began = time.monotonic()
    made = patched(MEASURING.format(seen=str(seen)), *options, *vmm)
    assert made.returncode == 1, made.stdout + made.stderr
    # Nine VMMs run, two at a time. Each is measured when it starts, when it makes a request, and
    # four times a second.
    limit = 9 * 3 + 2 * 4 * (time.monotonic() - began)
    assert len(seen.read_text().splitlines()) < limit


def test_a_daemon_is_recognised(build: Build) -> None:
    script = '"$0" "$@" & exit 0'
    checks = judged("sh", "-c", script, build("NOTHING"), "{certs}", "1")
    failures = [each["detail"] for each in checks.values() if each["state"] == "failed"]
    assert any("foreground" in each for each in failures), failures


def test_a_flood_of_output_is_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    options = ("--keep", str(folder), "--timeout", "1")
    made = conformance("sh", "-c", "yes; #", "{certs}", options=options)
    assert made.returncode == 1
    (log,) = folder.glob("*.log")
    assert 0 < log.stat().st_size < 200_000
    assert b"bytes left out" in log.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_all_it_started(
    build: Build, tmp_path: Path, number: signal.Signals
) -> None:
    argv = [*SNPCERTS, "conformance", "--", str(build("NOTHING")), "{certs}", "2"]
    env = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as run_of_all:
        while not list(tmp_path.glob("*/*/certs.bin")):
            assert run_of_all.poll() is None
        run_of_all.send_signal(number)
        _, said = run_of_all.communicate(timeout=60)
    assert run_of_all.returncode == 128 + number
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert [name for name in os.listdir("/proc") if name.isdigit() and runs(name, tmp_path)] == []


def test_nothing_is_left_behind(build: Build, tmp_path: Path) -> None:
    made = subprocess.run(
        [
            *SNPCERTS,
            "conformance",
            "--only",
            "lock-released",
            "--",
            str(build("CHILD_KEEPS_LOCK")),
            "{certs}",
            "2",
        ],
        capture_output=True,
        text=True,
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert made.returncode == 1, made.stderr
    assert list(tmp_path.iterdir()) == []
    assert [name for name in os.listdir("/proc") if name.isdigit() and runs(name, tmp_path)] == []


def runs(pid: str, path: Path) -> bool:
    try:
        return os.fsencode(path) in Path("/proc", pid, "cmdline").read_bytes()
    except OSError:  # gone
        return False


@given(size=st.integers(400, 20_000), seed=st.integers(0, 1000))
def test_tables_are_well_formed_and_have_the_given_size(size: int, seed: int) -> None:
    from snpcerts.abi.cert_table import CertTable

    table = table_of(size, seed)
    assert len(table) == size
    assert CertTable.decode(table).encode() == table
    assert table != table_of(size, seed + 1)


def test_a_lock_is_seen_by_its_kind(tmp_path: Path) -> None:
    served = ServedFile(tmp_path)
    served.replace(served.table(1000))
    assert served.locked() is None
    program = (
        "import fcntl, struct, sys; f = open(sys.argv[1], 'r+'); "
        "{}; print('locked', flush=True); sys.stdin.read()"
    )
    ofd = "fcntl.fcntl(f, 37, struct.pack('<hh4xqqi4x', 0, 0, 0, 0, 0))"
    for statement, is_ofd in ((ofd, True), ("fcntl.lockf(f, fcntl.LOCK_SH)", False)):
        argv = ["python3", "-c", program.format(statement), str(served.path)]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            seen = served.locked()
            assert seen is not None
            assert seen.is_ofd is is_ofd
            assert seen.is_ofd or seen.pid == holder.pid
            assert not served.lock()
            holder.communicate("")
    assert served.lock()
    served.close()


def test_a_check_says_why_another_one_kept_it_from_being_judged() -> None:
    checks = judged("false", "{certs}", options=("--only", "lock-kind"))
    assert checks["lock-kind"]["detail"] == (
        "not judged, because vm-starts did not pass: the VMM ended (exit code 1)"
    )


def test_a_call_that_a_signal_may_have_ended_is_explained() -> None:
    program = ("sh", "-c", "echo open: Interrupted system call >&2; exit 1")
    checks = judged(*program, "{certs}", options=("--only", "vm-starts"))
    assert "without SA_RESTART" in checks["vm-starts"]["detail"]
