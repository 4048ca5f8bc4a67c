"""Every error of packedbag; each class composes its own text.

An error names the argument, the value seen, what is allowed, and what to pass instead. Each class also
derives from the built-in a caller would expect (``ValueError``, ``TypeError``, ``IndexError``), so that code
written against ``torch.nn.EmbeddingBag`` keeps working.
"""

from __future__ import annotations


class PackedBagError(Exception):
    """Base class of every error raised by packedbag."""


class ArgumentError(PackedBagError, ValueError):
    """An argument has a value that is not allowed."""

    def __init__(self, argument: str, seen: object, allowed: str, advice: str = "") -> None:
        super().__init__(f"{argument} is {seen}; it must be {allowed}." + (f" {advice}" if advice else ""))
        self.argument = argument


class DtypeError(PackedBagError, TypeError):
    """An array has a dtype that is not allowed."""

    def __init__(self, argument: str, seen: object, allowed: str, advice: str = "") -> None:
        super().__init__(
            f"{argument} has dtype {str(seen).removeprefix('torch.')}; it must be {allowed}."
            + (f" {advice}" if advice else "")
        )
        self.argument = argument


class ShapeError(PackedBagError, ValueError):
    """An array has a shape that is not allowed."""

    def __init__(self, argument: str, seen: object, allowed: str, advice: str = "") -> None:
        shape = ", ".join(map(str, seen)) if isinstance(seen, (tuple, list)) else str(seen)
        super().__init__(f"{argument} has shape ({shape}); it must be {allowed}." + (f" {advice}" if advice else ""))
        self.argument = argument


def _late(device: str | None) -> str:
    """Return what is added to an error that a device found and the host reports later."""
    if device is None:
        return ""
    return (
        f" Found on {device} by an earlier call, which left the entry out; packedbag.check_cuda() behind a call "
        f"checks that call."
    )


class IndexRangeError(PackedBagError, IndexError):
    """An index lies outside ``[0, num_embeddings)``; on a GPU it may be one of an earlier call, on ``device``."""

    def __init__(self, position: int, value: int, num_embeddings: int, *, device: str | None = None) -> None:
        rows = f"rows 0..{num_embeddings - 1}" if num_embeddings else "no rows"
        super().__init__(
            f"indices[{position}] is {value}; the table has {rows}. "
            f"Pass bounds='clamp' or 'skip' to accept such indices." + _late(device)
        )
        self.position = position
        self.value = value


class OffsetsError(PackedBagError, ValueError):
    """``offsets`` do not describe bags: they must start at 0, never decrease, and stay within the indices."""

    def __init__(self, position: int, value: int, allowed: str, *, device: str | None = None) -> None:
        super().__init__(
            f"offsets[{position}] is {value}; it must be {allowed}. Bag b is indices[offsets[b]:offsets[b + 1]]."
            + _late(device)
        )
        self.position = position


class BackendError(PackedBagError, RuntimeError):
    """A backend was asked for that does not exist or cannot run here."""

    def __init__(self, name: str, reason: str, known: str) -> None:
        super().__init__(f"backend {name!r} {reason}. Backends: {known}. `packedbag doctor` says why one is missing.")


class MissingExtraError(PackedBagError, ImportError):
    """An optional library is needed that is not installed."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(f"{what} needs {library}, which is not installed. Run: pip install 'packedbag[{extra}]'")
        self.extra = extra


class StateMismatchError(PackedBagError, ValueError):
    """An optimizer's saved state does not belong to the tables it is loaded for."""

    def __init__(self, what: str, seen: str, expected: str) -> None:
        super().__init__(
            f"{what} has {seen}; this optimizer has {expected}. "
            f"Load it into an optimizer of the same tables, in the same order; nothing was changed."
        )


class RankMismatchError(PackedBagError, RuntimeError):
    """The ranks of a process group do not train the same thing."""

    def __init__(self, what: str, seen: str) -> None:
        super().__init__(
            f"the ranks' {what} differ: {seen}. Make the model after torch.manual_seed with one seed on all ranks, or "
            f"load one checkpoint of model and optimizer on all of them."
        )


class DeletedModuleError(PackedBagError, RuntimeError):
    """An anchor or a graph outlived its packed module."""

    def __init__(self) -> None:
        super().__init__("the packed module of this anchor or gradient was deleted. Keep a reference to the module.")


class ReplacedAnchorError(PackedBagError, RuntimeError):
    """Something replaced the anchor of a packed module."""

    def __init__(self, module: str) -> None:
        super().__init__(
            f"the anchor parameter of {module} was replaced, as FSDP does: its gradients would be lost. FSDP is not "
            f"supported yet. Use DistributedDataParallel(model, broadcast_buffers=False), or keep packed modules "
            f"outside FSDP (ignored_modules)."
        )


class GradientError(PackedBagError, ValueError):
    """A gradient is NaN or infinite; no bit was changed.

    Args:
        table: describes it.
        refused: how many steps a device has refused since it was last asked; None where the host refused this one.
    """

    def __init__(self, table: str, *, refused: int | None = None) -> None:
        what, why = "the step was refused and no bit has changed", ""
        if refused is not None:
            steps = "1 step was" if refused == 1 else f"{refused} steps were"
            what = f"{steps} refused on the device, and no bit has changed in them"
            why = "A batch with an index outside the table, under bounds='raise', is refused in the same way. "
        super().__init__(
            f"the gradient of table {table} is NaN or infinite; {what}. {why}"
            f"Lower the learning rate of the dense part, clip its gradients, or use torch.amp.GradScaler."
        )
        self.table = table


class CaptureError(PackedBagError, RuntimeError):
    """Something that happens once would be captured in a CUDA graph, and happen at every replay."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} cannot be captured in a CUDA graph. Do it once before the capture, as a warm-up.")


class DataError(PackedBagError, ValueError):
    """A data file cannot be read, is cut short, or holds what it should not; names the file and the line."""

    def __init__(self, path: object, line: int | None, problem: str, advice: str = "") -> None:
        where = f"{path}" if line is None else f"{path}, line {line}"
        if len(problem) > 400:  # a file of another kind may be one line of gigabytes, and its text is quoted
            problem = f"{problem[:200]} ... {problem[-200:]}"
        super().__init__(f"{where}: {problem}." + (f" {advice}" if advice else ""))
        self.path = str(path)
        self.line = line


class CheckpointError(PackedBagError, RuntimeError):
    """A checkpoint cannot be written, read, or does not belong to this run."""

    def __init__(self, path: object, problem: str, advice: str) -> None:
        super().__init__(f"{path}: {problem}. {advice}")
        self.path = str(path)
