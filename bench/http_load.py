# SPDX-License-Identifier: Apache-2.0
"""A process that requests paths over a few connections, for :mod:`bench.fleet`.

It reads JSON from standard input. It writes JSON: the requests per second, and the 99th percentile
of a request's time, in seconds. Each connection carries one request at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from urllib.parse import urlsplit

import uvloop

CONNECTIONS = 8


def main() -> None:
    """Run the load that standard input describes. On a terminal, print only what runs this."""
    if sys.stdin.isatty():
        print("bench.fleet runs this")
        return
    text = sys.stdin.read()
    if not text:
        return
    given = json.loads(text)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        times = runner.run(_run(given["url"], given["paths"], given["seconds"]))
    times.sort()
    print(json.dumps({"rate": len(times) / given["seconds"], "p99": times[len(times) * 99 // 100]}))


async def _run(url: str, paths: list[str], seconds: float) -> list[float]:
    parts = urlsplit(url)
    requests = itertools.cycle(
        [f"GET /{path} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode() for path in paths]
    )
    times: list[float] = []
    until = time.monotonic() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while time.monotonic() < until:
            began = time.perf_counter()
            writer.write(next(requests))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head[:100])
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            await reader.readexactly(length)
            times.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return times


if __name__ == "__main__":
    main()
