"""What an optimizer's steps leave on devices that run behind the host: how many there were, and which were refused."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.backends.protocol import DeferredBackend
from packedbag.core.errors import CaptureError

# Fields: the enum of cuda/control.cuh.
STEPS, REFUSED, WORK, FIRST_REFUSED, REFUSALS, FIELDS = 0, 1, 2, 3, 4, 5


class DeviceControl:
    """The steps of one optimizer on one device; every table there reads and writes it.

    Args:
        backend: of the device.
        steps: updates done before.
    """

    def __init__(self, backend: DeferredBackend, device: torch.device, steps: int) -> None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise CaptureError("an optimizer's first step on a device")
        self.backend = backend
        with torch.inference_mode(False):  # it outlives the mode that it may be made in
            self.fields = torch.zeros(FIELDS, dtype=torch.int64, device=device)
            self.fields[STEPS] = steps
        self.flag: torch.Tensor = backend.new_flag()
        self._flag = self.flag.numpy()

    @property
    def pending(self) -> bool:
        """Whether a step that is done was refused. Does not wait."""
        return bool(self._flag[0])

    def finish(self) -> None:
        """End a step on this device."""
        self.backend.finish(self.fields, self.flag)

    def count(self) -> int:
        """Return how many updates were done; waits for the device, on whatever stream they are."""
        if self.fields.is_cuda:
            torch.cuda.synchronize(self.fields.device)
        return int(self.fields[STEPS])

    def restart(self, steps: int) -> None:
        """Go on from ``steps``, in the same memory: a captured graph goes on with it as well."""
        self.fields.zero_()
        self.fields[STEPS] = steps

    def abandon(self) -> None:
        """Forget what was found of a step that is not taken."""
        self.fields[REFUSED : WORK + 1] = 0

    def take(self) -> tuple[int, int] | None:
        """Return (first table refused, steps refused) since the last time, and forget them; waits for the stream."""
        found = self.fields.tolist()
        self._flag[0] = 0
        if not found[REFUSALS]:
            return None
        self.fields[FIRST_REFUSED : REFUSALS + 1] = 0
        # Another device's table may be the one, and then this device knows none.
        return found[FIRST_REFUSED] - 1, found[REFUSALS]


class DeviceControls:
    """The control of each device that an optimizer has tables on."""

    def __init__(self) -> None:
        self._of: dict[torch.device, DeviceControl] = {}

    def of(self, backend: Any, device: torch.device, steps: int) -> DeviceControl:
        """Return the control of ``device``; a new one starts at ``steps``, or where the others are."""
        control = self._of.get(device)
        if control is None:
            counted = self.steps()
            control = self._of[device] = DeviceControl(backend, device, steps if counted is None else counted)
        return control

    @property
    def pending(self) -> bool:
        """Whether a step that is done was refused. Does not wait."""
        return any(control.pending for control in self._of.values())

    def steps(self) -> int | None:
        """Return how many updates were done, or None where no step was taken on a device; waits."""
        return next((control.count() for control in self._of.values()), None)

    def agree(self) -> None:
        """Let all devices take this step, or none: what one has found, all know. Does not wait."""
        controls = list(self._of.values())
        if len(controls) < 2:
            return
        first = controls[0].fields
        found = [control.fields[REFUSED : WORK + 1].to(first.device, non_blocking=True) for control in controls]
        joint = torch.stack(found).amax(0)
        for control in controls:
            control.fields[REFUSED : WORK + 1].copy_(joint, non_blocking=True)

    def finish(self) -> None:
        """End a step on all devices."""
        for control in self._of.values():
            control.finish()

    def abandon(self) -> None:
        """Forget, on all devices, what was found of a step that is not taken."""
        for control in self._of.values():
            control.abandon()

    def take(self) -> tuple[int, int] | None:
        """Return (first table refused, steps refused) since the last time, or None; waits."""
        found = [taken for taken in (control.take() for control in self._of.values()) if taken is not None]
        if not found:
            return None
        tables = [table for table, _ in found if table >= 0]
        return min(tables, default=0), max(count for _, count in found)

    def restart(self, steps: int) -> None:
        """Go on from ``steps`` on all devices."""
        for control in self._of.values():
            control.restart(steps)

    def clear(self) -> None:
        """Forget all devices."""
        self._of.clear()
