# SPDX-License-Identifier: Apache-2.0
"""The time spans that ``timed`` reports for requests and updates, such as waiting for a lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.reader import Found
from snpcerts.certfile.span import Span, SpanKind, timed
from snpcerts.certfile.writer import LockHeldError, Strategy

TABLE = CertTable((TableEntry(VCEK_GUID, b"certificate"),))


def ignore(_: Found) -> None:
    """Do nothing with what the reader found."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "certs.bin")
    CertFile(path).publish(TABLE)
    return path


def spans_of_reader(path: str) -> dict[SpanKind, Span]:
    spans: list[Span] = []
    CertFile(path, timed(spans.append)).serve(
        deliver=ignore, handshake=lambda: None, lock_wait=0.01
    )
    assert [Span.from_json(each.to_json()) for each in spans] == spans
    return {each.kind: each for each in spans}


def test_a_reader_holds_the_lock_for_longer_than_it_uses_the_certificates(path: str) -> None:
    spans = spans_of_reader(path)
    assert spans.keys() == {SpanKind.LOCK_HELD, SpanKind.TABLE, SpanKind.REENTRY}
    held, used, entered = (
        spans[kind] for kind in (SpanKind.LOCK_HELD, SpanKind.TABLE, SpanKind.REENTRY)
    )
    assert held.start <= used.start <= entered.start <= entered.end <= used.end <= held.end
    assert held.path == path


def test_a_reader_that_gets_no_lock_waits_and_holds_nothing(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, EXCLUSIVE)
        spans = spans_of_reader(path)
    finally:
        os.close(fd)
    assert spans.keys() == {SpanKind.LOCK_WAIT, SpanKind.REENTRY}
    wait = spans[SpanKind.LOCK_WAIT]
    assert wait.end - wait.start >= 0.01


@pytest.mark.parametrize("strategy", Strategy)
def test_a_writer_waits_holds_and_changes_in_this_order(path: str, strategy: Strategy) -> None:
    spans: list[Span] = []
    CertFile(path, timed(spans.append)).update(lambda: TABLE, strategy=strategy)
    by_kind = {each.kind: each for each in spans}
    assert len(spans) == len(by_kind) == 3
    wait, held, change = (
        by_kind[kind] for kind in (SpanKind.LOCK_WAIT, SpanKind.LOCK_HELD, SpanKind.CHANGE)
    )
    assert wait.start <= wait.end == held.start <= change.start <= change.end <= held.end
    assert held.path == path


def test_a_writer_that_gets_no_lock_waits_and_holds_nothing(path: str) -> None:
    spans: list[Span] = []
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, EXCLUSIVE)
        with pytest.raises(LockHeldError):
            CertFile(path, timed(spans.append)).update(lambda: TABLE, lock_wait=0.01)
    finally:
        os.close(fd)
    assert [each.kind for each in spans] == [SpanKind.LOCK_WAIT]
