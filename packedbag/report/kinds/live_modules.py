"""Tables that are torch modules with a torch optimizer, as they train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class LiveModules:
    """See `packedbag.report.kinds.kind.Live`; a subclass says what it holds.

    Args:
        tables: modules that take ids and offsets.
        optimizer: of all of them.
        inputs: ids and offsets of each.
    """

    def __init__(self, tables: Sequence[Any], optimizer: Any, inputs: Sequence[tuple[Any, Any]]) -> None:
        import torch

        self.tables = torch.nn.ModuleList(tables)
        self.optimizer = optimizer
        self.inputs = inputs

    def backward(self) -> None:
        """Run the batch forward, and a gradient of ones back."""
        import torch

        outputs = [table(*given) for table, given in zip(self.tables, self.inputs, strict=True)]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    def update(self) -> None:
        """Take the optimizer's step."""
        self.optimizer.step()

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def held(self) -> tuple[int, int, int]:
        """Return the bytes of tables, gradients and state."""
        state = [tensor for kept in self.optimizer.state.values() for tensor in kept.values()]
        return nbytes(table.weight for table in self.tables), nbytes(self.gradients()), nbytes(state)

    def gradients(self) -> list[Any]:
        """Return the tensors that wait for the optimizer."""
        raise NotImplementedError

    def checkpoint(self) -> Any:
        """Return the state of tables and optimizer."""
        return {"model": self.tables.state_dict(), "optimizer": self.optimizer.state_dict()}


def nbytes(found: Iterable[Any]) -> int:
    """Return the bytes of the tensors among ``found``."""
    import torch

    return sum(int(each.nbytes) for each in found if isinstance(each, torch.Tensor))
