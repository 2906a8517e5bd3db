# SPDX-License-Identifier: Apache-2.0
"""Metrics: root's write of the file cannot be redirected, and the port has a bounded cost."""

from __future__ import annotations

import os
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from snpcerts.errors import RefusedError
from snpcerts.host.metrics import Metrics
from snpcerts.host.metrics_server import MOST_CONNECTIONS


@pytest.fixture
def metrics() -> Metrics:
    pytest.importorskip("prometheus_client")
    return Metrics()


def test_a_link_planted_at_a_foreseeable_name_is_not_followed(
    metrics: Metrics, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "open"
    folder.mkdir()
    path = folder / "snpcerts.prom"
    thread = threading.get_ident()
    for name in (f"snpcerts.prom.{os.getpid()}.{thread}", f"snpcerts.prom.{os.getpid()}"):
        (folder / name).symlink_to(victim)
    path.symlink_to(victim)
    metrics.write(str(path))
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert "snpcerts_drift_total" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    left = {each.name for each in folder.iterdir() if not each.is_symlink()}
    assert left == {"snpcerts.prom"}


def test_idle_connections_do_not_pile_up_nor_keep_others_out(metrics: Metrics) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = threading.enumerate()
    end = metrics.serve(port)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * MOST_CONNECTIONS)]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert b"snpcerts_drift_total" in answer.read()
        # The server must have closed the oldest connections, so reading from them finds the end.
        for each in idle[:MOST_CONNECTIONS]:
            each.settimeout(20)
            assert each.recv(1) == b""
        # The threads of the closed connections must end soon after.
        deadline = time.monotonic() + 20
        added = [each for each in threading.enumerate() if each not in before]
        while len(added) > MOST_CONNECTIONS + 2 and time.monotonic() < deadline:
            added[1].join(0.01)  # the first is the server's own
            added = [each for each in added if each.is_alive()]
        assert len(added) <= MOST_CONNECTIONS + 2
    finally:
        for each in idle:
            each.close()
        end()


@pytest.mark.parametrize("content", [b"precious\n", bytes(24), b"# HELP node_load1 of another\n"])
def test_a_mistyped_path_destroys_nothing(metrics: Metrics, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match="does not contain metrics"):
        metrics.write(str(path))
    assert path.read_bytes() == content
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(RefusedError, match="does not contain metrics"):
        metrics.write(str(pipe))
    assert pipe.is_fifo()
    assert len(list(tmp_path.iterdir())) == 2


def test_figures_take_the_place_of_those_before(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for _ in range(2):
        metrics.write(str(path))
    assert path.read_bytes().startswith(b"# HELP snpcerts_")
