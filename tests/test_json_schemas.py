# SPDX-License-Identifier: Apache-2.0
"""Every command that prints JSON has a published schema, and its output matches it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import jsonschema
import pytest

from snpcerts import schemas
from snpcerts.cli.main import cli, main
from tests.documented_json import documented, validator
from tests.verify.test_documented_reasons import CHAIN, sound_report, sound_table

FOLDER = Path(schemas.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "json.md"


def commands(group: click.Group = cli, *path: str) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, *path, name)
        if any("--json" in parameter.opts for parameter in found.params):
            yield " ".join((*path, name))


def test_every_command_with_json_has_a_schema() -> None:
    assert sorted({*commands(), "host sync"}) == sorted(schemas.NAMES)


def test_every_schema_belongs_to_a_command_and_is_one() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(schemas.NAMES.values())
    for command in schemas.NAMES:
        jsonschema.Draft202012Validator.check_schema(schemas.schema_of(command))


def test_the_page_lists_every_command_and_its_schema() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for command, name in schemas.NAMES.items():
        assert (
            f"| `snpcerts {command}` | [{name}.json](../src/snpcerts/schemas/{name}.json) |" in text
        )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "report.bin": sound_report(),
        "table.bin": sound_table(),
        "root.der": CHAIN["ark"],
        "many/one": sound_report() + sound_table(),
        "many/two": sound_report(),
        "many/three": b"no evidence",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("verify", ["report.bin", "--table", "table.bin", "--anchor", "root.der"]),
        ("verify", ["report.bin", "--table", "table.bin"]),
        ("verify", ["report.bin", "--offline", "--cache", "cache"]),
        ("verify", ["many"]),
        ("report show", ["report.bin"]),
        ("table show", ["table.bin"]),
        ("table extract", ["table.bin", "out"]),
        ("kds show", ["--cache", "cache"]),
        ("kds fetch chain", ["--product", "milan", "--offline", "--cache", "cache"]),
        ("conformance", ["--list"]),
        ("emulate firmware rows", []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_a_command_prints_is_as_its_schema_says(
    command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command.split(), *arguments, "--json"])
    out = capsys.readouterr().out
    assert out
    for text in out.splitlines() if command == "verify" else [out]:
        documented(command, text)


@pytest.mark.usefixtures("folder")
def test_a_field_that_is_gone_new_or_of_another_type_is_noticed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["table", "show", "table.bin", "--json"])
    shown = json.loads(capsys.readouterr().out)
    for wrong in (
        {name: value for name, value in shown.items() if name != "pages"},
        shown | {"colour": "red"},
        shown | {"size": "many"},
        shown | {"entries": [shown["entries"][0] | {"name": 7}]},
    ):
        assert not validator("table show").is_valid(wrong)
