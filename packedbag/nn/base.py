"""`PackedModule`: the table, the anchor and the sink that both packed modules share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from packedbag.core.bounds import check_bounds, check_padding_idx
from packedbag.core.errors import ArgumentError, PackedBagError, ShapeError
from packedbag.core.layout import check_embedding_dim, view_words, words_per_row
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.value_codes import check_code, values_of
from packedbag.nn.convert import clear_tail, mean_magnitude, write_words
from packedbag.ops.functional import reduce_bags
from packedbag.ops.memory import empty_table
from packedbag.ops.packing import unpack
from packedbag.ops.shard import Shard
from packedbag.ops.sink import GradientSink, sink_of
from packedbag.table import PackedTable

Self = TypeVar("Self", bound="PackedModule")


def output_name(output_dtype: torch.dtype | None) -> str:
    """Return the name of a module's output dtype, as `packedbag.core.modes` knows it."""
    return str(output_dtype or torch.float32).removeprefix("torch.")


class PackedModule(torch.nn.Module):
    """A table of +-1 in one bit a weight.

    The words are an int32 buffer, ``words``; users see it as uint32, ``weight``. A float32 parameter of shape
    (1,), the ``anchor``, makes autograd, DDP and optimizers see the module; its value means nothing. Backward
    leaves the rows' gradients in the ``sink``, and a packed optimizer drains it.
    """

    words: torch.Tensor
    scale: torch.Tensor | None
    mode = "sum"
    include_last_offset = False
    #: Whether entries of the padding row take part in bags, as some interfaces want it. It is trained in no case.
    padding_votes = False
    #: Which part of a table this is, where processes share it.
    shard: Shard | None = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_idx: int | None = None,
        scale: str | None = None,
        bits_per_value: int = 1,
        code: str = "thermometer",
        bounds: str = "raise",
        output_dtype: torch.dtype | None = None,
        device: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(num_embeddings, "__index__"):
            raise ArgumentError("num_embeddings", repr(num_embeddings), "an integer")
        if num_embeddings < 0:
            raise ArgumentError("num_embeddings", num_embeddings, "at least 0")
        if scale not in (None, "row", "table"):
            raise ArgumentError("scale", repr(scale), "None, 'row' or 'table'")
        self.num_embeddings = num_embeddings
        self.embedding_dim = check_embedding_dim(embedding_dim)
        self.padding_idx = check_padding_idx(padding_idx, num_embeddings)
        self.scale_kind = scale
        self.bits_per_value = check_bits_per_value(
            bits_per_value, self.embedding_dim, self.mode, output_name(output_dtype)
        )
        self.code = check_code(code, self.bits_per_value)
        if self.code == "binary" and scale == "row":
            raise ArgumentError("scale", "'row'", "None or 'table' with code='binary'")
        self.bounds = check_bounds(bounds)
        self.output_dtype = output_dtype
        shape = (num_embeddings, words_per_row(self.embedding_dim))
        self.register_buffer("words", empty_table(shape, device), persistent=False)
        self.anchor = torch.nn.Parameter(torch.zeros(1, device=device))
        if scale == "table":
            self.scale = torch.nn.Parameter(torch.ones((), device=device))
        elif scale == "row":
            self.register_buffer("scale", torch.ones(num_embeddings, device=device))
        else:
            self.scale = None
        self._link()
        self._draw(generator)

    @classmethod
    def from_pretrained(cls: type[Self], tensor: torch.Tensor, *, freeze: bool = False, **kwargs: Any) -> Self:
        """Make a module from a table of weights.

        Args:
            tensor: (V, D) floating point: its signs, with ``scale="row"`` or ``"table"`` set to the mean |w|;
                or bool: the bits.
            freeze: whether the bits stay as they are in training.
            kwargs: of the constructor.
        """
        if not isinstance(tensor, torch.Tensor):
            raise ArgumentError("tensor", f"a {type(tensor).__name__}", "a torch tensor")
        if tensor.ndim != 2:
            raise ShapeError("tensor", tuple(tensor.shape), "(V, D)")
        if not (tensor.dtype == torch.bool or tensor.is_floating_point()):
            raise ArgumentError("tensor", f"of dtype {tensor.dtype}".replace("torch.", ""), "floating point or bool")
        kwargs.setdefault("device", tensor.device)
        module = cls(tensor.shape[0], tensor.shape[1], **kwargs)
        write_words(module.words, tensor, module.embedding_dim, "tensor")
        module._set_scale_from(tensor)
        module.anchor.requires_grad_(not freeze)
        return module

    @property
    def weight(self) -> torch.Tensor:
        """The table, (V, W) uint32; shares memory with the module."""
        weight: torch.Tensor = view_words(self.words, "uint32")
        return weight

    @property
    def row_scale(self) -> torch.Tensor | None:
        """The scale of each row, (V,) float32, or None."""
        return self.scale if self.scale_kind == "row" else None

    @property
    def table_scale(self) -> torch.Tensor | None:
        """The scale of the whole table, () float32 parameter, or None."""
        return self.scale if self.scale_kind == "table" else None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed words: V * ceil(D / 32) * 4."""
        return self.words.nbytes

    def to_bool(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weights of ``rows`` (default: all, V * D bytes) as bool, (len(rows), D): True is +1."""
        words = self.words if rows is None else self.words[rows]
        bits: torch.Tensor = unpack(words, self.embedding_dim)
        return bits

    def to_table(self) -> PackedTable:
        """Return the table for use without torch; on the CPU it shares memory with the module."""
        scale = None if self.scale is None else self.scale.detach().cpu().numpy()
        metadata = {"mode": self.mode, "padding_idx": None if self.padding_votes else self.padding_idx}
        words, options = view_words(self.words.cpu(), "uint32").numpy(), {"bits_per_value": self.bits_per_value}
        return PackedTable(words, self.embedding_dim, scale=scale, metadata=metadata, code=self.code, **options)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every bit anew, +1 or -1 with equal chance, and set the scale to 1."""
        self._draw(generator)

    def _draw(self, generator: torch.Generator | None) -> None:
        """Give the table its first bits and scale."""
        with torch.no_grad():
            if not self.words.is_meta:
                self.words.random_(-(2**31), 2**31, generator=generator)
                clear_tail(self.words, self.embedding_dim)
            if self.scale is not None:
                self.scale.fill_(1.0)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        shown = [f"{self.num_embeddings}, {self.embedding_dim}"]
        shown += [f"mode={self.mode!r}"] if self.mode != "sum" else []
        shown += [f"padding_idx={self.padding_idx}"] if self.padding_idx is not None else []
        shown += [f"scale={self.scale_kind!r}"] if self.scale_kind else []
        shown += [f"bits_per_value={self.bits_per_value}"] if self.bits_per_value > 1 else []
        shown += [f"code={self.code!r}"] if self.code != "thermometer" else []
        shown += [f"bounds={self.bounds!r}"] if self.bounds != "raise" else []
        return ", ".join(shown)

    def _reduce(
        self, indices: torch.Tensor, offsets: torch.Tensor | None, per_sample_weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the bags of this table, (B, D / bits_per_value); backward feeds its sink."""
        bags = self._columns(indices, offsets, per_sample_weights)
        if self.bits_per_value == 1:
            return bags
        values: torch.Tensor = values_of(bags, self.bits_per_value, self.code)
        return values if self.output_dtype is None else values.to(self.output_dtype)

    def _columns(
        self, indices: torch.Tensor, offsets: torch.Tensor | None, per_sample_weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the bags of this table, one number a column, (B, D)."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._notice_ddp()
        try:  # nn.Module.__getattr__ finds them too, in 0.6 us each, after an ordinary lookup has failed
            words, anchor = self._buffers["words"], self._parameters["anchor"]
        except KeyError:  # wrappers such as FSDP1 and parametrizations keep them elsewhere
            words, anchor = self.words, self.anchor
        return reduce_bags(
            words,
            indices,
            offsets,
            per_sample_weights,
            self.row_scale,
            self.table_scale,
            embedding_dim=self.embedding_dim,
            mode=self.mode,
            padding_idx=None if self.padding_votes else self.padding_idx,
            include_last_offset=self.include_last_offset,
            bounds=self.bounds,
            output_dtype=self.output_dtype if self.bits_per_value == 1 else None,
            anchor=anchor,
            handle=self._handle,
        )

    def _set_scale_from(self, tensor: torch.Tensor) -> None:
        if self.scale is not None and self.scale_kind is not None:
            with torch.no_grad():
                self.scale.copy_(mean_magnitude(tensor, self.scale_kind))

    def _link(self) -> None:
        """Give this module a sink of its own, to which its anchor leads."""
        self.sink = GradientSink(self)
        self._handle = self.sink.handle
        self.sink.link(self.anchor)

    def _notice_ddp(self) -> None:
        """Remember the process group of a surrounding DDP, whose ranks `step()` gathers gradients from."""
        ddp = getattr(torch.nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
        if ddp is None or self.sink.process_group is ddp.process_group:
            return
        self.sink.process_group = ddp.process_group
        if ddp.broadcast_buffers:
            warnings.warn(
                f"DistributedDataParallel sends the whole table of {type(self).__name__} ({self.nbytes} bytes) at "
                f"every forward. Wrap the model with DistributedDataParallel(model, broadcast_buffers=False).",
                stacklevel=4,
            )

    def _apply(self: Self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            # .double() and .half() are about arithmetic; bits, anchor and scale stay what they are.
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)
        if sink_of(self.anchor) is not self.sink:
            self.sink.link(self.anchor)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["sink"], state["_handle"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        anchor = state["_parameters"]["anchor"]
        if sink_of(anchor) is not None:  # copy.copy shares the bits with a living module, whose anchor stays its own
            own = torch.nn.Parameter(anchor.detach().clone(), requires_grad=anchor.requires_grad)
            state = {**state, "_parameters": {**state["_parameters"], "anchor": own}}
        super().__setstate__(state)
        self._link()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = view_words(self.words, "uint32")
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "anchor"]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key, scale_key = prefix + "weight", prefix + "scale"
        own = {k: v for k, v in state_dict.items() if k.startswith(prefix) and k != key}
        own[prefix + "anchor"] = self.anchor
        if self.scale is not None and isinstance(own.get(scale_key), torch.Tensor):
            # Kernels read it as contiguous float32, which assign=True would not see to.
            own[scale_key] = own[scale_key].to(torch.float32).contiguous()
        weight = state_dict.get(key)
        if weight is None:
            missing_keys.append(key)
        elif not isinstance(weight, torch.Tensor):
            error_msgs.append(f"{key}: a {type(weight).__name__}; it must be a torch tensor.")
        else:
            try:
                self._load_words(weight, assign=bool(local_metadata.get("assign_to_params_buffers", False)))
                own[prefix + "anchor"] = self._real_anchor()
            except PackedBagError as error:
                error_msgs.append(f"{key}: {error}")
            else:
                if self.scale is not None and scale_key not in own and weight.is_floating_point():
                    self._set_scale_from(weight)
                    own[scale_key] = self.scale
        super()._load_from_state_dict(own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _real_anchor(self) -> torch.nn.Parameter:
        """Return the anchor, made real on the words' device if it is on the meta device: no checkpoint holds it."""
        if self.anchor.is_meta and not self.words.is_meta:
            self.anchor = torch.nn.Parameter(
                torch.zeros(1, device=self.words.device), requires_grad=self.anchor.requires_grad
            )
            self.sink.link(self.anchor)
        return self.anchor

    def _load_words(self, weight: torch.Tensor, *, assign: bool) -> None:
        is_words = weight.dtype in (torch.uint32, torch.int32) and weight.shape == self.words.shape
        if assign and is_words and weight.is_contiguous():
            # The tensor itself, so that a memory-mapped checkpoint stays on disk until its rows are read.
            self.words = view_words(weight, "int32")
        else:
            if self.words.is_meta:
                self.words = empty_table(tuple(self.words.shape))
            write_words(self.words, weight, self.embedding_dim)
