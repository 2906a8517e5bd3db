# SPDX-License-Identifier: Apache-2.0
"""A command's output replaces only regular files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snpcerts.cli.files import write_output
from snpcerts.errors import RefusedError

needs_root = pytest.mark.skipif(
    os.getuid() != 0, reason="only root can make a device or give away a link"
)

WRITES = "from snpcerts.cli.files import write_output; write_output('/dev/stdout', b'report')"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_output(str(pipe), b"report")
    reader.join()
    assert read == [b"report"]
    assert pipe.is_fifo()


@needs_root
def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    """Otherwise, root's ``-o /dev/null`` would remove the device for every program."""
    null = tmp_path / "null"
    os.mknod(null, 0o020666, os.makedev(1, 3))
    write_output(str(null), b"report")
    assert null.is_char_device()


def test_standard_output_by_its_path(tmp_path: Path) -> None:
    link = os.readlink("/dev/stdout")
    made = subprocess.run([sys.executable, "-c", WRITES], stdout=subprocess.PIPE, check=True)
    assert made.stdout == b"report"
    with open(tmp_path / "out", "wb") as file:
        subprocess.run([sys.executable, "-c", WRITES], stdout=file, check=True)
    assert (tmp_path / "out").read_bytes() == b"report"
    assert os.readlink("/dev/stdout") == link


def test_a_socket_and_a_directory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        for each in (path, tmp_path):
            with pytest.raises(RefusedError, match="cannot write"):
                write_output(str(each), b"report")
    assert path.is_socket()


@needs_root
def test_a_link_of_someone_else_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(victim)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(RefusedError, match="symbolic link that belongs to user 65534"):
        write_output(str(link), b"report")
    assert victim.read_bytes() == b"precious"
