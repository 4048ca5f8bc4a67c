"""`PackedOptimizer`: drains the sinks, merges the rows, and hands them to one method of its subclass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from packedbag.backends.protocol import Backend
from packedbag.backends.registry import select
from packedbag.core.errors import ArgumentError, GradientError, PackedBagError, StateMismatchError
from packedbag.ops.bridge import to_backend
from packedbag.ops.sink import CALL, Gradients, by_counter, check_anchor, sink_of, without_dropped
from packedbag.optim.deferred_steps import DeferredSteps, describe, sink_of_anchor
from packedbag.optim.device_control import DeviceControls
from packedbag.optim.diagnostics import Diagnostics
from packedbag.optim.gather import checksum_of, gather
from packedbag.optim.row_scale import update_row_scale
from packedbag.optim.row_sums import RowSums
from packedbag.optim.shard_steps import ShardSteps
from packedbag.optim.table_state import copy_of_loaded, fresh_state, keep_usable
from packedbag.optim.table_step import TableStep


class PackedOptimizer(Diagnostics, DeferredSteps, ShardSteps, torch.optim.Optimizer):
    """Trains packed modules: a subclass says what state a table has, and how rows change.

    Gradients come from the modules' sinks, not from ``param.grad``: the parameters are anchors, whose gradient
    only carries what others multiplied the loss or the gradients by (GradScaler, clipping).

    Args:
        params: anchors, as `packedbag.optim.packed_parameters` returns them, or groups of them.
        defaults: options of a group; ``lr`` among them.
        seed: 0 <= seed < 2^64, of the random numbers; None draws one from torch's default generator.
        process_group: whose ranks' gradients a step gathers; None takes the group of a surrounding
            `torch.nn.parallel.DistributedDataParallel`, if there is one.
    """

    state_options: tuple[str, ...] = ()
    #: Whether parts of a table on several ranks are trained as the whole table is on one.
    trains_shards: ClassVar[bool] = False
    #: Whether it trains tables whose values are binary numbers.
    trains_binary: ClassVar[bool] = False
    process_group: Any = None

    def __init__(self, params: Any, defaults: dict[str, Any], *, seed: int | None, process_group: Any) -> None:
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        if not hasattr(seed, "__index__"):
            raise ArgumentError("seed", repr(seed), "an integer")
        seed = int(seed)  # of NumPy or torch, too: it is shifted and put into checkpoints
        if not 0 <= seed < 2**64:
            raise ArgumentError("seed", seed, "in 0..2**64 - 1")
        self.process_group = process_group
        self._compared: set[int] = set()  # the tables whose words were compared with the other ranks'
        self._controls = DeviceControls()
        self._counted = {}
        super().__init__(params, {**defaults, "scale_lr": defaults.get("scale_lr"), "seed": seed, "step": 0})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compared = set()
        self._counted = {}
        self._controls = DeviceControls()
        for anchor, _ in self._tables():
            sink = sink_of(anchor)  # None while a module of the same pickle is still to be restored
            if sink is not None:
                sink.set_owner(self)

    def __getstate__(self) -> dict[str, Any]:
        self._count_steps()
        state: dict[str, Any] = super().__getstate__()
        return state

    # What a subclass defines -------------------------------------------------------------------------------

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise `ArgumentError` for an option of a parameter group that is not allowed."""
        check_rate("lr", group["lr"])
        if group["scale_lr"] is not None:
            check_rate("scale_lr", group["scale_lr"])

    def check_parameter(self, parameter: torch.Tensor) -> None:
        """Raise `ArgumentError` unless ``parameter`` is the anchor of a packed module."""
        sink = sink_of(parameter)
        if sink is None:
            raise ArgumentError(
                "params",
                f"holding a tensor of shape {tuple(parameter.shape)} that belongs to no packed module",
                "the anchors of packed modules",
                "Pass packedbag.optim.packed_parameters(model) here, and dense_parameters(model) to a torch optimizer.",
            )
        check_anchor(sink)
        if sink.source.shard is not None and not self.trains_shards:
            advice = "Use CounterSGD, BitFlip or VoteFlip."
            raise ArgumentError(
                "params", "holding a part of a sharded table", f"whole tables of {type(self).__name__}", advice
            )
        if sink.source.code == "binary" and not self.trains_binary:
            advice = "Use CounterSGD, BitFlip or VoteFlip."
            raise ArgumentError("params", "holding a table with code='binary'", "tables of thermometers", advice)

    def new_state(self, words: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the state of a table that was never updated."""
        raise NotImplementedError

    def update_rows(self, table: TableStep, rows: Any, grad: Any) -> None:
        """Update ``rows`` (U,), distinct, with their gradients (U, D) float32, in place."""
        raise NotImplementedError

    def update_table(self, table: TableStep, sums: RowSums) -> None:
        """Update all rows of ``sums`` in place: chunk by chunk, with `update_rows`."""
        for chunk in sums.chunks():
            self.update_rows(table, chunk.rows, chunk.total())

    # What torch calls --------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of anchors; its options default to the optimizer's."""
        self._count_steps()
        if self.param_groups:  # seed and step are the optimizer's, not a group's
            param_group = {**param_group, **{k: self.param_groups[0][k] for k in ("seed", "step")}}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for parameter in group["params"]:
                self.check_parameter(parameter)
            self.check_options(group)
        except Exception:
            self.param_groups.pop()
            raise
        for anchor, _ in self._tables([group]):
            sink_of_anchor(anchor).set_owner(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every table that has gradients.

        Raises:
            GradientError: a gradient is NaN or infinite; no bit of any table has changed. On a GPU: one was in an
                earlier step, which changed none.
            IndexRangeError, OffsetsError: on a GPU, of an earlier batch, whose step changed nothing.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:  # schedulers and users write to groups
            self.check_options(group)
        self._take_step()
        return loss

    def _take_step(self) -> None:
        """Update every table: what `step` does, less what torch and users hook onto it."""
        shards = self._shard_group()
        if shards is not None:
            self._leave_devices()
            self._step_shards(shards)
            return
        ranks = self._ranks()
        devices = self._devices()
        if ranks is None and self._is_deferred(devices):
            self._step_deferred(devices)
            return
        self._leave_devices()
        if ranks is None:
            self._refuse_non_finite()
        work = []
        for table, (anchor, group) in enumerate(self._tables()):
            collected = self._collect(anchor, group, table, ranks)
            if collected is not None:
                work.append((table, anchor, group, *collected))
        for table, anchor, group, gradients, factor in work:
            self._update_table(table, anchor, group, gradients, factor)
            anchor.grad = None
        if work:
            for group in self.param_groups:
                group["step"] += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as torch does; on a GPU, waits for the steps under way."""
        self._count_steps()
        state: dict[str, Any] = super().state_dict()
        return state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all tables."""
        super().zero_grad(set_to_none)
        for anchor, _ in self._tables():
            sink_of_anchor(anchor).clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned; a resumed run equals an uninterrupted one, bit for bit.

        torch's own version casts the state of a float32 parameter to float32, which destroys integers.

        Raises:
            StateMismatchError: the state is of other tables; nothing has changed.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        if len(numbers) != len(parameters):
            raise StateMismatchError("the loaded state", f"{len(numbers)} tables", str(len(parameters)))
        for group, own in zip(state_dict["param_groups"], self.param_groups, strict=False):
            missing = sorted((self.defaults.keys() & own.keys()) - group.keys())
            if missing:  # of another optimizer: torch would take its groups as they are
                raise StateMismatchError("the loaded state", f"no option {missing[0]!r}", f"one: {own[missing[0]]!r}")
        saved = {
            parameter: state_dict["state"][number]
            for parameter, number in zip(parameters, numbers, strict=True)
            if number in state_dict["state"]
        }
        before, controls = (self.state, self.param_groups), self._controls
        try:
            super().load_state_dict({**state_dict, "state": {}})
            self._controls = controls  # torch loads through __setstate__
            for group in self.param_groups:
                self.check_options(group)
            loaded = self._copies_of_loaded(saved)
        except ValueError as error:
            (self.state, self.param_groups), self._controls = before, controls
            if isinstance(error, PackedBagError):
                raise
            raise StateMismatchError(
                "the loaded state", "other parameter groups", f"{len(self.param_groups)}"
            ) from error
        self.state.update(loaded)
        self._compared.clear()
        self._count_from_here()
        self._controls.restart(self.param_groups[0]["step"])

    # -------------------------------------------------------------------------------------------------------

    def _tables(self, groups: list[dict[str, Any]] | None = None) -> Iterable[tuple[torch.Tensor, dict[str, Any]]]:
        for group in self.param_groups if groups is None else groups:
            for anchor in group["params"]:
                yield anchor, group

    def _copies_of_loaded(self, saved: dict[torch.Tensor, dict[str, Any]]) -> dict[torch.Tensor, dict[str, Any]]:
        """Return copies of what was ``saved`` for each parameter; raise `StateMismatchError` where one does not fit."""
        return {
            anchor: copy_of_loaded(self, sink_of_anchor(anchor).source, group, saved[anchor], table)
            for table, (anchor, group) in enumerate(self._tables())
            if anchor in saved
        }

    def _collect(
        self, anchor: torch.Tensor, group: dict[str, Any], table: int, ranks: Any
    ) -> tuple[Gradients, float] | None:
        """Drain a sink; return its gradients and what others multiplied them by, or None without any."""
        sink = sink_of_anchor(anchor)
        received = 0.0 if anchor.grad is None else float(anchor.grad)
        gradients = sink.drain()
        if gradients is not None and select(anchor.device.type).deferred:
            if bool(gradients.bad):  # NaN: an index of the batch was refused
                received = math.nan
            gradients = without_dropped(gradients, sink.source.num_embeddings)
        if received == 0:  # zero_grad was called since: these gradients are not wanted
            gradients = None
        calls = gradients.calls if gradients else 0
        if ranks is not None:
            gathered = gather(
                gradients,
                received,
                seed=group["seed"],
                step=group["step"],
                checksum=0 if table in self._compared else checksum_of(sink.source.words),
                group=ranks,
                device=anchor.device,
            )
            self._compared.add(table)
            gradients, received, calls = gathered.gradients, gathered.received, gathered.calls
            for each in self.param_groups:
                each["seed"] = gathered.seed
            if not math.isfinite(received):
                raise GradientError(describe(sink, table))
        if gradients is None or received == 0:
            return None
        return gradients, received / (calls * CALL)

    def _refuse_non_finite(self) -> None:
        """Raise before anything is drained. Where there are ranks, all raise together instead, once they have met."""
        for table, (anchor, _) in enumerate(self._tables()):
            if anchor.grad is not None and not math.isfinite(float(anchor.grad)):
                raise GradientError(describe(sink_of_anchor(anchor), table))

    def _ranks(self) -> Any:
        """Return the process group whose ranks step together, or None.

        One for all tables: a rank that did not use a table in this step must take part in its exchange.
        """
        groups = [self.process_group, *(sink_of_anchor(anchor).process_group for anchor, _ in self._tables())]
        group = next((group for group in groups if group is not None), None)
        return group if group is not None and torch.distributed.get_world_size(group) > 1 else None

    def _update_table(
        self, number: int, anchor: torch.Tensor, group: dict[str, Any], gradients: Gradients, factor: float
    ) -> None:
        source = sink_of_anchor(anchor).source
        table = self._table_step(number, anchor, group, select(source.words.device.type))
        sums = RowSums.of(table.backend, by_counter(gradients, source.bits_per_value, source.code), factor)
        if source.row_scale is not None:
            sums = update_row_scale(table, sums, source.row_scale, table.scale_rate)
        self.update_table(table, sums)
        # The backend wrote behind torch's back: a graph that saved the old bits must not be used any more.
        torch.autograd.graph.increment_version(source.words)

    def _start_table(
        self, number: int, anchor: torch.Tensor, group: dict[str, Any], gradients: Gradients, factor: float
    ) -> Callable[[], None]:
        return partial(self._update_table, number, anchor, group, gradients, factor)

    def _table_step(self, number: int, anchor: torch.Tensor, group: dict[str, Any], backend: Backend) -> TableStep:
        source = sink_of_anchor(anchor).source
        words = source.words
        state = self._state_of(anchor, words, group)
        return TableStep(
            backend=backend,
            words=to_backend(backend, words),
            state={k: to_backend(backend, v) if isinstance(v, torch.Tensor) else v for k, v in state.items()},
            embedding_dim=source.embedding_dim,
            bits_per_value=source.bits_per_value,
            code=source.code,
            options=group,
            step=group["step"],
            table=number,
            row_scale=source.row_scale,
            shard=source.shard,
        )

    def _state_of(self, anchor: torch.Tensor, words: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[anchor]
        if not state:
            state.update(fresh_state(self, sink_of_anchor(anchor).source, words, group))
        keep_usable(self, state, words, group)
        return state


def check_rate(name: str, rate: Any) -> None:
    """Raise `ArgumentError` unless ``rate`` is finite and not negative."""
    try:
        number = float(rate)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(name, repr(rate), "a finite number >= 0") from None
    if not (math.isfinite(number) and number >= 0):
        raise ArgumentError(name, rate, "a finite number >= 0")


def singles(*numbers: Any) -> list[float]:
    """Return numbers as float32 holds them, so that every device computes with the same."""
    return [float(np.float32(float(number))) for number in numbers]
