# SPDX-License-Identifier: Apache-2.0
"""Three verifiers judge the same evidence: snpcerts, snpguest and go-sev-guest's check.

Most evidence is genuine, or genuine with a change. Each tool gets it in the form that it takes:
snpcerts and check get a report with its table, snpguest a directory of certificates.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, VLEK_GUID, CertTable, TableEntry
from snpcerts.abi.report import REPORT_SIZE, Report
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.vek import HWID
from tests.endorsement.small_ca import SmallCa, flipped

from .conftest import run

_GUIDS: Final = {
    "vcek": VCEK_GUID,
    "vlek": VLEK_GUID,
    "ask": ASK_GUID,
    "asvk": ASK_GUID,
    "ark": ARK_GUID,
}
_WORDS: Final = {True: "accepted", False: "refused"}


@dataclass(frozen=True)
class Piece:
    """A report, its certificates (by the names that snpguest gives their files), a time when they
    are valid, and the product.
    """

    name: str
    report: bytes
    certificates: dict[str, bytes]
    at: str
    product: str
    pem: bool = False

    def but(self, **certificates: bytes) -> Piece:
        """Return a copy in which some certificates are replaced."""
        return replace(self, certificates=self.certificates | certificates)

    def named(self, name: str) -> Piece:
        """Return a copy with a name that says what was changed."""
        return replace(self, name=f"{self.name}: {name}")

    def encoded(self) -> dict[str, bytes]:
        """The certificates as files and tables hold them: in DER or in PEM."""
        if not self.pem:
            return self.certificates
        return {
            name: load_certificate(data, name).public_bytes(Encoding.PEM)
            for name, data in self.certificates.items()
        }


def genuine(vectors: Path, name: str) -> Piece:
    """A genuine report and its certificates, at a time at which they were valid."""
    at, product = {
        "milan": ("2024-01-01T00:00:00Z", "Milan"),
        "turin-v5": ("2026-06-01T00:00:00Z", "Turin"),
        "vlek-milan-v3": ("2025-06-01T00:00:00Z", "Milan"),
    }[name]
    folder = vectors / name
    certificates = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.der"))}
    return Piece(name, (folder / "report.bin").read_bytes(), certificates, at, product)


def cases(vectors: Path) -> dict[str, list[Piece]]:
    """Return the evidence to judge for each row of the table in docs/relying-parties.md."""
    milan, turin, vlek = (genuine(vectors, n) for n in ("milan", "turin-v5", "vlek-milan-v3"))
    vcek = milan.certificates["vcek"]
    own = SmallCa(suffix="")
    own_chain = {"vcek": own.leaf.make(), "ask": own.ask.make(), "ark": own.ark.make()}
    own_piece = replace(milan, name="own", report=own.report(2), certificates=own_chain)
    return {
        "Milan, genuine": [milan],
        "Milan, genuine, certificates in PEM": [replace(milan, name="PEM", pem=True)],
        "Turin, genuine": [turin],
        "VLEK, genuine": [vlek],
        "a bit of any signed field, or of R or S": list(_signed(milan)),
        "a bit of a reserved byte under the signature": [
            replace(milan, report=flipped(milan.report, at)).named(hex(at))
            for at in (0x4C, 0x18B, 0x1EB, 0x1EF, 0x208, 0x29F)
        ],
        "a bit after R and S": [
            replace(milan, report=flipped(milan.report, at)).named(hex(at))
            for at in (0x330, REPORT_SIZE - 1)
        ],
        "a bit of the padding of R or S": [
            replace(milan, report=flipped(milan.report, at)).named(hex(at)) for at in (0x2D0, 0x318)
        ],
        "a bit of the VCEK's signature or hwID": [
            milan.but(vcek=flipped(vcek, at)).named(name)
            for name, at in (("signature", len(vcek) - 1), ("hwID", _hwid_at(vcek)))
        ],
        "a bit of the ASK's or ARK's signature": [
            milan.but(**{name: flipped(data, len(data) - 1)}).named(name)
            for name, data in milan.certificates.items()
            if name != "vcek"
        ],
        "ARK in place of the ASK": [milan.but(ask=milan.certificates["ark"])],
        "VCEK of a Turin host": [milan.but(vcek=turin.certificates["vcek"])],
        "ASK and ARK of Turin": [
            milan.but(ask=turin.certificates["ask"], ark=turin.certificates["ark"])
        ],
        "a self-made chain with AMD's names": [own_piece],
    }


def _signed(piece: Piece) -> Iterator[Piece]:
    """Change one bit in each field that a report of version 2 has, and in R and S."""
    layout = Report.unpack(piece.report).fields.layout()
    version_3 = ("cpuid_family", "cpuid_model", "cpuid_stepping")
    version_5 = ("launch_mit_vector", "current_mit_vector")
    for name, (offset, _) in layout.items():
        if name not in (*version_3, *version_5, "signature"):
            yield replace(piece, report=flipped(piece.report, offset)).named(name)
    for name, offset in (("R", 0x2A0), ("S", 0x2E8)):
        yield replace(piece, report=flipped(piece.report, offset)).named(name)


def _hwid_at(vcek: bytes) -> int:
    certificate = load_certificate(vcek, "VCEK")
    (value,) = (each.value for each in certificate.extensions if each.oid.dotted_string == HWID)
    return vcek.index(value)


Judge = Callable[[Piece], tuple[str, str]]


@dataclass(frozen=True)
class Verifiers:
    """Runs the tools. Each method judges evidence with one tool; it returns the verdict, and the
    reasons or the output of the tool.
    """

    place: Path
    snpguest: Path
    check: Path

    def ours(self, piece: Piece) -> tuple[str, str]:
        """``snpcerts verify``."""
        argv = [sys.executable, "-m", "snpcerts", "verify", self._whole(piece), "--at", piece.at]
        ran = run([*argv, "--json"], self.place, check=False)
        verdict = json.loads(ran.stdout)
        assert ran.returncode == {"verified": 0, "refused": 1}[verdict["verdict"]]
        return verdict["verdict"], " ".join(reason["code"] for reason in verdict["reasons"])

    def go_sev_guest(self, piece: Piece) -> tuple[str, str]:
        """``check`` without the network, given the guest policy that the report has."""
        argv = [self.check, "-in", self._whole(piece), "-network=false"]
        argv += ["-product", piece.product]
        policy = int.from_bytes(piece.report[8:16], "little")
        ran = run([*argv, "-guest_policy", str(policy)], self.place, check=False)
        return _WORDS[ran.returncode == 0], ran.stderr

    def certs(self, piece: Piece) -> tuple[str, str]:
        """``snpguest verify certs``."""
        return self._snpguest("certs", self._directory(piece))

    def attestation(self, piece: Piece) -> tuple[str, str]:
        """``snpguest verify attestation``."""
        directory = self._directory(piece)
        (self.place / "report.bin").write_bytes(piece.report)
        # A report of version 2 does not name the processor, so tell snpguest the product.
        model = ("-p", piece.product.lower())
        return self._snpguest("attestation", *model, directory, "report.bin")

    def _snpguest(self, *arguments: object) -> tuple[str, str]:
        ran: subprocess.CompletedProcess[str] = run(
            [self.snpguest, "verify", *arguments], self.place, check=False
        )
        return _WORDS[ran.returncode == 0], ran.stdout + ran.stderr

    def _whole(self, piece: Piece) -> Path:
        entries = tuple(TableEntry(_GUIDS[name], data) for name, data in piece.encoded().items())
        path = self.place / "evidence.bin"
        path.write_bytes(piece.report + CertTable(entries).encode())
        return path

    def _directory(self, piece: Piece) -> Path:
        folder = self.place / "certs"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, data in piece.encoded().items():
            (folder / f"{name}.{'pem' if piece.pem else 'der'}").write_bytes(data)
        return folder
