# SPDX-License-Identifier: Apache-2.0
"""The journal of a run, however long, can be sent from its worker process to the parent."""

from __future__ import annotations

import pickle

from snpcerts.conformance.journal import CertsRequest, Journal

MANY = 3000  # requests; each overlaps the one before


def test_many_overlapping_requests_can_leave_their_process() -> None:
    journal = Journal()
    for number in range(MANY):
        request = CertsRequest(number % 2, 0x1000, 2, float(number))
        journal.begin(request, locked=True)
        assert len(journal.beside(request)) == min(number, 2)
    assert len(pickle.loads(pickle.dumps(journal.requests))) == MANY  # noqa: S301 (our own)
