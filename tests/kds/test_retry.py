# SPDX-License-Identifier: Apache-2.0
"""How long the client waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.kds.retry import MAX_RETRY_AFTER, RetryPolicy, parse_retry_after

THEN = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def http_date(when: datetime) -> str:
    return format_datetime(when, usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("10", 10.0), (" 7 ", 7.0), ("0", 0.0), ("999999999", MAX_RETRY_AFTER)],
)
def test_seconds_are_honoured_up_to_an_hour(value: str, seconds: float) -> None:
    assert parse_retry_after(value, None) == seconds


@pytest.mark.parametrize(
    "value", [None, "", "soon", "-5", "1.5", "1e3", "٣", "Thu, 99 Foo 2031", "x" * 1000]
)
def test_an_unreadable_header_means_no_wait(value: str | None) -> None:
    assert parse_retry_after(value, None) is None


def test_a_date_counts_from_the_servers_own_clock() -> None:
    until = http_date(THEN + timedelta(seconds=42))
    assert parse_retry_after(until, http_date(THEN)) == 42.0


def test_a_date_without_a_servers_clock_counts_from_ours() -> None:
    until = http_date(datetime.now(UTC) + timedelta(seconds=100))
    assert 90 <= (parse_retry_after(until, None) or 0) <= 100


def test_a_past_date_means_no_wait_and_a_distant_one_an_hour() -> None:
    assert parse_retry_after(http_date(THEN - timedelta(days=1)), http_date(THEN)) == 0.0
    far = http_date(THEN + timedelta(days=900))
    assert parse_retry_after(far, http_date(THEN)) == MAX_RETRY_AFTER


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_header_brings_anything_but_a_bounded_wait(value: str, date: str) -> None:
    wait = parse_retry_after(value, date)
    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER


@given(st.integers(1, 40))
def test_waits_grow_and_are_bounded(failures: int) -> None:
    policy = RetryPolicy()
    shortest = min(policy.first_wait * 2 ** (failures - 1), policy.longest_wait)
    assert shortest <= policy.wait_after(failures, None) <= shortest * 1.2
    assert 33 <= policy.wait_after(failures, 33.0) <= 33 * 1.2


@given(st.integers(1, 2000), st.none() | st.floats(0, MAX_RETRY_AFTER))
def test_a_hold_off_doubles_with_each_refusal_and_is_bounded(
    refusals: int, named: float | None
) -> None:
    policy = RetryPolicy()
    least = policy.throttled_wait if named is None or named < 1 else named
    found = policy.hold_off(refusals, named)
    assert least <= found <= MAX_RETRY_AFTER
    assert found >= min(least * 2.0 ** min(refusals - 1, 99), policy.longest_hold_off)


def test_hosts_do_not_come_back_all_at_once() -> None:
    policy = RetryPolicy()
    waits = {policy.hold_off(1, 10.0) for _ in range(20)}
    assert len(waits) > 1
    assert min(waits) >= 10.0
