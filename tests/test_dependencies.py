# SPDX-License-Identifier: Apache-2.0
"""docs/dependencies.md lists every package that pyproject.toml asks for, and no other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def names(requirements: list[str]) -> list[str]:
    return [re.split(r"[<>=~!\[; ]", each)[0].lower() for each in requirements]


def rows() -> dict[str, tuple[str, str, str]]:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    return {name: (use, release, without) for name, use, release, without in ROW.findall(text)}


def test_the_table_is_complete() -> None:
    asked = names(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        asked += names(extra)
    assert sorted(rows()) == sorted(set(asked))


def test_every_row_says_what_for_the_last_release_and_what_without_it() -> None:
    for name, (use, release, without) in rows().items():
        assert len(use) > 5, name
        assert re.fullmatch(r"[0-9.]+, 20\d\d-\d\d-\d\d", release), name
        assert len(without) > 5, name


def test_no_package_that_users_install_has_an_upper_bound() -> None:
    assert [each for each in PROJECT["dependencies"] if "<" in each or "==" in each] == []
