# SPDX-License-Identifier: Apache-2.0
"""snpcerts and google/go-sev-guest judge changed evidence in every shape.

``python -m tests.clients.differential --inputs 20000 [--seed N]`` prints how many inputs snpcerts
accepts (with ``--shapes`` also for each shape), and how many of these go-sev-guest accepts. If
go-sev-guest refuses any of these, the command describes each such input and exits with 1.
docs/relying-parties.md lists where the two differ; no such evidence (Turin, VLEKs) is among the
inputs.

The evidence is genuine, with or without a change in one of three places: its report, its
certificates, or the bytes or characters of the shape around them. If the shape is a file of
certificates, only that file is changed, and the report is a file of its own. go-sev-guest gets what
snpcerts read: the report, followed by the certificates in DER.
"""

from __future__ import annotations

import argparse
import collections
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from snpcerts.abi.report import REPORT_SIZE
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.errors import FormatError
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy
from snpcerts.verify.verdict import Status, Verdict
from tests.verify.shapes import ALONE, Ders, Shape, bundles, table_of, whole

from .build import CLIENTS, BuildFailedError, ToolMissingError, ensure
from .published import Published, published_evidence

_GENUINE: Final = Policy.authenticity_only()
_PATIENCE: Final = 3600  # seconds for go-sev-guest


@dataclass(frozen=True)
class Changed:
    """One input: its shape, what was changed, and the bytes. ``file`` holds the certificates, if
    they are in a file of their own.
    """

    shape: str
    change: str
    data: bytes
    piece: Published
    file: bytes | None = None


@dataclass
class Result:
    """How many inputs each of the two verifiers accepted."""

    inputs: int = 0
    unread: int = 0
    refused: int = 0
    accepted: int = 0
    altered: int = 0  # accepted although something was changed
    both: int = 0
    alone: list[str] = field(default_factory=list)
    shapes: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )

    def by_shape(self) -> str:
        """Return one line for each shape."""
        head = f"{'shape':46} {'inputs':>7} {'unread':>7} {'refused':>7} {'accepted':>8}"
        lines = (
            f"{name:46} {found.total():>7} {found['unread']:>7} {found['refused']:>7} "
            f"{found['accepted']:>8}"
            for name, found in self.shapes.items()
        )
        return "\n".join((head, *lines))

    def __str__(self) -> str:
        counts = (
            f"{self.inputs} inputs: {self.unread} not read, {self.refused} refused, "
            f"{self.accepted} accepted ({self.altered} of them with changed bytes)\n"
            f"go-sev-guest accepts {self.both} of the {self.accepted}"
        )
        return counts + "".join(f"\nonly snpcerts: {each}" for each in self.alone)


Mutation = Callable[[random.Random, bytearray], None]


def _flip(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))


def _cut(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(len(data)) :]


def _remove(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 2, 4, 16, 64))]


def _insert(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.choice((b"\0", b" ", b"\n", b"=", b"\xff", b"\0\0\0\0", b'","', b"}"))


def _repeat(chance: random.Random, data: bytearray) -> None:
    at, size = chance.randrange(len(data)), chance.choice((1, 8, 144, REPORT_SIZE))
    data[at:at] = data[at : at + size]


def _swap(chance: random.Random, data: bytearray) -> None:
    size = chance.choice((1, 8, 48, 144))
    one, other = (chance.randrange(len(data)) for _ in range(2))
    data[one : one + size], data[other : other + size] = (
        data[other : other + size],
        data[one : one + size],
    )


def _case(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    data[at : at + 32] = bytes(data[at : at + 32]).swapcase()


MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip,
    _flip,
    _set,
    _cut,
    _remove,
    _insert,
    _repeat,
    _swap,
    _case,
)


def inputs(pieces: Sequence[Published], count: int, seed: int) -> Iterator[Changed]:
    """Yield ``count`` inputs, the unchanged ones first; with the same seed, the same inputs."""
    chance = random.Random(seed)
    reports = [Evidence.from_bytes(each.report).report.raw for each in pieces]
    for index in range(count):
        turn = index % len(pieces)
        piece, report, ders = pieces[turn], reports[turn], pieces[turn].certificates
        shapes, files = _shapes(ders), bundles(ders)
        names = (*shapes, *files)
        name = names[index // len(pieces) % len(names)]
        genuine = index < len(pieces) * len(names)
        if name in files:
            yield _file(chance, name, files[name], report, piece, genuine=genuine)
            continue
        if genuine:
            yield Changed(name, "nothing", shapes[name](report), piece)
            continue
        where = chance.choice(("report", "certificates", "shape", "shape"))
        if where == "certificates" and name in ALONE:
            where = "report"
        if where == "report":
            changed, words = _mutated(chance, report)
            report = changed[:REPORT_SIZE].ljust(REPORT_SIZE, b"\0")
            data = shapes[name](report)
        elif where == "certificates":
            certificates, words = _other_certificates(chance, ders, pieces)
            data = _shapes(certificates)[name](report)
        else:
            data, words = _mutated(chance, shapes[name](report))
        yield Changed(name, f"{where}: {words}", data, piece)


def _file(
    chance: random.Random, name: str, file: bytes, report: bytes, piece: Published, *, genuine: bool
) -> Changed:
    if genuine:
        return Changed(name, "nothing", report, piece, file)
    changed, words = _mutated(chance, file)
    return Changed(name, f"shape: {words}", report, piece, changed)


def _shapes(ders: Ders) -> dict[str, Shape]:
    return whole(ders) | ALONE


def _mutated(chance: random.Random, data: bytes) -> tuple[bytes, str]:
    changed, names = bytearray(data), []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if changed:
            mutation = chance.choice(MUTATIONS)
            names.append(mutation.__name__.strip("_"))
            mutation(chance, changed)
    return bytes(changed), ", ".join(names)


def _other_certificates(
    chance: random.Random, ders: Ders, pieces: Sequence[Published]
) -> tuple[Ders, str]:
    """Change one of the certificates, or put another one in its place."""
    changed, at = list(ders), chance.randrange(3)
    how = chance.choice(("change", "exchange", "of another"))
    if how == "change":
        data, words = _mutated(chance, changed[at])
        changed[at] = data or b"\0"  # a table has no empty entry
        how = words
    elif how == "exchange":
        changed[at] = chance.choice(ders)
    else:
        changed[at] = chance.choice(pieces).certificates[at]
    leaf, ask, ark = changed
    return (leaf, ask, ark), f"{('VCEK', 'ASK', 'ARK')[at]}, {how}"


def compare(sevguest: Path, pieces: Sequence[Published], count: int, seed: int) -> Result:
    """Let snpcerts judge all inputs, and go-sev-guest those that snpcerts accepts."""
    result = Result()
    accepted: list[Changed] = []
    read: list[bytes] = []
    for each in inputs(pieces, count, seed):
        result.inputs += 1
        try:
            evidence = Evidence.from_bytes(each.data)
        except FormatError:
            result.unread += 1
            result.shapes[each.shape]["unread"] += 1
            continue
        collateral = evidence.collateral
        if each.file is not None:
            collateral = Collateral(others=(each.file,))
        elif each.shape in ALONE and collateral.empty:
            collateral = Collateral(others=each.piece.certificates)
        verdict = verify(evidence, collateral, _GENUINE, at=each.piece.at)
        if verdict.status is not Status.VERIFIED:
            result.refused += 1
            result.shapes[each.shape]["refused"] += 1
            continue
        accepted.append(each)
        result.accepted += 1
        result.shapes[each.shape]["accepted"] += 1
        result.altered += each.change != "nothing"
        read.append(evidence.report.raw + table_of(_used(verdict, collateral, each.piece)))
    for each, line in zip(accepted, judge(sevguest, read, pieces[0].at), strict=True):
        if line == "accepted":
            result.both += 1
        else:
            result.alone.append(f"{each.piece.name}, {each.shape}, {each.change}: {line}")
    return result


def _used(verdict: Verdict, collateral: Collateral, piece: Published) -> Ders:
    """Return, in DER, the leaf that snpcerts used, and the evidence's ASK and ARK.

    If the evidence's ASK or ARK is absent or unreadable, snpcerts used another certificate; return
    the genuine one instead.
    """
    assert verdict.leaf is not None
    ask, ark = (
        _der(found) or genuine
        for found, genuine in zip(
            (collateral.ask, collateral.ark), piece.certificates[1:], strict=True
        )
    )
    return verdict.leaf.certificate.der, ask, ark


def _der(data: bytes | None) -> bytes | None:
    try:
        return None if data is None else load_certificate(data, "certificate").der
    except FormatError:
        return None


def judge(sevguest: Path, read: Sequence[bytes], at: datetime) -> list[str]:
    """Return go-sev-guest's verdict on each item of ``read``, a report followed by its table."""
    frames = b"".join(struct.pack(">I", len(each)) + each for each in read)
    ran = subprocess.run(
        [sevguest, at.strftime("%Y-%m-%dT%H:%M:%SZ")],
        input=frames,
        capture_output=True,
        timeout=_PATIENCE,
        check=True,
    )
    return ran.stdout.decode().splitlines()


def main() -> int:
    """Compare as many inputs as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shapes", action="store_true")
    options = parser.parse_args()
    try:
        sevguest = ensure(CLIENTS["sevguest"]).program("sevguest")
        pieces = published_evidence()
    except (ToolMissingError, BuildFailedError) as error:
        print(error, file=sys.stderr)
        return 2
    result = compare(sevguest, pieces, options.inputs, options.seed)
    print(result)
    if options.shapes:
        print(result.by_shape())
    return 1 if result.alone else 0


if __name__ == "__main__":
    sys.exit(main())
