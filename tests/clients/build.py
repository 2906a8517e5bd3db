# SPDX-License-Identifier: Apache-2.0
"""Builds other projects' programs, as their authors publish them, into the user's cache.

``python tests/clients/build.py [NAME...]`` builds the programs that are missing, and prints where
they are; a second run takes no time. cargo and go fetch the sources from the public registries, at
the versions pinned here, and the sources are not changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE: Final = 3600  # seconds for one client on a slow machine
_TAIL: Final = 15  # lines shown of a failed build's output

# What cargo, go and their libraries print when no server answers.
_UNREACHABLE: Final = (
    "could not resolve host",
    "couldn't resolve host",
    "no such host",
    "failed to connect",
    "connection refused",
    "network is unreachable",
    "i/o timeout",
    "timed out",
)


class ToolMissingError(Exception):
    """This machine lacks a tool that the build needs."""


class BuildFailedError(Exception):
    """The build was tried and failed."""


@dataclass(frozen=True)
class Client:
    """A client to build: its programs, the build's tools, and where the source comes from."""

    name: str
    version: str
    programs: tuple[str, ...]
    tools: tuple[str, ...]
    source: str
    module: Path | None = None  # our own Go module, which wraps libraries

    @property
    def home(self) -> Path:
        """The client's directory in the cache."""
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "snpcerts" / "clients" / f"{self.name}-{self.version}"

    def program(self, name: str) -> Path:
        """Return the path of one of the client's programs."""
        return self.home / "bin" / name

    @property
    def is_built(self) -> bool:
        """Whether all of the client's programs exist."""
        return all(self.program(name).is_file() for name in self.programs)


def _crate(name: str, version: str) -> Client:
    # Both crates build their own OpenSSL, which needs make and perl.
    return Client(name, version, (name,), ("cargo", "cc", "make", "perl"), "the crate registry")


_VERAISON: Final = Path(__file__).with_name("veraison")
_SEVGUEST: Final = Path(__file__).with_name("sevguest")


def _content(module: Path) -> str:
    """Return the version of one of our Go modules: a digest of its files."""
    digest = hashlib.sha256()
    for file in sorted(module.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


CLIENTS: Final = {
    client.name: client
    for client in (
        _crate("snpguest", "0.11.0"),
        _crate("snphost", "0.9.0"),
        Client(
            "go-sev-guest",
            "0.15.0",
            ("attest", "check", "show"),
            ("go",),
            "the Go module proxy",
        ),
        Client(
            "veraison",
            _content(_VERAISON),
            ("veraison",),
            ("go",),
            "the Go module proxy",
            _VERAISON,
        ),
        Client(
            "sevguest",
            _content(_SEVGUEST),
            ("sevguest",),
            ("go",),
            "the Go module proxy",
            _SEVGUEST,
        ),
    )
}


def ensure(client: Client) -> Client:
    """Build ``client`` unless it is built already.

    Raises :class:`ToolMissingError` and :class:`BuildFailedError`, whose texts
    are for people.
    """
    if client.is_built:
        return client
    missing = [tool for tool in client.tools if shutil.which(tool) is None]
    if missing:
        needed = ", ".join(client.tools)
        raise ToolMissingError(
            f"{client.name} {client.version} cannot be built: no {', '.join(missing)} on this "
            f"machine (the build needs {needed})"
        )
    with _alone(client.home):
        if not client.is_built:  # another process may have built it meanwhile
            _build(client)
    return client


def _build(client: Client) -> None:
    unfinished = client.home.with_name(f"{client.home.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "bin").mkdir(parents=True)
    if client.tools[0] == "cargo":
        version = f"={client.version}"
        command = ["cargo", "install", "--locked", "--version", version, client.name]
        command += ["--root", str(unfinished)]
        environment = {"CARGO_TARGET_DIR": str(unfinished / "target")}
    elif client.module is not None:
        command = ["go", "build", "-C", str(client.module), "-o"]
        command += [str(unfinished / "bin" / client.name), "."]
        environment = {}
    else:
        module = f"github.com/google/{client.name}/tools"
        command = ["go", "install"]
        command += [f"{module}/{name}@v{client.version}" for name in client.programs]
        environment = {"GOBIN": str(unfinished / "bin")}
    try:
        _run(client, command, environment, unfinished)
        shutil.rmtree(unfinished / "target", ignore_errors=True)
        shutil.rmtree(client.home, ignore_errors=True)
        unfinished.rename(client.home)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if not client.is_built:
        raise BuildFailedError(f"{' '.join(command)} made no {', '.join(client.programs)}")


def _run(client: Client, command: list[str], environment: Mapping[str, str], cwd: Path) -> None:
    try:
        built = subprocess.run(
            ["nice", "-n", "10", *command],
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise BuildFailedError(f"{' '.join(command)} took more than {PATIENCE} s") from None
    if built.returncode == 0:
        return
    said = built.stdout.lower()
    why = "failed"
    if any(words in said for words in _UNREACHABLE):
        why = f"failed, because this machine cannot reach {client.source}"
    tail = "\n".join(built.stdout.splitlines()[-_TAIL:])
    raise BuildFailedError(f"{' '.join(command)} {why}. It said:\n{tail}")


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """Build the clients named, or all."""
    for name in arguments or CLIENTS:
        if name not in CLIENTS:
            print(f"no client {name!r}; there are: {', '.join(CLIENTS)}", file=sys.stderr)
            return 2
        try:
            print(ensure(CLIENTS[name]).home / "bin", flush=True)
        except (ToolMissingError, BuildFailedError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
