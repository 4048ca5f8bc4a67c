"""`DeferredSteps`: the part of a packed optimizer that takes steps on devices which run behind the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch

from packedbag.backends.protocol import Backend, DeferredBackend
from packedbag.backends.registry import select
from packedbag.core.errors import ArgumentError, GradientError, PackedBagError
from packedbag.ops.sink import CALL, Gradients, GradientSink, by_counter, sink_of
from packedbag.optim.device_control import DeviceControl, DeviceControls
from packedbag.optim.table_step import TableStep


class DeferredSteps:
    """Steps that never wait for a device: see docs/design/deferred_steps.md.

    `packedbag.optim.base.PackedOptimizer` gives the methods that are only declared here.
    """

    #: Whether `update_marked` is there: steps on a GPU then never wait for it.
    defers: ClassVar[bool] = False
    param_groups: list[dict[str, Any]]
    _controls: DeviceControls

    def _tables(self, groups: list[dict[str, Any]] | None = None) -> Iterable[tuple[torch.Tensor, dict[str, Any]]]:
        raise NotImplementedError

    def _table_step(self, number: int, anchor: torch.Tensor, group: dict[str, Any], backend: Backend) -> TableStep:
        raise NotImplementedError

    def update_marked(
        self, table: TableStep, gradients: Gradients, factor: torch.Tensor, control: DeviceControl
    ) -> None:
        """Update all rows of ``gradients`` in place, on the device and without waiting for it; see ``defers``."""
        raise NotImplementedError

    def check(self) -> None:
        """Wait for the GPUs of this optimizer, and raise what their kernels could not; on a CPU nothing is left to.

        Raises:
            IndexRangeError, OffsetsError: a batch since the last check named rows or bags that do not exist.
            GradientError: a step since then had a gradient that is not finite, and changed no bit.
        """
        error: PackedBagError | None = None
        for device, backend in self._devices().items():
            if backend.deferred:
                try:
                    cast(DeferredBackend, backend).raise_found(device, wait=True)
                except PackedBagError as found:
                    error = error or found
        refused = self._controls.take()
        self._count_steps()
        if error is not None:
            raise error  # such a batch's step is refused, too: one error is enough
        if refused is not None:
            table, count = refused
            anchor = list(self._tables())[table][0]
            raise GradientError(describe(sink_of_anchor(anchor), table), refused=count)

    def _devices(self) -> dict[torch.device, Backend]:
        """Return the backend of each device that a table is on."""
        devices = [sink_of_anchor(anchor).source.words.device for anchor, _ in self._tables()]
        return {device: select(device.type) for device in dict.fromkeys(devices)}

    def _is_deferred(self, devices: dict[torch.device, Backend]) -> bool:
        """Say whether a step can be left to the ``devices``: all tables are where the host need not wait."""
        return self.defers and bool(devices) and all(backend.deferred for backend in devices.values())

    def _count_steps(self) -> None:
        """Bring the groups' ``step`` up to what devices have counted; waits for them."""
        steps = self._controls.steps()
        if steps is not None:
            for group in self.param_groups:
                group["step"] = steps

    def _leave_devices(self) -> None:
        """Go on with steps of the host: what devices have counted and found is taken over from them."""
        if self._controls.steps() is not None:
            try:
                self.check()
            finally:
                self._controls.clear()

    def _step_deferred(self, devices: dict[torch.device, Backend]) -> None:
        """Take a step without waiting for a device: whether it is one is decided there. Raises what is known by now."""
        for device, backend in devices.items():
            self._controls.of(backend, device, self.param_groups[0]["step"])
        try:
            self._launch_step(devices)
        except BaseException:  # memory that ran out, say: what was judged so far must not decide the next step
            self._controls.abandon()
            for anchor, _ in self._tables():  # as their sinks: drained
                anchor.grad = None
            raise
        # Only now: what a step leaves behind must not depend on when the host happens to learn of a mistake.
        found = (cast(DeferredBackend, backend).has_found(device) for device, backend in devices.items())
        if self._controls.pending or any(found):
            self.check()

    def _launch_step(self, devices: dict[torch.device, Backend]) -> None:
        """Launch everything that makes a step on ``devices``."""
        work = []
        for number, (anchor, group) in enumerate(self._tables()):
            source = sink_of_anchor(anchor).source
            gradients = sink_of_anchor(anchor).drain()
            if gradients is None or anchor.grad is None:  # zero_grad was called since: they are not wanted
                continue
            device = source.words.device
            if gradients.grad.device != device:  # a kernel would be handed an address of another device
                raise ArgumentError(
                    f"table {number}", f"on {device}, its gradients on {gradients.grad.device}", "where backward ran"
                )
            table = self._table_step(number, anchor, group, devices[device])
            control = self._controls.of(devices[device], device, 0)
            share = gradients.calls * CALL
            totals = table.state.get("totals")
            factor = control.backend.judge(control.fields, anchor.grad, gradients.bad, share, number, totals)
            work.append((anchor, source, table, gradients, factor, control))
        self._controls.agree()
        for anchor, source, table, gradients, factor, control in work:
            self.update_marked(table, by_counter(gradients, table.bits_per_value, table.code), factor, control)
            torch.autograd.graph.increment_version(source.words)
            anchor.grad = None
        if work:
            self._controls.finish()


def sink_of_anchor(anchor: torch.Tensor) -> GradientSink:
    """Return the sink of an anchor that an optimizer has admitted.

    Raises:
        ArgumentError: it has none: the optimizer was copied, or unpickled, without its modules.
    """
    sink = sink_of(anchor)
    if sink is None:
        raise ArgumentError(
            "params",
            "holding an anchor that was copied without its module",
            "the anchors of packed modules",
            "Copy model and optimizer together, or make an optimizer of the model and load the state_dict() into it.",
        )
    return sink


def describe(sink: GradientSink, table: int) -> str:
    """Return how errors call table number ``table``."""
    source = sink.source
    return f"{table} ({type(source).__name__}({source.num_embeddings}, {source.embedding_dim}))"
