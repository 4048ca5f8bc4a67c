"""The example server: a real client, under load, while the file is replaced."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import packedbag
from packedbag import PackedTable
from packedbag.serving import hamming_topk
from tests.io.tables import table

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

SERVER = Path(__file__).parents[2] / "examples" / "serve.py"
ROWS, DIM = 2000, 100


class Client:
    """One connection, kept alive."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        content = None if body is None else body if isinstance(body, str) else json.dumps(body)
        self.connection.request("GET" if body is None else "POST", path, content)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())

    def close(self) -> None:
        self.connection.close()


@dataclass
class Server:
    """A server of the table in a file."""

    path: Path
    port: int
    process: subprocess.Popen[str]
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        self.clients.append(Client(self.port))
        return self.clients[-1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    path = tmp_path / "t.safetensors"
    packedbag.save(table(ROWS, DIM, "row", mode="mean", padding_idx=0), path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVER), str(path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server = Server(path, port, process)
    try:
        for _ in range(600):
            try:
                server.client().ask("/health")
                break
            except OSError:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.05)
        yield server
    finally:
        for client in server.clients:
            client.close()
        process.terminate()
        process.communicate(timeout=30)


def test_routes_answer_as_the_table_does(served: Server) -> None:
    client, opened = served.client(), packedbag.load(served.path)
    assert client.ask("/health")[1] == {
        "status": "ok", "error": None, "rows": ROWS, "embedding_dim": DIM, "bytes": ROWS * 16, "loads": 1,
    }  # fmt: skip
    status, found = client.ask("/lookup?id=3,0,1999")
    assert status == 200
    np.testing.assert_array_equal(np.float32(found["rows"]), opened.rows(np.array([3, 0, 1999])))
    status, found = client.ask("/bag", {"bags": [[3, 17, 17], [], [0, 5]]})
    assert status == 200
    expected = opened.bag(np.array([3, 17, 17, 0, 5]), np.array([0, 3, 3]))
    np.testing.assert_array_equal(np.float32(found["bags"]), expected)
    status, found = client.ask("/nearest", {"id": 7, "k": 4})
    distances, rows = hamming_topk(opened, opened.words[7], 4)
    assert (status, found) == (200, {"ids": rows.tolist(), "distances": distances.tolist()})
    maps = Path(f"/proc/{served.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/lookup?id=2000", None, r"IndexRangeError: indices[0] is 2000; the table has rows 0..1999"),
        ("/lookup?id=x", None, "ValueError: invalid literal"),
        ("/bag", {"bags": [[1.5]]}, "TypeError: ids must be integers"),
        ("/bag", {"bags": [[0] * 10_001]}, "ValueError: 10001 ids; a request may name 10000"),
        ("/bag", {}, "KeyError: 'bags'"),
        ("/bag", "{", "JSONDecodeError"),
        ("/nearest", {"id": 1, "k": 9999}, "ArgumentError: k is 9999; it must be an integer in 0..2000"),
    ],
)
def test_mistakes_of_a_client_are_told_and_the_server_goes_on(
    served: Server, path: str, body: Any, message: str
) -> None:
    client = served.client()
    status, found = client.ask(path, body)
    assert status == 400
    assert found["error"].startswith(message)
    assert client.ask("/health")[0] == 200


def test_a_file_that_is_replaced_under_load_costs_no_request(served: Server) -> None:
    path = served.path
    versions = [PackedTable(np.full((ROWS, 4), fill, np.uint32), DIM) for fill in (0, 0xFFFFFFFF)]
    answers: list[list[float]] = [[] for _ in range(6)]
    problems: list[object] = []
    stop = threading.Event()

    def load(number: int) -> None:
        client = served.client()
        random = np.random.default_rng(number)
        try:
            while not stop.is_set():
                ids = random.integers(1, ROWS, 20).tolist()
                status, found = client.ask("/bag", {"bags": [ids, ids[:3]]})
                values = np.unique(found["bags"]).tolist()
                if status != 200 or values not in ([-20.0, -3.0], [3.0, 20.0]):  # else of both files, or of none
                    problems.append((status, found))
                answers[number].append(max(values, key=abs))
        except Exception as error:
            problems.append(error)

    packedbag.save(versions[0], path)
    time.sleep(0.3)
    threads = [threading.Thread(target=load, args=(number,)) for number in range(len(answers))]
    for thread in threads:
        thread.start()
    for number in range(12):
        time.sleep(0.15)
        packedbag.save(versions[number % 2], path)
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not problems
    assert all({-20.0, 20.0} <= set(each) for each in answers)  # each client has seen both files
    assert all(each[-1] == 20.0 for each in answers)  # and the last one in the end
    assert served.client().ask("/health")[1]["loads"] > 5


def test_a_damaged_file_is_reported_and_the_old_one_serves_on(served: Server) -> None:
    path, client = served.path, served.client()
    before = client.ask("/lookup?id=5")[1]
    whole = path.read_bytes()
    aside = path.with_name("new")
    aside.write_bytes(whole[:-9])
    aside.replace(path)
    time.sleep(0.3)
    assert client.ask("/lookup?id=5")[1] == before
    health = client.ask("/health")[1]
    assert health["status"] == "serving the old file"
    assert "is not a whole safetensors file" in health["error"]
    aside.write_bytes(whole)
    aside.replace(path)
    time.sleep(0.3)
    assert client.ask("/lookup?id=5")[1] == before
    assert client.ask("/health")[1]["status"] == "ok"


def test_a_file_that_is_not_there_ends_the_server_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, str(SERVER), "none.pbag"], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert "none.pbag" in done.stderr
    assert "Traceback" not in done.stderr
