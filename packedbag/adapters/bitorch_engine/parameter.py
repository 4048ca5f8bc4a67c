"""`BinaryEmbeddingParameter`: looks like the bool weight (V, D) of a binary embedding, and is its packed words."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from packedbag.adapters.bitorch_engine import combinations, reads, views, writes  # noqa: F401 - they answer the operators
from packedbag.adapters.bitorch_engine.bit_rows import whole_rows, words_like
from packedbag.adapters.bitorch_engine.packed_bools import PackedBools
from packedbag.core.errors import ArgumentError, DtypeError, ShapeError
from packedbag.core.layout import check_embedding_dim


class BinaryEmbeddingParameter(PackedBools):
    """A bool tensor of one bit a value: a table (V, D), or some of its rows and columns.

    It has the dtype, the shape and the operators of a bool tensor; its memory is the packed words. Slices are views
    that write through; whole tables combine (``&``, ``|``, ``^``, ``~``, ``==``) word by word into packed results;
    rows picked by indices come as ordinary bool tensors. What needs all V * D values works in pieces; where that is
    impossible and the bools would take more than 64 MB, the operator is refused: ``to_bool()`` makes them all.

    Gradients never reach it: they travel through the anchor of the layer, which stands in ``layer.parameters()``.

    Args:
        data: (V, D) bool, packed into memory of its own; or another of these, whose memory is shared.
        requires_grad: taken and ignored: stock torch has no gradients of bools.
        active_indices: see the attribute.

    >>> bits = torch.tensor([[True, False, True], [False, False, True]])
    >>> weight = BinaryEmbeddingParameter(bits)
    >>> weight[1] ^= bits[0]
    >>> weight
    BinaryEmbeddingParameter([[ True, False,  True],
                              [ True, False, False]], packed in 8 bytes)
    """

    _active: torch.Tensor | None = None
    _layer: Callable[[], Any] | None = None

    @staticmethod
    def __new__(
        cls: type[BinaryEmbeddingParameter],
        data: torch.Tensor | None = None,
        requires_grad: bool = False,
        active_indices: torch.Tensor | None = None,
    ) -> BinaryEmbeddingParameter:
        """Pack ``data``; see the class."""
        if isinstance(data, PackedBools):
            made = cls.of_bits(data.bits, data.gone)
        else:
            made = cls.of_bits(whole_rows(*_packed(data)))
        made._active = active_indices
        return made

    @property
    def active_indices(self) -> torch.Tensor:
        """The rows that took part in backward since the last step, int64, of this instance alone.

        In the shape of the batches, one below the other, if all bags were of one length and nothing was left out;
        else (K,). Without any (0,). Of a layer's weight they are what the next step updates, unless something was
        assigned.
        """
        layer = None if self._layer is None else self._layer()
        if self._active is None and layer is not None:
            found: torch.Tensor = layer.active_indices
            return found
        return torch.empty(0, dtype=torch.int64, device=self.device) if self._active is None else self._active

    @active_indices.setter
    def active_indices(self, indices: torch.Tensor | None) -> None:
        self._active = indices

    @property
    def layer(self) -> Any:
        """The layer whose weight this is, or None; held weakly."""
        return None if self._layer is None else self._layer()

    def belongs_to(self, layer: Any) -> BinaryEmbeddingParameter:
        """Note that this is the weight of ``layer``, and return it."""
        self._layer = weakref.ref(layer)
        return self

    def __iter__(self) -> Iterator[torch.Tensor]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d tensor")
        return (self[row] for row in range(len(self)))

    def __repr__(self, *, tensor_contents: object = None) -> str:
        name = type(self).__name__
        text, is_cut = _shown(self)
        text = text.removeprefix("tensor(").removesuffix(")").replace("\n", "\n" + " " * (len(name) - len("tensor")))
        size = f", size={tuple(self.shape)}" if is_cut else ""
        device = "" if self.device.type == "cpu" else f", device='{self.device}'"
        return f"{name}({text}{size}{device}, packed in {self.nbytes} bytes)"


def sparse_update_embedding_qweight(
    weight: BinaryEmbeddingParameter, bits: torch.Tensor, active_indices: torch.Tensor | None = None
) -> None:
    """Give the active rows of ``weight`` new bits: XOR those that differ, and touch no other row.

    Args:
        weight: the table.
        bits: bool (V, D), of which the active rows count; or (*active_indices.shape, D).
        active_indices: rows, any shape; default: ``weight.active_indices``.
    """
    rows = weight.active_indices if active_indices is None else active_indices
    if bits.dtype != torch.bool:
        raise DtypeError("bits", bits.dtype, "bool", "Pass bits > 0 for the signs of numbers.")
    if tuple(bits.shape) == tuple(weight.shape):
        bits = bits[rows]
    elif tuple(bits.shape) != (*rows.shape, weight.shape[1]):
        raise ShapeError(
            "bits", tuple(bits.shape), f"{tuple(weight.shape)}, or {(*rows.shape, weight.shape[1])}: the active rows"
        )
    weight[rows] ^= weight[rows] ^ bits


def _packed(data: Any) -> tuple[torch.Tensor, int]:
    """Return the words and D of a bool tensor."""
    if not isinstance(data, torch.Tensor):
        raise ArgumentError("data", f"a {type(data).__name__}", "a bool tensor (V, D)")
    if data.dtype != torch.bool:
        raise DtypeError("data", data.dtype, "bool", "Pass weight >= 0 for the signs of floats.")
    if data.ndim != 2:
        raise ShapeError("data", tuple(data.shape), "(V, D)")
    dim = check_embedding_dim(data.shape[1])
    words = words_like(data, (data.shape[0], dim), data.device)
    assert words is not None
    return words, dim


def _shown(tensor: BinaryEmbeddingParameter) -> tuple[str, bool]:
    """Return what torch would print, and whether some is left out; of a large table only the rows shown are read."""
    options = torch._tensor_str.PRINT_OPTS
    edge = options.edgeitems
    if tensor.is_meta:
        return "tensor(...)", True
    if tensor.numel() <= options.threshold:
        return repr(tensor.to_bool().cpu()), False
    if tensor.ndim < 2 or len(tensor) <= 2 * edge:
        return repr(tensor.to_bool().cpu()), True
    ends = torch.cat([tensor[:edge].to_bool(), tensor[-edge:].to_bool()]).cpu()
    with torch._tensor_str.printoptions(threshold=0):  # type: ignore[no-untyped-call]
        lines = repr(ends).split("\n")  # a row each: six values and dots at most
    return "\n".join([*lines[:edge], " " * len("tensor([") + "...,", *lines[edge:]]), True
