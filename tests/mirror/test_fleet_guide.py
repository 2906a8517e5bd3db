# SPDX-License-Identifier: Apache-2.0
"""The commands in docs/fleet.md run, its options exist, and its figures agree with the code."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest

from snpcerts.cli.main import cli
from snpcerts.kds.retry import AMD_GAP
from snpcerts.mirror.announcement import MAX_HOSTS
from snpcerts.mirror.fleet_records import MAX_ROLLS
from snpcerts.mirror.fleet_view import HostState, span

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
UNIT = (ROOT / "packaging" / "mirror" / "snpcerts-mirror.service").read_text(encoding="utf-8")


def console(heading: str) -> list[str]:
    """The commands below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^ *\$ (.*)$", section, re.M)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def shell(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell that is ended together with everything that it started in the background."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "snpcerts").symlink_to(Path(sys.executable).parent / "snpcerts")
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    process = subprocess.Popen(
        ["bash", "-e"],
        cwd=folder,
        env=environment | {"PATH": f"{tools}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def test_the_laptops_commands_run_as_written(tmp_path: Path) -> None:
    for tool in ("curl", "openssl"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    script = "\n".join(console("Try it on a laptop"))
    for port in ("8180", "8181"):  # other tests may use these
        script = script.replace(f":{port}", f":{(free := free_port())}")
        script = script.replace(f"--port {port}", f"--port {free}")
    script = script.replace("mirror roll ", f"mirror roll --mirror {_url(script)} ")
    with shell(tmp_path) as process:
        said, _ = process.communicate(f"trap 'kill $(jobs -p)' EXIT\n{script}\n", timeout=240)
    assert process.returncode == 0, said
    assert "to fetch        1 certificate" in said
    assert "SNP_COMMIT: done" in said
    assert 'snpcerts_mirror_hosts{state="in-step"} 1.0' in said


def _url(script: str) -> str:
    found = re.search(r"http://127.0.0.1:\d+(?=/readyz)", script)
    assert found is not None
    return found[0]


def commands() -> list[list[str]]:
    """Every snpcerts command in the page and in the systemd unit, split into words."""
    found = re.findall(r"snpcerts (?:mirror|host|policy|emulate) [^`\n]*", PAGE)
    unit = UNIT.partition("ExecStart=/usr/bin/")[2].partition("\nLoad")[0].replace("\\\n", " ")
    return [shlex.split(each, comments=True) for each in (*found, unit)]


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_every_command_and_option_exists(argv: list[str]) -> None:
    if "--" in argv:  # a command within another
        argv = argv[: argv.index("--")]
    command: click.Command = cli
    context = click.Context(cli)
    options: set[str] = set()
    for word in argv[1:]:
        if not isinstance(command, click.Group) or word.startswith("-"):
            continue
        known = command.get_command(context, word)
        if known is not None:
            command = known
            options |= {name for each in command.params for name in each.opts}
    used = {word.partition("=")[0] for word in argv if word.startswith("--")}
    assert used <= options


def test_every_option_that_the_prose_names_exists() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    known: set[str] = set()

    def collect(command: click.Command) -> None:
        known.update(name for each in command.params for name in each.opts)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                collect(inner)

    collect(cli)
    assert named - known == set()


def test_the_mirrors_times_follow_from_the_gap() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| ([^|]+) \|", PAGE, re.M)
    assert len(rows) == 4
    for hosts, time in rows:
        # The first certificate is requested at once.
        length = timedelta(seconds=AMD_GAP * (int(hosts.replace(",", "")) - 1))
        assert time.strip() == span(length)


def test_the_states_and_limits_are_those_of_the_code() -> None:
    for state in HostState:
        assert f"\n| {state.value} | " in PAGE
    assert f"{MAX_HOSTS:,} hosts and {MAX_ROLLS} rolls" in PAGE
