"""Serves a packed table over HTTP, without torch, and takes over a new file while it serves.

    pip install 'packedbag[serve]'
    python examples/serve.py items.safetensors --port 8000
    curl 'localhost:8000/lookup?id=3,17'
    curl -d '{"bags": [[3, 17, 17], [5]]}' localhost:8000/bag
    curl -d '{"id": 3, "k": 10}' localhost:8000/nearest
    curl localhost:8000/health

`packedbag.save` and `packedbag export` replace a file in one step: requests under way finish on the old map, the next
ones are answered from the new one. A file that cannot be opened is reported by /health, and the old one goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import packedbag
from packedbag.serving import hamming_topk

#: Seconds between two looks at whether the file is a new one.
INTERVAL = 0.1
#: Ids that one request may name: a row of 128 values is 1 kB of JSON.
MOST_IDS = 10_000


class Served:
    """The table of a file, opened again when the file is replaced."""

    def __init__(self, path: str, name: str | None) -> None:
        self.path, self.name = path, name
        self.error: str | None = None
        self.stamp = self._stamp()
        self.table: packedbag.PackedTable = self._open()
        self.loads = 1
        self._next_look = 0.0

    def current(self) -> packedbag.PackedTable:
        """Return the table to answer from: hold it for the whole request."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + INTERVAL
            try:
                stamp = self._stamp()
                if stamp != self.stamp:
                    self.table, self.stamp, self.error = self._open(), stamp, None
                    self.loads += 1
            except (OSError, packedbag.PackedBagError) as error:
                self.error = str(error)
        return self.table

    def _stamp(self) -> tuple[int, ...]:
        seen = os.stat(self.path)  # noqa: PTH116 - the file, whatever object named it
        return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns

    def _open(self) -> packedbag.PackedTable:
        opened: packedbag.PackedTable = packedbag.load(self.path, self.name)
        if not isinstance(opened, packedbag.PackedTable):
            raise packedbag.PackedBagError(f"{self.path} has the tables {', '.join(opened)}: pick one by --table")
        return opened


def application(served: Served) -> Starlette:
    """Return the routes over a table."""

    async def health(request: Request) -> JSONResponse:
        table = served.current()
        facts = {"rows": len(table), "embedding_dim": table.embedding_dim, "bytes": table.nbytes}
        status = {"status": "ok" if served.error is None else "serving the old file", "error": served.error}
        return JSONResponse({**status, **facts, "loads": served.loads})

    async def lookup(request: Request) -> JSONResponse:
        ids = [int(part) for part in request.query_params.get("id", "").split(",") if part]
        rows = served.current().rows(checked(ids))
        return JSONResponse({"ids": ids, "rows": rows.tolist()})

    async def bag(request: Request) -> JSONResponse:
        bags = (await request.json())["bags"]
        table = served.current()
        flat = checked([each for one in bags for each in one])
        offsets = np.cumsum([0, *map(len, bags)])[: len(bags)]
        return JSONResponse({"bags": table.bag(flat, offsets).tolist()})

    async def nearest(request: Request) -> JSONResponse:
        wanted = await request.json()
        table = served.current()
        query = table.words[checked([wanted["id"]])]
        # It reads the whole table: other requests go on meanwhile.
        distances, rows = await run_in_threadpool(hamming_topk, table, query, int(wanted.get("k", 10)))
        return JSONResponse({"ids": rows[0].tolist(), "distances": distances[0].tolist()})

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=400)

    routes = [Route("/health", health), Route("/lookup", lookup)]
    routes += [Route("/bag", bag, methods=["POST"]), Route("/nearest", nearest, methods=["POST"])]
    mistakes = (packedbag.PackedBagError, ValueError, TypeError, KeyError, IndexError)
    return Starlette(routes=routes, exception_handlers=dict.fromkeys(mistakes, refused))


def checked(ids: list[Any]) -> np.ndarray:
    """Return ids as int64; raise ValueError where there are too many, TypeError where they are no integers."""
    if len(ids) > MOST_IDS:
        raise ValueError(f"{len(ids)} ids; a request may name {MOST_IDS}")
    if not all(type(each) is int for each in ids):
        raise TypeError("ids must be integers")
    return np.array(ids, np.int64)


def main() -> None:
    """Serve until it is stopped."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="any file that packedbag.load opens")
    parser.add_argument("--table", help="its name, in a file of several")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    try:
        served = Served(given.file, given.table)
    except (OSError, packedbag.PackedBagError) as error:
        parser.error(str(error))
    uvicorn.run(application(served), host=given.host, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
