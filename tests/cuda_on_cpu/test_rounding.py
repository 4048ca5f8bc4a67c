"""Float16 and bfloat16 are what NumPy, and the oracle, round to: every exponent, subnormals, overflow, ties, NaN."""

from __future__ import annotations

import numpy as np
import pytest

from packedbag.backends import cuda_kernels
from packedbag.backends.reference import bfloat16_bits
from tests.cuda_on_cpu import emulator, machine

pytestmark = pytest.mark.skipif(machine.missing() is not None, reason=f"the emulator of CUDA: {machine.missing()}")

KERNEL = """
template <int OUT> __global__ void convert(const float *values, u16 *out, int count) {
  const u64 t = thread_number();
  if (t < (u64)count) store_element<OUT>(out, t, values[t]);
}
template <int OUT> __global__ void convert_four(const float *values, u16 *out, int count) {
  const u64 t = thread_number() * 4;
  if (t < (u64)count) store_four<OUT>(out, t, values[t], values[t + 1], values[t + 2], values[t + 3]);
}
"""


def every_case() -> np.ndarray:
    """Return floats of every exponent and sign with significands around every tie of both types, and random ones."""
    exponents = np.arange(256, dtype=np.uint32)[:, None] << 23
    around = np.arange(-3, 4)
    ties = np.concatenate([(np.arange(0, 2**23 + 1, 2**12)[::61][:, None] + around).ravel(), around % 2**23])
    # A subnormal float16 has its tie at any bit, the more zeros before it the higher.
    high = np.concatenate([(1 << np.arange(23))[:, None] + around, 2**23 - (1 << np.arange(23))[:, None] + around])
    fractions = np.concatenate([ties, high.ravel()]).clip(0, 2**23 - 1).astype(np.uint32)
    positive = (exponents | fractions[None, :]).ravel()
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    bits = np.concatenate([positive, positive | np.uint32(1 << 31), random])
    return np.ascontiguousarray(bits[: len(bits) // 4 * 4]).view(np.float32)


def converted(values: np.ndarray, output: str, name: str) -> np.ndarray:
    parts = ("types", "rounding", "outputs")
    code = "".join((cuda_kernels.folder() / f"{part}.cuh").read_text() for part in parts) + KERNEL
    expression = f"{name}<{cuda_kernels.OUTPUTS[output]}>"
    kernel = emulator.Module(code, name_expressions=[expression]).get_function(expression)
    out = np.full(len(values), 0xABCD, np.uint16)
    kernel((-(-len(values) // 256),), (256,), (values, out, np.int32(len(values))))
    return out


@pytest.mark.parametrize("name", ["convert", "convert_four"])
def test_float16_is_numpys(name: str) -> None:
    values = every_case()
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    found = converted(values, "float16", name).view(np.float16)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(found.view(np.uint16)[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(found[~numbers]).all()
    kinds = np.abs(expected[numbers].astype(np.float64))
    assert (kinds == 0).any()
    assert ((kinds > 0) & (kinds < 2.0**-14)).sum() > 1000  # subnormal
    assert np.isinf(kinds).any()


@pytest.mark.parametrize("name", ["convert", "convert_four"])
def test_bfloat16_is_the_oracles(name: str) -> None:
    values = every_case()
    np.testing.assert_array_equal(converted(values, "bfloat16", name), bfloat16_bits(values))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (65519.996, 0x7BFF),
        (65520.0, 0x7C00),  # the tie above the largest number goes to infinity
        (65536.0, 0x7C00),
        (2.0**-24, 0x0001),
        (2.0**-25, 0x0000),  # a tie with 0
        (np.nextafter(np.float32(2.0**-25), np.float32(1)), 0x0001),
        (3 * 2.0**-25, 0x0002),  # a tie of subnormals, to even
        (np.float32(2.0**-14) - np.float32(2.0**-26), 0x0400),  # rounds up into the normal numbers
        (-0.0, 0x8000),
        (-np.inf, 0xFC00),
    ],
)
def test_known_float16(value: float, bits: int) -> None:
    assert converted(np.full(4, value, np.float32), "float16", "convert_four").tolist() == [bits] * 4
