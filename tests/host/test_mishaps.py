# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on hosts, with the real command: each mishap has a message and a metric."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.cert_table import EMPTY
from snpcerts.certfile.hold import hold
from snpcerts.emulator.machine.home import PlatformHome

from .site import LOWER, Site, seen_by_guest

YEAR = 365 * 24 * 3600


@dataclass(frozen=True)
class Ran:
    """A ``host sync``: its exit code, output and metrics."""

    code: int
    said: str
    metrics: str

    def metric(self, name: str) -> float:
        lines = [line for line in self.metrics.splitlines() if line.startswith(name)]
        return sum(float(line.split()[-1]) for line in lines)


def sync(site: Site, *, program: tuple[str, ...] = (), **options: Any) -> Ran:
    """Run ``host sync``, possibly through another program."""
    metrics = site.folder / "snpcerts.prom"
    metrics.unlink(missing_ok=True)
    argv = site.arguments("sync", f"--metrics-file={metrics}", **options)
    made = site.emulated.run(*argv[:2], *program, *argv[2:]) if program else site.run(argv)
    assert "Traceback" not in made.stderr
    text = metrics.read_text() if metrics.exists() else ""
    return Ran(made.returncode, made.stdout + made.stderr, text)


def match(site: Site, file: Path | None = None) -> str:
    return seen_by_guest(file or site.file, PlatformHome(site.emulated.directory))


def test_a_lock_that_is_never_released_is_reported_with_its_holder(site: Site) -> None:
    """A VMM that hangs, say, holds the lock. The file stays wrong, and every command reports it."""
    config = site.folder / "snpcerts.toml"
    config.write_text(f'[lock]\nwait = 1.5\n[[file]]\npath = "{site.file}"\n')
    options: dict[str, Any] = {"file": "", "config": str(config)}
    assert sync(site, **options).code == 0
    site.change_firmware_without_lock(LOWER)
    with hold(str(site.file), shared=True):
        ran = sync(site, **options)
        assert ran.code == 3
        assert "timed out after 1.5 s waiting for the lock" in ran.said
        assert "held by pid" in ran.said
        assert "waiting for the locks and the firmware (1 s)" in ran.said
        assert "DRIFT" in ran.said
        assert ran.metric("snpcerts_in_step{") == 0
        assert ran.metric("snpcerts_failures_total") >= 1
        assert ran.metric("snpcerts_drift_total") == 1
        assert site.host("status", **options).returncode == 1
    ran = sync(site, **options)
    assert ran.code == 0
    assert ran.metric("snpcerts_in_step{") == 1
    assert match(site) == "right"


@contextlib.contextmanager
def read_only_mount(folder: Path) -> Iterator[Callable[[bool], None]]:
    """A file system at ``folder`` that can be made read-only."""
    if shutil.which("mount") is None:
        pytest.skip("mount(8) is not on this machine")
    argv = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(folder)]
    if subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")

    def change(read_only: bool) -> None:
        how = "remount,ro" if read_only else "remount,rw"
        subprocess.run(["mount", "-o", how, str(folder)], check=True)

    try:
        yield change
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def immutable_file(folder: Path) -> Iterator[Callable[[bool], None]]:
    """A certificate file in ``folder``; once made immutable, not even root may write to it."""
    file = folder / "certs.bin"
    file.touch()
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", file]).returncode:
        pytest.skip("no file can be made immutable here")

    def change(read_only: bool) -> None:
        subprocess.run(["chattr", "+i" if read_only else "-i", file], check=True)

    change(False)
    try:
        yield change
    finally:
        change(False)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(read_only_mount, "Read-only file system"), (immutable_file, "Operation not permitted")],
    ids=["mount", "file"],
)
def test_a_path_that_cannot_be_written_is_reported(
    site: Site,
    tmp_path: Path,
    kind: Callable[[Path], contextlib.AbstractContextManager[Callable[[bool], None]]],
    message: str,
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    file = place / "certs.bin"
    with kind(place) as read_only, site.with_new_commands() as site:
        assert sync(site, file=str(file)).code == 0
        read_only(True)
        # A file that is in step need not be written.
        assert sync(site, file=str(file)).code == 0
        # A command that would have to write refuses before the firmware is touched.
        made = site.host("set-config", "--reported-tcb", site.lowered(), file=str(file))
        assert made.returncode == 1
        assert message in made.stderr
        assert match(site, file) == "right"
        site.change_firmware_without_lock(LOWER)
        ran = sync(site, file=str(file))
        assert ran.code == 1
        assert message in ran.said
        assert "cannot empty " in ran.said
        assert ran.metric("snpcerts_in_step{") == 0
        assert ran.metric("snpcerts_failures_total") >= 1
        assert site.host("status", file=str(file)).returncode == 1
        read_only(False)
        assert sync(site, file=str(file)).code == 0
        assert match(site, file) == "right"


@pytest.fixture(scope="session")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[str, ...]]:
    """A command prefix that shifts a program's wall clock by so many seconds."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    library = tmp_path_factory.mktemp("clock") / "skewed_clock.so"
    source = Path(__file__).with_name("skewed_clock.c")
    flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, source, "-ldl"], check=True)
    return lambda seconds: ("env", f"LD_PRELOAD={library}", f"SKEW={seconds}")


def test_a_clock_a_year_behind(site: Site, skewed: Callable[[int], tuple[str, ...]]) -> None:
    """A right file stays; a missing one becomes the empty table. The message names the clock."""
    assert sync(site).code == 0
    ran = sync(site, program=skewed(-YEAR))
    assert ran.code == 3
    assert "check this machine's clock" in ran.said
    assert ran.metric("snpcerts_in_step{") == 0
    assert ran.metric("snpcerts_failures_total") >= 1
    assert ran.metric("snpcerts_drift_total") == 0
    assert match(site) == "right"
    site.file.unlink()
    ran = sync(site, program=skewed(-YEAR))
    assert ran.code == 3
    assert "not valid yet" in ran.said or "not-yet-valid" in ran.said
    assert site.file.read_bytes() == EMPTY
    assert sync(site).code == 0
    assert match(site) == "right"


def test_a_clock_a_year_ahead_changes_nothing_and_one_ten_years_ahead_does(
    site: Site, skewed: Callable[[int], tuple[str, ...]]
) -> None:
    """A VCEK is good for seven years. A certificate that seems expired is not drift."""
    assert sync(site).code == 0
    ran = sync(site, program=skewed(YEAR))
    assert ran.code == 0
    assert ran.metric("snpcerts_in_step{") == 1
    ran = sync(site, program=skewed(10 * YEAR))
    assert ran.code == 3
    assert "check this machine's clock" in ran.said
    assert site.file.read_bytes() == EMPTY
    assert ran.metric("snpcerts_lapsed_total") == 1
    assert ran.metric("snpcerts_drift_total") == 0
    assert sync(site).code == 0
    assert match(site) == "right"
