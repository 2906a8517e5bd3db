# SPDX-License-Identifier: Apache-2.0
"""The FUSE server and a peer that is not the kernel."""

from __future__ import annotations

import itertools
import socket

import pytest

from snpcerts.emulator.frontdoor.fuse_messages import FuseBatchForgetIn, FuseInHeader, Opcode
from snpcerts.emulator.frontdoor.tree_server import TreeServer
from snpcerts.emulator.guest.configfs import ConfigDirectory


@pytest.mark.parametrize(
    "message",
    [
        b"x",
        FuseInHeader(opcode=Opcode.FORGET).pack(),
        FuseInHeader(opcode=Opcode.INTERRUPT).pack(),
        FuseInHeader(opcode=Opcode.BATCH_FORGET).pack() + FuseBatchForgetIn(count=1 << 31).pack(),
    ],
    ids=["no header", "FORGET", "INTERRUPT", "BATCH_FORGET"],
)
def test_a_message_that_the_kernel_does_not_send_ends_the_tree_alone(message: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        server = TreeServer(ours.detach(), ConfigDirectory(itertools.count(1)))
        theirs.send(message)
        assert not server.serve()
        server.close()
