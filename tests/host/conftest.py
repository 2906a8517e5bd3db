# SPDX-License-Identifier: Apache-2.0
"""Hosts for the agent: in this process, and behind the front door."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority

from ..emulated import Emulated
from ..forked_commands import HOST, Commands
from ..keys import authority_of
from .rig import Rig
from .site import Site, key_server, reset_reported_tcb


@pytest.fixture(scope="session")
def authority() -> EmulatedAuthority:
    """An emulated AMD."""
    return authority_of(Product.MILAN)


@pytest.fixture
def rig(tmp_path: Path, authority: EmulatedAuthority) -> Rig:
    """A host with one VCEK file, which does not exist yet."""
    return Rig.make(tmp_path, authority)


@pytest.fixture(scope="module")
def url(emulated: Emulated) -> Iterator[str]:
    with key_server(emulated) as url:
        yield url


@pytest.fixture(scope="module")
def commands(emulated: Emulated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A process on the platform's host that has imported the host commands."""
    folder = tmp_path_factory.mktemp("commands")
    with contextlib.closing(Commands(folder, HOST, *emulated.command("host", "--"))) as commands:
        commands.ready()
        yield commands


@pytest.fixture
def site(emulated: Emulated, url: str, tmp_path: Path, commands: Commands) -> Site:
    reset_reported_tcb(emulated)
    return Site(emulated, tmp_path, url, commands)
