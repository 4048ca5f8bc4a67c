"""`PackedBools`: a tensor subclass with the dtype and shape of bools, and the memory of packed words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from packedbag.adapters.bitorch_engine.bit_rows import BitRows
from packedbag.adapters.safe_loading import rebuild
from packedbag.core.errors import ArgumentError, DtypeError
from packedbag.core.layout import check_embedding_dim, check_words, view_words

#: Bools that are made of a table without being asked for by name; more than these only `PackedBools.to_bool` makes.
LIMIT = 64 << 20

#: Makes C++ code that asks a tensor for its memory raise: there is none behind these, and a read of it would crash.
_GUARD = getattr(torch._C, "_set_throw_on_mutable_data_ptr", None)

#: Operators of tensors on several devices; and those whose indices may be on the CPU. Numbers may be there, always.
CROSSING = (torch.ops.aten.copy_, torch.ops.aten._to_copy)
INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)
#: Operators that set bits to their last argument: a number of any device.
FILLING = (
    *(torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_, torch.ops.aten.index_fill_),
    *(torch.ops.aten.fill_, torch.ops.aten.masked_fill, torch.ops.aten.masked_fill_),
)

Self = TypeVar("Self", bound="PackedBools")
Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
#: What answers each operator of torch; a row is added by `handles`.
HANDLERS: dict[Any, Handler] = {}
#: What answers all others.
OTHERS: list[Handler] = []


def handles(*operators: Any) -> Callable[[Handler], Handler]:
    """Return a decorator that lets a function ``(func, args, kwargs)`` answer these operators of ``torch.ops``."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(operators, handler))
        return handler

    return register


class PackedBools(torch.Tensor):
    """Some rows and columns of a packed table, to torch a bool tensor; see `BinaryEmbeddingParameter`."""

    bits: BitRows
    #: Which of the two dimensions an index has taken away: ``weight[3]`` and ``weight[:, 3]``.
    gone: tuple[bool, bool]

    # What Python's methods are made of arrives at `__torch_dispatch__`.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def of_words(cls: type[Self], words: torch.Tensor, embedding_dim: int) -> Self:
        """Return the table that ``words`` hold, (V, W) uint32 or int32 with tail bits 0; shares their memory."""
        dim = check_embedding_dim(embedding_dim)
        check_words(words, dim)
        return cls.of_bits(BitRows(view_words(words, "int32"), dim, range(dim)))

    @classmethod
    def of_bits(cls: type[Self], bits: BitRows, gone: tuple[bool, bool] = (False, False)) -> Self:
        """Return ``bits`` as a tensor, without the dimensions that are ``gone``; shares their memory."""
        shape = [size for size, is_gone in zip(bits.shape, gone, strict=True) if not is_gone]
        made: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, dtype=torch.bool, device=bits.words.device, requires_grad=False
        )
        made.bits, made.gone = bits, gone
        if _GUARD is not None:
            _GUARD(made)
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer an operator of torch: on words where it has a handler, else on bools."""
        kwargs = kwargs or {}
        check_devices(func, args)
        handler = OTHERS[0] if "out" in kwargs else HANDLERS.get(func.overloadpacket, OTHERS[0])
        return handler(func, args, kwargs)

    @property
    def words(self) -> torch.Tensor:
        """The words of these columns, (V, W) uint32, laid out as a table; the table's own if these are all columns."""
        words: torch.Tensor = view_words(self.bits.packed(), "uint32")
        return words

    @property
    def nbytes(self) -> int:
        """Bytes of the words; an ordinary bool tensor would have ``numel()``."""
        return self.bits.words.nbytes

    @property
    def data(self: Self) -> Self:
        """The same bits, as `torch.Tensor.data`; what is assigned to it is copied into the table."""
        detached: Self = self.detach()
        return detached

    @data.setter
    def data(self, values: torch.Tensor) -> None:  # torch would make this tensor another one, beside its table
        if values.dtype != torch.bool:
            raise DtypeError("data", values.dtype, "bool", "Pass values >= 0 for the signs of floats.")
        self.copy_(values)

    def to_bool(self) -> torch.Tensor:
        """Return an ordinary bool tensor, one byte a value, however large."""
        return self.without_gone(self.bits.read()).contiguous()

    def without_gone(self, values: torch.Tensor) -> torch.Tensor:
        """Return (rows, columns) ``values`` without the dimensions that this tensor lacks."""
        rows, columns = self.gone
        values = values[:, 0] if columns else values
        return values[0] if rows else values

    def numpy(self, *, force: bool = False) -> Any:
        """Return a NumPy array, a copy; refused above 64 MB, and of another device than the CPU without ``force``."""
        return self._asked_for("numpy()").numpy(force=force)

    def tolist(self) -> Any:
        """Return nested lists; refused above 64 MB."""
        return self._asked_for("tolist()").tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self._asked_for("a NumPy array").numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._asked_for("DLPack").__dlpack__(**kwargs)

    def share_memory_(self: Self) -> Self:
        """Move the words of the whole table to memory that other processes can share."""
        self.bits.words.share_memory_()
        return self

    def is_shared(self) -> bool:
        """Return whether other processes can share the words."""
        shared: bool = self.bits.words.is_shared()
        return shared

    def __reduce_ex__(self, protocol: Any) -> Any:
        if any(self.gone) or not self.bits.columns:  # no table to rebuild
            return self.to_bool().__reduce_ex__(protocol)
        words = self.bits.packed()
        if words.untyped_storage().nbytes() > words.nbytes:  # torch saves storages, not views
            words = words.clone()
        return rebuild, (words, len(self.bits.columns))

    def __copy__(self: Self) -> Self:
        return type(self).of_bits(self.bits, self.gone)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            memo[id(self)] = self.clone()
        copied: torch.Tensor = memo[id(self)]
        return copied

    def _asked_for(self, what: str) -> torch.Tensor:
        check_size(self, what)
        return self.to_bool()


def check_devices(func: Any, args: tuple[Any, ...]) -> None:
    """Raise what torch raises where tensors of an operator are on several devices: words would be moved in silence."""
    packet, found = func.overloadpacket, None
    if func.namespace != "aten" or packet in CROSSING or packet.__name__.startswith("_foreach_"):
        return
    for position, value in enumerate(args):
        is_index = position == 1 and packet in INDEXED
        if position > 0 and packet in FILLING and isinstance(value, torch.Tensor) and not value.ndim:
            continue
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(tensor, torch.Tensor) or (tensor.device.type == "cpu" and (is_index or not tensor.ndim)):
                continue
            if found is not None and tensor.device != found:
                two = f"{found} and {tensor.device}"
                raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two: {two}")
            found = tensor.device


def check_size(tensor: PackedBools, what: str) -> None:
    """Raise where ``what`` would make more than `LIMIT` bools."""
    if tensor.numel() > LIMIT:
        raise ArgumentError(
            f"the packed tensor of shape {tuple(tensor.shape)}",
            f"{tensor.numel():,} bytes as bools, which {what} would make",
            f"at most {LIMIT:,}",
            "Take some of its rows, or make them with .to_bool().",
        )
