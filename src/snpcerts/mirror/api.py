# SPDX-License-Identifier: Apache-2.0
"""The mirror's own routes: what agents announce, rolls, health."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from snpcerts.mirror.database import DatabaseUnavailableError, MirrorDatabase
from snpcerts.mirror.wanted import WantedQueue


@dataclass(frozen=True, slots=True)
class Tokens:
    """Bearer tokens. Those of ``admin`` may do what those of ``agent`` may."""

    agent: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    def allow(self, given: str, *, admin: bool) -> bool:
        """Whether the token is known for the role; takes as long for each wrong one."""
        known = self.admin if admin else (*self.agent, *self.admin)
        found = False
        for each in known:
            found |= hmac.compare_digest(each.encode(), given.encode("utf-8", "replace"))
        return found


class _MirrorApi:
    def __init__(
        self,
        database: MirrorDatabase,
        queue: WantedQueue,
        tokens: Tokens,
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._queue = queue
        self._tokens = tokens
        self._wake = wake

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
        ]

    async def healthz(self, _request: Request) -> Response:
        return JSONResponse({"ok": True})

    def readyz(self, _request: Request) -> Response:
        try:
            self._database.check()
        except DatabaseUnavailableError as error:
            return JSONResponse({"ok": False, "code": error.code, "error": str(error)}, 503)
        return JSONResponse({"ok": True})


def mirror_api(
    database: MirrorDatabase, queue: WantedQueue, tokens: Tokens, wake: Callable[[], None]
) -> Starlette:
    """Return the application. ``wake`` is called when something has been added to the queue."""
    return Starlette(routes=_MirrorApi(database, queue, tokens, wake).routes())
