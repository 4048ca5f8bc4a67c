"""Sums and means of short bags, which `native_cpu` takes in signed bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packedbag.backends import missing, native_cpu
from packedbag.core.layout import words_per_row

pytestmark = pytest.mark.skipif(missing("native_cpu") is not None, reason=f"native_cpu: {missing('native_cpu')}")


@pytest.fixture(params=native_cpu.isas() if not missing("native_cpu") else ())
def backend(request: pytest.FixtureRequest) -> Any:
    return native_cpu.NativeCpu(request.param)


# A signed byte holds sums of up to 127 rows.
@pytest.mark.parametrize("length", [1, 126, 127, 128, 129, 254, 255, 256])
@pytest.mark.parametrize("dim", [32, 100, 128, 600])
@pytest.mark.parametrize(("mode", "output"), [("sum", "float32"), ("sum", "float16"), ("mean", "float32")])
def test_bags_of_one_row_repeated_reach_the_ends_of_their_range(
    backend: Any, length: int, dim: int, mode: str, output: str
) -> None:
    words = np.zeros((2, words_per_row(dim)), np.uint32)
    words[1] = ~words[1]
    indices = np.repeat(np.array([[0], [1]]), length, axis=1)
    out = np.empty((2, dim), output)
    options = {"mode": mode, "output": output, "padding_idx": -1, "bounds": "raise"}
    assert backend.bag(words, indices, None, None, None, out, embedding_dim=dim, **options) == -1
    end = length if mode == "sum" else 1
    assert (out[0] == -end).all()
    assert (out[1] == end).all()
