# SPDX-License-Identifier: Apache-2.0
"""Fixtures and settings for the whole suite."""

from __future__ import annotations

import compileall
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from snpcerts.emulator.frontdoor import seccomp
from snpcerts.errors import SnpCertsError
from snpcerts.temporary_directory import TemporaryDirectory

from .emulated import Emulated
from .forked_commands import PLAIN, Commands
from .keys import FOLDER, prepare_platform
from .sizes import FULL, sized

# A shell script starts its background jobs with SIGINT ignored, and every command would inherit
# that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The suite starts thousands of commands: without bytecode each of them compiles the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A slow machine must not fail a test.
settings.register_profile("snpcerts", deadline=None, print_blob=True, max_examples=sized(50, 100))
settings.load_profile("snpcerts")

_SOURCE = Path(__file__).parents[1] / "src"
_keys = pytest.StashKey[TemporaryDirectory]()


_MEMORY = Path("/dev/shm")  # noqa: S108 (pytest makes its own directory there)
_ROOM = 2 << 30  # bytes, of which a run needs a tenth


def _memory_will_do() -> bool:
    """Whether the tests' files can be in memory, where fsync(2) costs nothing."""
    try:
        found = os.statvfs(_MEMORY)
    except OSError:
        return False
    room = found.f_bavail * found.f_frsize
    return os.path.ismount(_MEMORY) and room >= _ROOM and not found.f_flag & os.ST_NOEXEC


def pytest_configure(config: pytest.Config) -> None:
    """Make a directory for this run's keys; an environment variable tells the workers its path.

    If a signal ends this run, the next run removes the directory.
    """
    if FOLDER not in os.environ:
        # In a full run, the tests' files are on a disk, as a user's are.
        if not FULL and _memory_will_do():
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
        config.stash[_keys] = TemporaryDirectory.make("test-keys")
        os.environ[FOLDER] = str(config.stash[_keys].path)
        # Compile now, so that the workers do not all compile at the same time, and so that a
        # command makes the same system calls in its first run as in later ones.
        compileall.compile_dir(_SOURCE, quiet=2)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _keys in config.stash:
        del os.environ[FOLDER]
        config.stash[_keys].remove()


_SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The directory of genuine reports and certificates, if this machine has one."""
    path = _SHARED / "vectors"
    if not path.is_dir():
        pytest.skip("genuine reports are not part of the project and are not on this machine")
    return path


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A process that has imported the commands and from which they are forked."""
    with contextlib.closing(Commands(tmp_path_factory.mktemp("forked"), PLAIN)) as commands:
        commands.ready()
        yield commands


@pytest.fixture(scope="module")
def unserved(tmp_path_factory: pytest.TempPathFactory, forked: Commands) -> Emulated:
    """A platform for all tests of a module; its server ends with each command."""
    try:
        seccomp.check()
    except SnpCertsError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("platform")
    platform = Emulated(folder / "platform", folder / "certs", forked)
    prepare_platform(platform.directory)
    platform.issue_certificates()
    return platform


@pytest.fixture(scope="module")
def emulated(unserved: Emulated) -> Iterator[Emulated]:
    """A platform and its server for all tests of a module."""
    with unserved.in_use():
        yield unserved
