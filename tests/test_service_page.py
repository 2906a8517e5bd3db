# SPDX-License-Identifier: Apache-2.0
"""Runs the service of docs/service.md as written, and checks its answers to requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from snpcerts.errors import RetryLaterError
from snpcerts.verify import Collateral, InThread
from tests.test_documented_code import directory, example, run
from tests.verify.test_documented_reasons import CA, sound_table

__all__ = ["directory"]  # the fixture: files, cache and root that the pages' examples use

Post = Callable[..., httpx2.Response]


@pytest.fixture
def service(directory: Path) -> dict[str, Any]:
    return run(example("docs/service.md", "Starlette"))


@pytest.fixture
def post(service: dict[str, Any]) -> Post:
    def request(path: str, body: bytes = b"") -> httpx2.Response:
        async def ask() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=service["app"])
            async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.post(path, content=body)

        return asyncio.run(ask())

    return request


def challenge(post: Post) -> str:
    nonce: str = post("/challenge").json()["nonce"]
    return nonce


def report(nonce: str) -> bytes:
    return CA.report(report_data=bytes.fromhex(nonce))


def test_a_report_over_the_challenge_is_verified(post: Post) -> None:
    nonce = challenge(post)
    answer = post(f"/attest/{nonce}", report(nonce) + sound_table())
    assert (answer.status_code, answer.json()["verdict"]) == (200, "verified")


def test_certificates_come_from_the_cache_where_none_came_with_the_report(post: Post) -> None:
    nonce = challenge(post)
    assert post(f"/attest/{nonce}", report(nonce)).json()["verdict"] == "verified"


def test_a_challenge_serves_once(post: Post) -> None:
    nonce = challenge(post)
    evidence = report(nonce) + sound_table()
    assert post(f"/attest/{nonce}", evidence).status_code == 200
    assert post(f"/attest/{nonce}", evidence).status_code == 409
    assert post(f"/attest/{'00' * 64}", evidence).status_code == 409


def test_a_challenge_expires(service: dict[str, Any], post: Post) -> None:
    nonce = challenge(post)
    service["challenges"]._until[nonce] -= 61
    assert post(f"/attest/{nonce}", report(nonce) + sound_table()).status_code == 409


def test_the_oldest_challenge_goes_first(service: dict[str, Any]) -> None:
    service["MAX_CHALLENGES"] = 2
    kept = service["Challenges"]()
    first, second, third = kept.new(), kept.new(), kept.new()
    assert [kept.take(each) for each in (first, second, third)] == [False, True, True]


def test_a_report_over_something_else_is_refused(post: Post) -> None:
    answer = post(f"/attest/{challenge(post)}", report(challenge(post)) + sound_table())
    assert answer.status_code == 403
    assert answer.json() == {"verdict": "refused", "reasons": ["policy-report-data"]}


def test_a_source_that_cannot_be_reached_leaves_it_undecided(
    service: dict[str, Any], post: Post
) -> None:
    class Unreachable:
        def collateral(self, _request: object) -> Collateral:
            raise RetryLaterError("no answer")

    service["sources"][1:] = [InThread(Unreachable())]
    nonce = challenge(post)
    answer = post(f"/attest/{nonce}", report(nonce))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert answer.json()["reasons"] == ["collateral-unavailable"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"garbage", 400), (bytes(1184), 400), (b"x" * (65 << 10), 413)],
)
def test_what_is_no_evidence_is_an_error_of_the_client(
    post: Post, body: bytes, status: int
) -> None:
    answer = post(f"/attest/{challenge(post)}", body)
    assert answer.status_code == status
    assert "Traceback" not in answer.text
