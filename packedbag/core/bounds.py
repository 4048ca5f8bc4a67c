"""What happens to an index outside ``[0, num_embeddings)``."""

from __future__ import annotations

from packedbag.core.errors import ArgumentError

#: "raise": `IndexRangeError`. "clamp": to the nearest row. "skip": the entry is dropped.
#: "unchecked": the caller promises that there is none; otherwise the behaviour is undefined.
BOUNDS = ("raise", "clamp", "skip", "unchecked")


def check_bounds(name: str) -> str:
    """Return ``name`` if it is a bounds policy, else raise `ArgumentError`."""
    if name not in BOUNDS:
        raise ArgumentError("bounds", repr(name), f"one of {', '.join(map(repr, BOUNDS))}")
    return name


def check_padding_idx(padding_idx: int | None, num_embeddings: int) -> int | None:
    """Return ``padding_idx`` counted from the start, or None; raise when it names no row.

    A negative value counts from the end, as in `torch.nn.EmbeddingBag`.

    >>> check_padding_idx(-1, 10)
    9
    """
    if padding_idx is None:
        return None
    if isinstance(padding_idx, bool) or not hasattr(padding_idx, "__index__"):
        raise ArgumentError("padding_idx", repr(padding_idx), "an integer or None")
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ArgumentError(
            "padding_idx", padding_idx, f"in {-num_embeddings}..{num_embeddings - 1} (num_embeddings={num_embeddings})"
        )
    return int(padding_idx) % num_embeddings
