# SPDX-License-Identifier: Apache-2.0
"""Each fidelity claim names tests that exist, and each such test is named by a claim."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from snpcerts.cli.main import cli
from snpcerts.emulator.kvm import release
from snpcerts.emulator.psp import choices
from snpcerts.fidelity import BY_ID, CLAIMS, LINUX, SourceKind

from . import fidelity_page
from .kernel import headers, test_selftests
from .kernel.oracle import build

TESTS = Path(__file__).parent


def named(kind: SourceKind) -> list[str]:
    return [
        name for claim in CLAIMS for each in claim.held if each.kind is kind for name in each.names
    ]


def test_identifiers_are_unique_plain_words() -> None:
    assert len(BY_ID) == len(CLAIMS)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in BY_ID)


def test_every_kernel_function_that_runs_beside_the_emulator_is_in_one_claim() -> None:
    roots = [
        name for part in build.PARTS.values() for names in part.roots.values() for name in names
    ]
    assert sorted(named(SourceKind.KERNEL)) == sorted(roots)


def test_every_selftest_that_passes_is_in_one_claim() -> None:
    assert sorted(named(SourceKind.SELFTEST)) == sorted(test_selftests.PASSES)


def test_the_releases_are_those_that_are_fetched_and_that_the_emulator_plays() -> None:
    assert tuple(f"Linux {series}" for series in headers.SERIES) == LINUX
    assert release.SERIES == headers.SERIES


def options(name: str, command: click.Command = cli) -> Iterator[click.Option]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from options(name, found)
    for option in command.params:
        if name in option.opts and isinstance(option, click.Option):
            yield option


@pytest.mark.parametrize(
    ("name", "played", "default"),
    [
        ("--kernel", release.SERIES, release.NEWEST.series),
        ("--firmware", choices.NAMES, choices.DEFAULT),
    ],
)
def test_each_command_with_a_host_takes_all_that_the_emulator_plays(
    name: str, played: tuple[str, ...], default: str
) -> None:
    """The commands list kernels and firmware themselves, to avoid an import of the emulator."""
    found = [each for each in options(name) if isinstance(each.type, click.Choice)]
    assert len(found) >= 2
    for option in found:
        assert isinstance(option.type, click.Choice)
        assert set(option.type.choices) == set(played)
        assert option.default == default or f"[default: {default}]" in str(option.help)


def test_every_program_that_is_named_has_a_test() -> None:
    where = {
        "snpguest": TESTS / "clients" / "test_snpguest.py",
        "snphost": TESTS / "clients" / "test_snphost.py",
        "go-sev-guest": TESTS / "clients" / "test_go_sev_guest.py",
        "QEMU": TESTS / "qemu" / "test_emulated.py",
        "libvirt": TESTS / "qemu" / "test_libvirt.py",
        "sev-snp-measure": TESTS / "emulator" / "test_launch_digest.py",
    }
    programs = set(named(SourceKind.PROGRAM))
    assert programs == where.keys()
    assert all(where[name].is_file() for name in programs)


def test_every_function_of_amds_is_where_expected_values_are_entered_from() -> None:
    rows = "".join(
        (TESTS / "emulator" / f"test_firmware_{name}.py").read_text(encoding="utf-8")
        for name in ("rows", "choices")
    )
    names = named(SourceKind.AMD)
    assert names
    assert [
        name for name in names if not set(name.split(": ")) <= set(re.findall(r"[\w.]+", rows))
    ] == []


def test_every_package_of_headers_is_fetched() -> None:
    fetched = (TESTS / "kernel" / "fetch.sh").read_text(encoding="utf-8")
    names = named(SourceKind.HEADER)
    assert names
    assert all(name in fetched for name in names)


def test_a_claim_is_held_against_something_or_says_nothing_yet() -> None:
    assert all(claim.held for claim in CLAIMS)
    assert {claim.id for claim in CLAIMS if not claim.checked} == {
        "certificate-path",
        "concurrency",
        "hardware",
    }


def test_the_page_has_the_table() -> None:
    """If the table in the page is out of date, run ``python -m tests.fidelity_page``."""
    assert fidelity_page.PAGE.read_text(encoding="utf-8") == fidelity_page.page()
