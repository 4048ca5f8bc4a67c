"""NumPy arguments for a backend that computes with torch tensors: the same memory, seen from the other side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

Function = TypeVar("Function", bound=Callable[..., Any])

#: How NumPy holds what torch holds as another dtype of the same size. Arguments of uint16 are bfloat16's bits.
HELD_AS = {"uint32": torch.int32, "uint16": torch.bfloat16}


class _Writable:
    """The memory of a read-only array, announced as writable.

    `torch.from_numpy` warns of arrays that are read-only, as the words of a memory-mapped table are. A backend
    writes to ``out`` and to the optimizer's state alone, which are writable anyway.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor on the memory of a contiguous ``array``."""
    tensor = torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))
    held_as = HELD_AS.get(array.dtype.name)
    return tensor if held_as is None else tensor.view(held_as)


def as_array(tensor: torch.Tensor, *, words: bool = True) -> npt.NDArray[Any]:
    """Return an array on the memory of ``tensor``; int32 are ``words``, hence uint32, or numbers."""
    array: npt.NDArray[Any] = tensor.numpy()
    return array.view(np.uint32) if words and array.dtype == np.int32 else array


def accepts_numpy(method: Function, *, words: bool = True) -> Function:
    """Let a method of tensors be called with NumPy arrays as well; it then returns NumPy arrays.

    No gradient is recorded in either case. ``words``: whether int32 results are words.
    """

    @functools.wraps(method)
    def call(self: object, *args: Any, **named: Any) -> Any:
        with torch.no_grad():
            if not any(isinstance(x, np.ndarray) for x in (*args, *named.values())):
                return method(self, *args, **named)
            args = tuple(as_tensor(x) if isinstance(x, np.ndarray) else x for x in args)
            named = {name: as_tensor(x) if isinstance(x, np.ndarray) else x for name, x in named.items()}
            result = method(self, *args, **named)
        if isinstance(result, torch.Tensor):
            return as_array(result, words=words)
        return tuple(map(as_array, result)) if isinstance(result, tuple) else result

    return cast(Function, call)
