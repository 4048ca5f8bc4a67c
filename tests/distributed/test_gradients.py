"""Gradients of values of several bits between ranks: see `tests.distributed.gradient_cases`."""

from __future__ import annotations

import pytest
import torch

from packedbag.core.value_codes import values_of
from tests.distributed.ranks import REASON, assert_all_ok


@pytest.mark.parametrize(("world", "per_node"), [(2, 2), (4, 2)])
def test_a_number_a_value_travels_and_trains_as_in_one_process(world: int, per_node: int) -> None:
    assert assert_all_ok("tests.distributed.gradient_cases", world, per_node) > 30


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("bits", "code"), [(4, "thermometer"), (32, "thermometer"), (2, "binary"), (4, "binary"), (8, "binary")]
)
def test_all_columns_get_the_gradients_that_values_have_given_them(
    bits: int, code: str, dtype: str, rows: int, flat: bool
) -> None:
    pytest.importorskip("torchrec.distributed", reason=REASON)
    from torchrec.distributed.types import NoOpQuantizedCommCodec

    from packedbag.adapters.torchrec.gradient_wire import GradientCodec

    class Halves(NoOpQuantizedCommCodec[None]):
        quantized_dtype = torch.bfloat16

        def encode(self, input_tensor: torch.Tensor, ctx: object = None) -> torch.Tensor:
            return input_tensor.bfloat16()

        def decode(self, input_grad: torch.Tensor, ctx: object = None) -> torch.Tensor:
            return input_grad.float()

    columns = torch.zeros(rows, 3 * bits, requires_grad=True)
    values = values_of(columns, bits, code)
    whole = bits if code == "thermometer" else 2**bits - 1
    values.backward(torch.randn(values.shape).bfloat16().float() * whole)
    given = columns.grad.flatten() if flat else columns.grad
    codec = GradientCodec(Halves() if dtype == "bfloat16" else NoOpQuantizedCommCodec(), bits, code)
    sent = codec.encode(given, codec.create_context())
    assert sent.is_contiguous()
    assert sent.dtype == getattr(torch, dtype)
    assert sent.numel() == codec.calc_quantized_size(given.numel()) == given.numel() // bits
    assert codec.decode(sent).equal(given)
