"""What a large table takes through bitorch-engine's interface, from its making to its checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from packedbag.report.memory import reset_peak

MB = 1 << 20
ROWS, DIM = 10_000_000, 128

CHILD = """
import json, sys
import torch
from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag, DiodeMix
from packedbag.report import memory

def step(rows, dim, bits):
    layer = BinaryEmbeddingBag(num_embeddings=rows, embedding_dim=dim, padding_idx=0)
    optimizer = DiodeMix(layer.parameters(), lr=1e-2, betas=(0.9, 0.99), state_bits=bits)
    for _ in range(2):
        layer(torch.randint(rows, (2048, 20))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = layer.state_dict()
    assert state["weight"].shape == (rows, dim // 32)
    held = optimizer.state[layer.anchor].values()
    return layer.nbytes, sum(value.nbytes for value in held if isinstance(value, torch.Tensor))

rows, dim, bits = map(int, sys.argv[1:])
step(4096, dim, bits)  # libraries and threads
memory.reset_peak()
before = memory.resident_bytes()
table, state = step(rows, dim, bits)
print(json.dumps({"table": table, "state": state, "peak": memory.peak_bytes() - before}))
"""


@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_of_ten_million_rows_is_trained_and_saved_in_half_again_its_bytes_and_its_state(
    bits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if not reset_peak():
        pytest.skip("no /proc/self/clear_refs")
    arguments = [sys.executable, "-c", CHILD, str(ROWS), str(DIM), str(bits)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["table"] == ROWS * DIM // 8
    assert measured["state"] <= measured["table"] * (bits - 1) + MB
    assert measured["peak"] <= measured["table"] * 1.5 + measured["state"] + 64 * MB, measured
    with capsys.disabled():
        print({name: f"{value / MB:.0f} MB" for name, value in measured.items()})
