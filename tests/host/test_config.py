# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what it can contain, and how mistakes are reported."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.cert_table import CRL_GUID
from snpcerts.abi.product import Product
from snpcerts.certfile.writer import Strategy
from snpcerts.endorsement.vek import VekKind
from snpcerts.host.config import (
    Config,
    ConfigError,
    ExtraEntry,
    FileConfig,
    GuestKeySelect,
    load,
    parse,
)

WHOLE = """
product = "genoa"

[kds]
url = "https://kds.example"
cache = "/var/cache/kds"
anchors = [
    "/etc/snpcerts/ark.pem",
]

[vlek]
certificates = "/srv/vlek"
[watch]
interval = 10
[lock]
wait = 0.5
[metrics]
file = "/run/snpcerts.prom"
port = 9469

[[file]]
path = "/srv/vcek.bin"
group = "kvm"
mode = "0640"
key_select = "named"

[[file]]
path = "/srv/vlek.bin"
kind = "vlek"
without_vlek = "vcek"
strategy = "in-place"

[[file.entry]]
guid = "crl"
path = "/srv/crl.der"
"""


def test_everything_it_can_say() -> None:
    config = parse(WHOLE)
    assert config.product is Product.GENOA
    assert (config.kds_url, config.cache) == ("https://kds.example", Path("/var/cache/kds"))
    assert config.anchors == ("/etc/snpcerts/ark.pem",)
    assert config.vlek_certificates == Path("/srv/vlek")
    assert (config.interval, config.lock_wait) == (10.0, 0.5)
    assert (config.metrics_file, config.metrics_port) == ("/run/snpcerts.prom", 9469)
    assert config.files == (
        FileConfig("/srv/vcek.bin", key_select=GuestKeySelect.NAMED, group="kvm", mode=0o640),
        FileConfig(
            "/srv/vlek.bin",
            kind=VekKind.VLEK,
            without_vlek=VekKind.VCEK,
            strategy=Strategy.IN_PLACE,
            entries=(ExtraEntry(CRL_GUID, "/srv/crl.der"),),
        ),
    )


def test_an_empty_file_is_the_defaults() -> None:
    assert parse("") == Config()


def edited(old: str, new: str) -> str:
    assert WHOLE.count(old) == 1
    return WHOLE.replace(old, new)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (edited('product = "genoa"', 'product = "rome"'), 2, '"milan"'),
        (
            edited("cache =", "cash ="),
            6,
            "cash: this key is unknown; the known keys are anchors, cache",
        ),
        (edited('"/etc/snpcerts/ark.pem",', '"ark.pem",'), 7, "absolute path"),
        (edited("interval = 10", "interval = 0"), 14, "1 to 86400"),
        (edited("interval = 10", "interval = inf"), 14, "1 to 86400"),
        (edited("wait = 0.5", "wait = true"), 16, "seconds"),
        (edited("port = 9469", "port = 0"), 19, "1 to 65535"),
        (edited('mode = "0640"', "mode = 640"), 24, "octal digits in quotes"),
        (edited('mode = "0640"', 'mode = "0240"'), 24, "lets the owner read"),
        (edited('"/srv/vlek.bin"', '"/srv/vcek.bin"'), 28, "listed twice"),
        (
            edited('kind = "vlek"', 'kind = "vcek"'),
            30,
            'only files of kind "vlek" may have this key',
        ),
        (edited('strategy = "in-place"', 'strategy = "hope"'), 31, '"swap"'),
        (edited('guid = "crl"', 'guid = "what"'), 34, "expected a GUID"),
        (edited('guid = "crl"', 'guid = "vcek"'), 34, "the agent itself"),
        (edited('path = "/srv/crl.der"', ""), 33, "needs the key 'path'"),
        (edited('path = "/srv/vcek.bin"', ""), 21, "needs the key 'path'"),
        (edited("[watch]", "[[watch]]"), 13, "expected a table"),
        (edited("[[file.entry]]", "[file.entry]"), 33, "each written [[file.entry]]"),
        (edited("[lock]", "[locks]"), 15, "this key is unknown"),
        (edited("url = ", "url = 'ftp://x' #"), 5, "https://"),
    ],
)
def test_a_mistake_is_reported_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "here.toml")
    assert str(caught.value).startswith(f"here.toml, line {line}: ")
    assert message in str(caught.value)


def test_a_string_that_looks_like_a_key_does_not_change_the_line_reported() -> None:
    text = 'product = """\nproduct = 1\n"""\n[watch]\ninterval = "x"\n'
    with pytest.raises(ConfigError, match="line 1: product"):
        parse(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[kds\n", "line 1"),
        (b"\n\n\xff\n", "line 3: not UTF-8"),
        (b"#" * 70000, "larger than"),
    ],
)
def test_text_that_is_not_toml_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "snpcerts.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(str(path))
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path))


WORDS = [*'[]="\n.#{},x1 ', "file", "kds", "path", '"/a"', "[[file]]\n", "mode"]


@given(st.lists(st.sampled_from(WORDS)).map("".join))
def test_any_text_is_a_configuration_or_an_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse(text).files
