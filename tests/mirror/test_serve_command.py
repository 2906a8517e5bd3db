# SPDX-License-Identifier: Apache-2.0
"""``mirror serve`` refuses bad files and options, and no URL, however odd, breaks its parser."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.cli.main import cli
from snpcerts.cli.mirror.serve import _tokens
from snpcerts.errors import FormatError, SnpCertsError
from snpcerts.mirror.fleet_records import AnnouncerIdentity
from snpcerts.mirror.target import PrivateResourceError, read_target

from .private_ca import PrivateCa


def _short(path: Path) -> None:
    path.write_text("short\n")


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\x00" * 40)


BAD_TOKENS: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "a directory": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "a short token": _short,
    "no text": _binary,
}


def serve(folder: Path, *options: str) -> tuple[int, str]:
    database = ["--database", f"sqlite:///{folder}/serve.db", "--listen", "0"]
    found = CliRunner().invoke(cli, ["mirror", "serve", *database, *options])
    error = found.exception
    assert isinstance(error, SnpCertsError | SystemExit), found.exception
    if isinstance(error, SnpCertsError):
        return error.exit_code, str(error)
    return found.exit_code, found.output


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_bad_token_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokens"
    BAD_TOKENS[name](path)
    code, text = serve(tmp_path, "--agent-token-file", str(path))
    assert code == 2
    assert str(path) in text
    assert "short" not in text.replace("shorter", "")


def test_a_token_may_name_the_hosts_that_it_belongs_to(tmp_path: Path) -> None:
    one, shared, operator = "1" * 32, "2" * 32, "3" * 32
    agents, operators = tmp_path / "agents", tmp_path / "operators"
    agents.write_text(f"{one} Host-1\n\n{shared}\n{one} host-1.example\n")
    operators.write_text(f"{operator}\n")
    found = _tokens(str(agents), str(operators))
    assert found.announcer(one) == AnnouncerIdentity(frozenset({"host-1", "host-1.example"}))
    assert found.announcer(shared) == AnnouncerIdentity()
    assert found.announcer(operator) == AnnouncerIdentity(operator=True)
    assert found.announcer("host-1.example") is None
    assert not found.operator(one)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--agent-token-file", f"{'1' * 32} host-1\n{'1' * 32}\n"),
        ("--admin-token-file", f"{'1' * 32} host-1\n"),
    ],
)
def test_tokens_with_names_that_make_no_sense_are_refused(
    tmp_path: Path, option: str, text: str
) -> None:
    (tmp_path / "tokens").write_text(text)
    code, said = serve(tmp_path, option, str(tmp_path / "tokens"))
    assert (code, "token" in said) == (2, True)


BAD_OPTIONS = {
    "a port that is not a number": ["--listen", "http"],
    "a port too large": ["--listen", "70000"],
    "an upstream that is not a URL": ["--upstream", "kdsintf.amd.com"],
    "an upstream with a password": ["--upstream", "https://a:b@host"],
    "a certificate without its key": ["--tls-cert", "/etc/hostname"],
    "TLS files that are not PEM": ["--tls-cert", "/etc/hostname", "--tls-key", "/etc/hostname"],
    "a root that is not a certificate": ["--anchor", "/etc/hostname"],
    "a gap below zero": ["--gap", "-1"],
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_wrong_options_are_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    code, text = serve(tmp_path, *BAD_OPTIONS[name])
    assert code == 2
    assert text


def test_client_cas_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    own = str(PrivateCa(tmp_path).issue("127.0.0.1"))
    (tmp_path / "no.pem").write_text("no certificate\n")
    options = ("--tls-cert", own, "--tls-key", own, "--client-ca", str(tmp_path / "no.pem"))
    code, text = serve(tmp_path, *options)
    assert code == 2
    assert f"cannot use the CA certificates from --client-ca {tmp_path}/no.pem: " in text
    assert "TLS certificate" not in text


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = serve(tmp_path, "--listen", str(port))
    assert code == 2
    assert str(port) in text


_PARTS = st.sampled_from(
    [
        "vcek",
        "vlek",
        "v1",
        "Milan",
        "Turin",
        "cert_chain",
        "crl",
        "cert",
        "ab" * 64,
        "..",
        "",
        "%2e",
    ]
)


@given(
    st.one_of(
        st.binary(max_size=300), st.lists(_PARTS, max_size=8).map(lambda p: "/".join(p).encode())
    ),
    st.one_of(st.binary(max_size=200), st.just(b"blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=1")),
)
def test_any_url_names_a_resource_or_is_refused(path: bytes, query: bytes) -> None:
    try:
        found = read_target(path, query)
    except (FormatError, PrivateResourceError):
        return
    assert (
        read_target(
            b"/" + found.path.partition("?")[0].encode(), found.path.partition("?")[2].encode()
        )
        == found
    )
