# SPDX-License-Identifier: Apache-2.0
"""Runs the commands of the guides, as written and in order, on a bare Debian system.

``snpcerts`` commands on lines that begin with ``#`` run on an emulated SNP host, ``snpcerts guest``
in an emulated guest, and all other commands on the bare system. Where a page leaves a choice to its
reader (a URL, a directory), ``CHOICES`` makes it; the emulated root stands in for AMD's.
``NOT_RUN`` lists the commands that are not run, with the reason. Every other command must exit with
0, or end as ``OTHER_ENDINGS`` says.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packages.bare_root import BareRoot

ROOT = Path(__file__).parents[2]
PAGES = (
    "docs/operators.md",
    "docs/emulator.md",
    "README.md",
    "docs/relying-parties.md",
    "docs/vmm-authors.md",
)
_BLOCK = re.compile(r"^( *)```(console|sh)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# Commands that are not run, by a part of their text, and the reason.
NOT_RUN = {
    "make demo": "CI runs it on a machine with make",
    "make test": "CI runs it on a machine with make",
    "systemctl": "there is no service manager; the next command runs what the unit does",
    "ssh guest1": "needs another machine; tests/host/test_prove_command.py asks a guest",
    "qemu-system": "tests/qemu and tests/frontdoor run stock QEMU",
    "~/snp guest -- \\": "runs in the guest of that QEMU",
    "make -C native": "a bare system has no compiler; tests/native builds and uses the library",
    "cc ": "a bare system has no compiler; tests/native builds and uses the library",
    "snpguest": "tests/clients builds and runs it",
    "./my-vmm": "tests/conformance builds VMMs and judges them",
    "sync --watch": "does not end; tests/host runs it",
    "--at 2024-01-01": "emulated certificates are issued today; test_documented_code.py runs it",
    "table build": "test_documented_code.py has the files it names",
    "table extract": "test_documented_code.py runs it",
    "openssl": "openssl is not on a bare system; tests/verify signs EARs",
    "--ear": "needs the key that the openssl command makes",
    "--require-crl --fetch": "asks AMD's key server, which did not issue these certificates",
    "--fetch": "asks AMD's key server",
}
# Starts the key server, as a page tells its reader to do, and saves its URL.
_SERVER = """
snpcerts emulate --platform ~/snp key-server >server.log 2>&1 &
timeout 180 tail -n +1 -f server.log | grep -o -m 1 'http://[^ ]*' >url
"""
# Placeholders in a page, and their values here.
CHOICES = {
    "--kds URL": "--kds $(cat url)",
    "--cache DIR": "--kds $(cat url) --anchor certs/ark.der --cache DIR",
    "--hwid HWID": "--hwid $(cat hwid)",
}
# What the reader has done before a command, by a part of its text.
BEFORE = {
    "apt-get install ./": "mkdir dist; cp /run/packages/snpcerts_0.1.0_amd64.deb dist",
    "python3 -m venv": "apt-get -qq purge -y snpcerts; rm -rf /opt/snpcerts; cd /run/source",
    "certs/ark.der is the root to trust": "cd ~",
    "host check --online": """
        sed -i 's|^# anchors = .*|anchors = ["/root/certs/ark.der"]|' /etc/snpcerts.toml
        sed -i "0,/^# url = /s|^# url = .*|url = \\"$(cat url)\\"|" /etc/snpcerts.toml
    """,
    "host load-vlek": """
        snpcerts emulate --platform ~/snp certificates csp --vlek csp
        cp csp/vlek.der vlek.der; cp csp/hashstick.bin hashstick.bin
    """,
    "kds fetch vcek": """
        snpcerts emulate --platform ~/snp host -- snpcerts host status --json |
            python3 -c 'import json, sys; print(json.load(sys.stdin)["hwid"])' >hwid
    """,
    "host commit --dry-run": "snpcerts emulate --platform ~/snp firmware update --current snp=25",
    "table show": "cp certs/table.bin certs.bin",
    "--report-data 0123456789abcdef": f"""{_SERVER}
        snpcerts emulate --platform ~/snp guest --certs certs/table.bin -- \\
            snpcerts guest report -o report.bin --report-data 0123456789abcdef --table-out t
        cat report.bin t >evidence.bin; mkdir -p archive amd; cp evidence.bin archive/one
        cp certs/vcek.der certs/ask.der certs/ark.der amd
        printf 'vmpls = [0]\\n' >policy.toml
        snpcerts kds fetch crl --kds $(cat url) --anchor certs/ark.der --product milan --cache c
        cp "$(find c -name '*crl*' -type f | head -n 1)" milan.crl
    """,
}


@dataclass(frozen=True)
class Ending:
    """How a command ends: its exit code, a part of what it prints, and why."""

    code: int
    part: str
    why: str


OTHER_ENDINGS = {
    "# refused: ": Ending(1, "is below the committed firmware", "the page says that it is refused"),
    "host status --file ~/snp/certs.bin": Ending(
        1, "NOT in step", "the preceding commit updated another file"
    ),
    "--require-crl  ": Ending(
        1, "failed       revocation", "the page says that the host's list is not enough"
    ),
    "--offline --max-crl-age": Ending(
        3, "collateral-unavailable", "the cache has neither a chain nor a list of this root"
    ),
}


@dataclass(frozen=True)
class Command:
    """One command of a page: its line there, whether root runs it, and its text."""

    line: int
    root: bool
    text: str

    @property
    def skipped(self) -> str | None:
        return next((why for part, why in NOT_RUN.items() if part in self.text), None)

    @property
    def ends(self) -> Ending:
        found = (end for part, end in OTHER_ENDINGS.items() if part in self.text)
        return next(found, Ending(0, "", "it succeeds"))


def commands(page: str) -> list[Command]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Command] = []
    for block in _BLOCK.finditer(text):
        first = text.count("\n", 0, block.start()) + 2
        lines = block[3].replace("\\\n", "\\\0").split("\n")
        number = first
        for line in lines:
            stripped = line.strip().replace("\0", "\n")
            if block[2] == "sh" and stripped and not stripped.startswith("#!"):
                found.append(Command(number, False, stripped))
            elif stripped[:2] in ("$ ", "# "):
                found.append(Command(number, stripped[0] == "#", stripped[2:]))
            number += 1 + line.count("\0")
    return found


def as_run(command: Command) -> str:
    """What the bare system runs in place of a page's command."""
    text = command.text
    for word, choice in CHOICES.items():
        text = text.replace(word, choice)
    if "key-server &" in text:
        text = _SERVER
    elif text.startswith("snpcerts verify"):
        text = text.replace("snpcerts verify", "snpcerts verify --anchor certs/ark.der", 1)
    elif text.startswith("snpcerts guest"):
        inner = shlex.quote(text)
        text = f"snpcerts emulate --platform ~/snp guest --certs certs/table.bin -- sh -c {inner}"
    elif command.root and text.startswith("snpcerts "):
        text = f"snpcerts emulate --platform ~/snp host -- sh -c {shlex.quote(text)}"
    return text


def script_of(page: str) -> str:
    parts = ["exec 2>&1"]
    if page == "docs/emulator.md":
        parts.append("rm -rf snp")  # its reader has not loaded a VLEK
    for command in commands(page):
        if command.skipped:
            continue
        before = [text for part, text in BEFORE.items() if part in command.text]
        parts += [*before, f"echo '@ {command.line}'", as_run(command)]
        parts.append(f'echo "@ {command.line} ended $?"')
    return "\n".join(parts)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_found(page: str) -> None:
    assert len(commands(page)) >= 1


def test_every_exception_is_still_in_a_page() -> None:
    texts = [command.text for page in PAGES for command in commands(page)]
    for part in (*NOT_RUN, *CHOICES, *BEFORE, *OTHER_ENDINGS):
        assert any(part in text for text in texts), f"no page has {part!r} any more: remove it here"


def test_the_guides_run_as_they_stand(bare: BareRoot) -> None:
    """One reader works through all pages on one system. The first page installs snpcerts."""
    for page in PAGES:
        made = bare.run(script_of(page), limit=600)
        for command in commands(page):
            if command.skipped:
                continue
            code = re.search(rf"^@ {command.line} ended (\d+)$", made.stdout, re.MULTILINE)
            assert code, f"{page}:{command.line} must be reached:\n{made.stdout[-3000:]}"
            said = made.stdout.split(f"@ {command.line}\n", 1)[1].split("\n@ ", 1)[0]
            if int(code[1]) != command.ends.code or command.ends.part not in said:
                pytest.fail(
                    f"{page}:{command.line}: {command.text}\nended {code[1]}, expected "
                    f"{command.ends.code} and {command.ends.part!r}:\n{said}"
                )
        assert "Traceback" not in made.stdout
