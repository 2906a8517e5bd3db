# SPDX-License-Identifier: Apache-2.0
"""Messages about a TOML file name the line of a value."""

from __future__ import annotations

import pytest

from snpcerts.toml_file import Path, TomlFileError, line_of, read_toml

TEXT = (
    """\
first = 1
"quoted key" = 2
text = '''
[table]
first = 3
'''
dotted.key = 4
list = [
    "table = 5",
    \"\"\"
[[many]]
\"\"\",
]

[table] # a comment with """
    + '"""'
    + """ in it
key = 5
name = "[many]"  # '''

[[many]]
key = 6
[[many.inner]]
key = 7
[[many]]
key = 8
[[many.inner]]
key = 9
[[many.inner]]
key = 10
[many.other]
key = 11
"""
)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("first",), 1),
        (("quoted key",), 2),
        (("dotted", "key"), 7),
        (("dotted",), 7),
        (("table", "key"), 16),
        (("table",), 15),
        (("table", "missing"), 15),
        (("many",), 19),
        (("many", 0, "key"), 20),
        (("many", 0, "inner", 0, "key"), 22),
        (("many", 1, "key"), 24),
        (("many", 1, "inner", 0, "key"), 26),
        (("many", 1, "inner", 1, "key"), 28),
        (("many", 1, "inner", 1, "missing"), 27),
        (("many", 1, "other", "key"), 30),
        (("missing",), None),
        ((), None),
    ],
)
def test_the_line_of_a_value_is_found(path: Path, line: int | None) -> None:
    values, text = read_toml(TEXT.encode(), 1 << 16)
    assert "first" in values
    assert line_of(text, path) == line


@pytest.mark.parametrize(
    ("data", "line", "problem"),
    [
        (b"a = 1\n\xff", 2, "not UTF-8"),
        (b"a = 1\na = \nb = 1\n", None, "not valid TOML: .*line 2"),
        (b"a = " + b"9" * 6000, None, "not valid TOML"),
        (b"a = " + b"[" * 5000, None, "nested too deeply|not valid TOML"),
        (b"#" * 10_001, None, "larger than 10000 bytes"),
    ],
)
def test_a_file_that_is_not_toml_is_an_error(data: bytes, line: int | None, problem: str) -> None:
    with pytest.raises(TomlFileError, match=problem) as caught:
        read_toml(data, 10_000)
    assert caught.value.line == line


def test_a_long_file_takes_time_in_proportion_to_its_size() -> None:
    """Parsing the file once for each of its lines would take minutes."""
    text = "\n".join(f"key{number} = 1" for number in range(50_000))
    assert line_of(text, ("key49999",)) == 50_000
