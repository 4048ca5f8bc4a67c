"""Hands NumPy cases to any backend, on any device, and brings the results back as NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TORCH_VIEW = {"uint32": "int32", "uint16": "bfloat16"}  # as torch holds what NumPy holds as the first


def to_device(array: np.ndarray, device: str) -> torch.Tensor:
    """Return a copy of ``array`` as a tensor on ``device``."""
    tensor = torch.from_numpy(array.copy())
    name = TORCH_VIEW.get(array.dtype.name)
    return (tensor.view(getattr(torch, name)) if name else tensor).to(device)


def to_numpy(result: Any) -> Any:
    """Return tensors as arrays, words and bfloat16 as their bits; anything else as it is."""
    if isinstance(result, tuple):
        return tuple(map(to_numpy, result))
    if not isinstance(result, torch.Tensor):
        return result
    result = result.cpu()
    return result.view(torch.uint16).numpy() if result.dtype == torch.bfloat16 else result.numpy()


class Handed:
    """A backend that takes and returns NumPy arrays, whatever it computes with; arrays it writes to are written.

    >>> from packedbag.backends.reference import BACKEND
    >>> Handed(BACKEND).merge(np.array([4, 2, 4]))[0]
    array([2, 4])
    """

    def __init__(self, backend: Any, device: str = "cpu") -> None:
        self.backend = backend
        self.device = device

    def _hand(self, x: Any) -> Any:
        if isinstance(x, dict):
            return {name: self._hand(value) for name, value in x.items()}
        return to_device(x, self.device) if isinstance(x, np.ndarray) else x

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.backend, name)
        if self.backend.arrays == "numpy":
            return method

        def call(*args: Any, **named: Any) -> Any:
            pairs = [(x, to_device(x, self.device)) if isinstance(x, np.ndarray) else (x, x) for x in args]
            handed = {k: self._hand(x) for k, x in named.items()}
            result = to_numpy(method(*[tensor for _, tensor in pairs], **handed))
            if name == "max_columns":  # the one function that returns words
                result = result.view(np.uint32)
            for array, tensor in pairs:
                if isinstance(array, np.ndarray):
                    array[...] = to_numpy(tensor).view(array.dtype)
            return result

        return call


def assert_same(actual: Any, expected: Any) -> None:
    """Raise unless arrays (or tuples, or None) are equal in dtype, shape and every bit; a NaN equals any NaN."""
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple)
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
        return
    if expected is None:
        assert actual is None
        return
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    if actual.dtype.kind == "f":
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(actual)[numbers], np.signbit(expected)[numbers], "the sign of zero")
