# SPDX-License-Identifier: Apache-2.0
"""The environment's proxies and roots are read as curl reads them; mistakes are reported."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import InputError
from snpcerts.kds.body import read_vcek
from snpcerts.kds.client import KdsClient
from snpcerts.kds.errors import KdsUnavailableError
from snpcerts.kds.proxy import Proxy, proxy_for
from snpcerts.kds.trust import trusted
from snpcerts.kds.url import ChainResource

from .answering import Answering, ok
from .conftest import Host, SkippingClock

CHAIN = ChainResource(Product.MILAN, VekKind.VCEK)
PROXY = "http://127.0.0.1:9"
FOUR, SIX, NAME = "http://127.0.0.1:1/", "http://[::1]:1/", "http://a.localhost:1/"

# A value of NO_PROXY, a URL, and whether a request for this URL bypasses the proxy.
EXCEPTIONS = [
    ("", FOUR, False),
    ("localhost,fd00::/8", FOUR, False),
    ("localhost,fd00::/8", NAME, True),
    ("::1", SIX, True),
    ("[::1]", SIX, False),
    ("[::1]:1", SIX, False),
    ("127.0.0.1", FOUR, True),
    ("127.0.0.1:1", FOUR, False),
    ("127.0.0.0/8", FOUR, True),
    ("10.0.0.0/8", FOUR, False),
    ("127.0.0.1/33", FOUR, False),
    ("127.1/8", FOUR, False),
    ("127.0.0.1;x", FOUR, False),
    ("a b  ,, 127.0.0.1", FOUR, True),
    ("*", FOUR, True),
    ("*,x", FOUR, False),
    (" * ", FOUR, False),
    (".localhost", NAME, True),
    ("LOCALHOST.", NAME, True),
    ("localhost:1", NAME, False),
    ("*.localhost", NAME, False),
    ("ocalhost", NAME, False),
    ("xa.localhost", NAME, False),
    ("..localhost", NAME, False),
]


@pytest.mark.parametrize(("said", "url", "past"), EXCEPTIONS)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_no_proxy_is_read_as_curl_reads_it(said: str, url: str, past: bool, variable: str) -> None:
    found = proxy_for(url, {"http_proxy": PROXY, variable: said})
    assert found == (None if past else Proxy(PROXY, "http_proxy"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl to compare with")
def test_curl_reads_no_proxy_the_same_way() -> None:
    """Nothing listens at these addresses, but curl says whether it uses the proxy."""
    running = [
        subprocess.Popen(
            ["curl", "-sS", "-v", "--max-time", "5", url],
            env={"PATH": os.environ["PATH"], "http_proxy": PROXY, "no_proxy": said},
            stderr=subprocess.PIPE,
            text=True,
        )
        for said, url, _ in EXCEPTIONS
    ]
    for process, (said, url, past) in zip(running, EXCEPTIONS, strict=True):
        _, err = process.communicate(timeout=30)
        assert ("proxy env variable http_proxy" in err) != past, (said, url)


def test_networks_of_ipv6_are_understood() -> None:
    for said, past in (("fd00::/8", True), ("fe80::/10", False), ("fd12:0:0::3", True)):
        found = proxy_for("https://[fd12::3]/", {"https_proxy": PROXY, "no_proxy": said})
        assert (found is None) == past


@pytest.mark.parametrize(
    ("url", "environment", "variable"),
    [
        ("https://x/", {"HTTPS_PROXY": PROXY}, "HTTPS_PROXY"),
        ("https://x/", {"https_proxy": PROXY, "HTTPS_PROXY": "http://y"}, "https_proxy"),
        ("https://x/", {"https_proxy": "", "HTTPS_PROXY": PROXY}, None),
        ("https://x/", {"ALL_PROXY": PROXY}, "ALL_PROXY"),
        ("https://x/", {"all_proxy": PROXY, "ALL_PROXY": "http://y"}, "all_proxy"),
        ("https://x/", {"http_proxy": PROXY}, None),
        ("http://x/", {"http_proxy": PROXY}, "http_proxy"),
        ("http://x/", {"HTTP_PROXY": PROXY}, "HTTP_PROXY"),
        ("http://x/", {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, None),
        ("https://x/", {"HTTPS_PROXY": "127.0.0.1:9"}, "HTTPS_PROXY"),
        ("https://x/", {"HTTPS_PROXY": f"  {PROXY}  "}, "HTTPS_PROXY"),
    ],
)
def test_which_variable_counts(url: str, environment: dict[str, str], variable: str | None) -> None:
    found = proxy_for(url, environment)
    assert found == (None if variable is None else Proxy(PROXY, variable))


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_used_or_reported(proxy: str, exceptions: str) -> None:
    for url in (FOUR, SIX, NAME):
        said = ""
        try:
            found = proxy_for(url, {"http_proxy": proxy, "no_proxy": exceptions})
        except InputError as error:
            said = error.message
        assert "http_proxy" in said or found is None or "@" not in str(found)


@pytest.mark.parametrize("said", ["localhost,fd00::/8", "[::1]", "[[", "a:b:c, ,;/", "::/x"])
def test_certificates_are_fetched_with_any_no_proxy(
    host: Host, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("NO_PROXY", said)
    assert host.client().get(host.resource(), read_vcek)


def test_a_proxy_is_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering(lambda _: ok(b"of the proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert host.client().get(CHAIN, bytes) == b"of the proxy"
        assert proxy.targets == [f"{host.server.url}/{CHAIN.path}"]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def refusing(_target: str) -> bytes:
    return b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("http://user:secret@127.0.0.1:CLOSED", "cannot be reached"),
        ("nonsense://proxy", "https_proxy: .* 'nonsense'"),
        ("socks5://127.0.0.1:1", "https_proxy: .* 'socks5'"),
        ("http://[", "https_proxy: expected the URL of a proxy"),
        ("REFUSING", "refused the request: 407"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    clock = SkippingClock()
    with Answering(refusing) as proxy:
        value = value.replace("CLOSED", str(closed_port())).replace("REFUSING", proxy.url)
        monkeypatch.setenv("https_proxy", value)
        client = KdsClient("https://mirror.invalid", clock=clock)
        with pytest.raises(KdsUnavailableError, match=said) as caught:
            client.get(CHAIN, bytes)
    assert "https_proxy" in caught.value.message
    assert "secret" not in caught.value.message
    assert "remove the cause" in str(caught.value.hint)
    assert clock.waits == []
    assert client.results == {"unreachable": 1}


@pytest.mark.parametrize(
    ("variable", "content"),
    [("SSL_CERT_FILE", None), ("SSL_CERT_FILE", b"no PEM"), ("SSL_CERT_DIR", None)],
)
def test_roots_that_are_not_there_are_named_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: bytes | None
) -> None:
    roots = tmp_path / "roots.pem"
    if content is not None:
        roots.write_bytes(content)
    monkeypatch.setenv(variable, str(roots))
    clock = SkippingClock()
    client = KdsClient(f"https://127.0.0.1:{closed_port()}", clock=clock)
    with pytest.raises(KdsUnavailableError, match=f"{variable}.*roots.pem"):
        client.get(CHAIN, bytes)
    assert clock.waits == []
    assert client.results == {"unreachable": 1}


def test_roots_of_this_system_are_found_where_there_are_some() -> None:
    try:
        found = trusted({})
    except InputError as error:
        pytest.skip(error.message)
    assert found.check_hostname


def test_a_host_with_a_broken_environment_keeps_what_it_has(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = host.vcek()
    monkeypatch.setenv("http_proxy", "nonsense://proxy")
    assert host.vcek(refresh=True) == found
    assert "nonsense" in host.warnings[0]


def test_the_command_is_not_stopped_by_no_proxy(host: Host) -> None:
    anchor = host.cache.parent / "ark.pem"
    anchor.write_bytes(
        host.server.lines[Product.MILAN]
        .authority.chain_pem()
        .partition(b"-----END CERTIFICATE-----\n")[2]
    )
    argv = ["fetch", "chain", "--product", "milan", "--kds", host.server.url]
    argv += ["--cache", str(host.cache), "--anchor", str(anchor)]
    done = subprocess.run(
        [sys.executable, "-m", "snpcerts", "kds", *argv],
        env={**os.environ, "NO_PROXY": "localhost,fd00::/8,[::1]"},
        timeout=60,
    )
    assert done.returncode == 0
