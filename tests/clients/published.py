# SPDX-License-Identifier: Apache-2.0
"""Genuine evidence of AMD processors that libraries ship for their own tests.

go and cargo fetch it from the registries, as the libraries' authors published it. It is not part of
this project.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .build import CLIENTS, BuildFailedError, ToolMissingError

CRATE: Final = "8.0.0"
MODULE: Final = CLIENTS["go-sev-guest"].version
_PATIENCE: Final = 600  # seconds for one download


@dataclass(frozen=True)
class Published:
    """The content of a report's file, and its certificates in DER: VCEK, ASK, ARK."""

    name: str
    report: bytes
    certificates: tuple[bytes, bytes, bytes]
    at: datetime  # when all of them were valid


@functools.cache
def go_module() -> Path:
    """The directory of the module go-sev-guest."""
    argv = ["go", "mod", "download", "-json", f"github.com/google/go-sev-guest@v{MODULE}"]
    found = json.loads(_output(argv))
    return Path(found["Dir"])


@functools.cache
def crate() -> Path:
    """The directory of the crate sev."""
    with tempfile.TemporaryDirectory() as place:
        manifest = Path(place) / "Cargo.toml"
        manifest.write_text(
            '[package]\nname = "reader"\nversion = "0.0.0"\nedition = "2021"\n'
            f'[lib]\npath = "lib.rs"\n[dependencies]\nsev = "={CRATE}"\n'
        )
        (Path(place) / "lib.rs").touch()
        argv = ["cargo", "metadata", "--format-version", "1", "--manifest-path", str(manifest)]
        packages = json.loads(_output(argv))["packages"]
    (path,) = (each["manifest_path"] for each in packages if each["name"] == "sev")
    return Path(path).parent


def published_evidence() -> tuple[Published, ...]:
    """Return each report that is published with its certificates.

    Raises :class:`ToolMissingError` and :class:`BuildFailedError`.
    """
    go, rust = go_module() / "verify", crate() / "tests" / "certs_data"
    return (
        _published(
            "go-sev-guest, Milan",
            go / "testdata" / "attestation.bin",
            go / "testdata" / "vcek.testcer",
            go / "trust" / "ask_ark_milan.pem",
        ),
        _published(
            "sev, Milan",
            rust / "report_milan.hex",
            rust / "vcek_milan.der",
            rust / "cert_chain_milan",
        ),
    )


def _published(name: str, report: Path, vcek: Path, chain: Path) -> Published:
    leaf = vcek.read_bytes()
    ask, ark = x509.load_pem_x509_certificates(chain.read_bytes())
    ders = (leaf, ask.public_bytes(Encoding.DER), ark.public_bytes(Encoding.DER))
    return Published(name, report.read_bytes(), ders, datetime(2025, 1, 1, tzinfo=UTC))


def _output(argv: list[str]) -> bytes:
    if shutil.which(argv[0]) is None:
        raise ToolMissingError(f"no {argv[0]} on this machine to fetch published evidence with")
    try:
        ran = subprocess.run(
            argv,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
            env={**os.environ, "GOFLAGS": "-mod=mod"},
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise BuildFailedError(f"{argv[0]} took more than {_PATIENCE} s") from None
    if ran.returncode != 0:
        said = ran.stderr.decode(errors="replace")[-2000:]
        raise BuildFailedError(f"{' '.join(argv)} failed. It said:\n{said}")
    return ran.stdout
