# SPDX-License-Identifier: Apache-2.0
"""Mutations of bytes: small changes, including values that often break parsers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

MAX_SIZE = 32 << 10

_BYTES = (0x00, 0x01, 0x02, 0x04, 0x16, 0x30, 0x7F, 0x80, 0x81, 0x82, 0x84, 0xA0, 0xFF)
_WORDS = (0, 1, 23, 24, 25, 0x4A0, 0x3FFF, 0x4000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFE8, 0xFFFFFFFF)

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def mutated(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Return ``data`` with one to four changes, cut to :data:`MAX_SIZE` bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(_MUTATIONS)(rng, out, pool)
    return bytes(out[:MAX_SIZE])


def _at(rng: random.Random, out: bytearray) -> int:
    return rng.randrange(len(out)) if out else 0


def _flip(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    if out:
        out[_at(rng, out)] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    if out:
        out[_at(rng, out)] = rng.choice(_BYTES)


def _add(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    if out:
        at = _at(rng, out)
        out[at] = (out[at] + rng.choice((-2, -1, 1, 2))) & 0xFF


def _word(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    if len(out) >= 4:
        at = rng.randrange(len(out) - 3)
        at -= at % 4 if rng.random() < 0.7 else 0
        value = rng.choice((*_WORDS, len(out), len(out) - 24))
        out[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, rng.choice(("little", "little", "big")))


def _insert(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    at = rng.randint(0, len(out))
    out[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 24)))


def _delete(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    at = _at(rng, out)
    del out[at : at + rng.choice((1, 1, 2, 4, 24, 100))]


def _repeat(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    at = _at(rng, out)
    part = bytes(out[at : at + rng.choice((1, 4, 24, 200))])
    out[at:at] = part * rng.choice((1, 1, 2, 16))


def _truncate(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    del out[rng.randint(0, len(out)) :]


def _splice(rng: random.Random, out: bytearray, pool: Sequence[bytes]) -> None:
    other = rng.choice(pool)
    start = rng.randint(0, len(other))
    part = other[start : start + rng.choice((4, 24, 200, len(other)))]
    at = rng.randint(0, len(out))
    out[at : at + rng.choice((0, len(part)))] = part


def _zero(rng: random.Random, out: bytearray, _pool: Sequence[bytes]) -> None:
    at = _at(rng, out)
    size = min(rng.choice((1, 8, 24, 64)), len(out) - at)
    out[at : at + size] = bytes(size)


_MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _flip,
    _set,
    _set,
    _add,
    _word,
    _word,
    _insert,
    _delete,
    _repeat,
    _truncate,
    _splice,
    _zero,
)
