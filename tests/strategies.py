"""Hypothesis strategies: tables, bags, gradients and counters, as NumPy arrays that a backend may be handed.

Hypothesis draws the structure (sizes, kinds, edge values) and one seed; NumPy fills the bulk from that seed. So a
failing case shrinks in what matters and is drawn in microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from packedbag.backends.counter_rule import CounterRule
from packedbag.core import totals
from packedbag.core.layout import tail_mask, words_per_row
from packedbag.core.modes import MODES
from packedbag.core.thermometer import GROUPS

#: Around every word, and around two and four words (a vector register's worth); 1, and a row that ends oddly.
DIMS = (1, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 257)
#: Around the 255 rows that a counter of one byte holds, and around twice that.
LENGTHS = (0, 1, 2, 20, 254, 255, 256, 257, 510)
#: Overflows a counter of two bytes; too slow to draw, so it is an explicit case where it matters.
LONG = 65536
#: How a gradient may look. "spread" shows any other order of additions: its terms differ by orders of magnitude.
GRADIENTS = ("spread", "normal", "zeros", "sparse", "huge", "overflowed", "subnormal", "equal")
BOUNDS = ("raise", "clamp", "skip", "unchecked")

seeds = st.integers(0, 2**32 - 1)
dims = st.sampled_from(DIMS)
lengths = st.one_of(st.integers(0, 24), st.sampled_from(LENGTHS))


def make_words(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Return random words (rows, W) uint32 with every tail bit 1, so that a wrong tail mask shows."""
    words = rng.integers(0, 2**32, (rows, words_per_row(dim)), dtype=np.uint32)
    words[:, -1] |= np.uint32(~tail_mask(dim) & 0xFFFFFFFF)
    return words


def make_gradient(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Return a float32 gradient of a ``kind`` of `GRADIENTS`."""
    g = rng.standard_normal(shape).astype(np.float32)
    if kind == "spread":
        return (g * 10.0 ** rng.uniform(-4, 4, shape)).astype(np.float32)
    if kind == "zeros":
        return np.where(g < 0, np.float32(-0.0), np.float32(0.0))
    if kind == "sparse":
        return np.where(rng.random(shape) < 0.9, np.float32(0), g)
    if kind == "huge":
        return (np.sign(g) * rng.choice([1e18, 1e30, 3e38], shape)).astype(np.float32)
    if kind == "overflowed":  # as a sum of huge gradients may be: infinite, or NaN where it overflowed both ways
        return np.where(rng.random(shape) < 0.2, rng.choice(np.array([np.inf, -np.inf, np.nan], np.float32), shape), g)
    if kind == "subnormal":
        return (g * 1e-40).astype(np.float32)
    if kind == "equal":
        return np.full(shape, g.flat[0] if g.size else 0, np.float32)
    return g


@dataclass(frozen=True)
class Bags:
    """A table and bags of its rows: the arguments of `Backend.bag` but for ``out``, as NumPy arrays."""

    words: np.ndarray
    indices: np.ndarray
    offsets: np.ndarray | None
    weights: np.ndarray | None
    row_scale: np.ndarray | None
    embedding_dim: int
    mode: str
    output: str
    padding_idx: int
    bounds: str

    @property
    def num_bags(self) -> int:
        """Return B."""
        return len(self.indices) if self.offsets is None else len(self.offsets) - 1

    def make_out(self) -> np.ndarray:
        """Return an ``out`` filled with what no backend may leave there."""
        if self.output == "uint32":
            return np.full((self.num_bags, self.words.shape[1]), 0xDEADBEEF, np.uint32)
        dtype = {"bfloat16": np.uint16}.get(self.output, self.output)
        return np.full((self.num_bags, self.embedding_dim), 77, dtype)

    def call(self, backend: Any, words: Any, indices: Any, offsets: Any, weights: Any, scale: Any, out: Any) -> int:
        """Call ``backend.bag`` with these arrays, which stand for this case's, and its other arguments."""
        return backend.bag(
            words,
            indices,
            offsets,
            weights,
            scale,
            out,
            embedding_dim=self.embedding_dim,
            mode=self.mode,
            output=self.output,
            padding_idx=self.padding_idx,
            bounds=self.bounds,
        )


@st.composite
def bag_lengths(draw: st.DrawFn) -> list[int]:
    """Draw how many entries each bag has; now and then one of the lengths at which a counter overflows."""
    counts = draw(st.lists(st.integers(0, 12), max_size=6))
    if draw(st.booleans()):
        counts.insert(draw(st.integers(0, len(counts))), draw(st.sampled_from(LENGTHS)))
    return counts


def edge_values(dtype: Any, num_embeddings: int) -> list[int]:
    """Return index values outside the table, the ends of ``dtype`` included."""
    info = np.iinfo(dtype)
    return [-1, num_embeddings, num_embeddings + 7, int(info.min), int(info.max)]


@st.composite
def bags(
    draw: st.DrawFn,
    *,
    dims: st.SearchStrategy[int] = dims,
    modes: tuple[str, ...] = tuple(MODES),
    weighted: bool = False,
    bounds: tuple[str, ...] = BOUNDS,
) -> Bags:
    """Draw a table and bags of its rows, in every form that `Backend.bag` accepts.

    Args:
        weighted: draw ``per_sample_weights``, a row scale, or both; otherwise neither.
        bounds: values outside the table are drawn with all of these but "unchecked", which forbids them.
    """
    rng = np.random.default_rng(draw(seeds))
    dim = draw(dims)
    rows = draw(st.sampled_from((1, 2, 3, 50, 300)))
    mode = draw(st.sampled_from([name for name in modes if MODES[name].weighted or not weighted]))
    output = draw(st.sampled_from([o for o in MODES[mode].outputs if not weighted or o.startswith(("f", "b"))]))
    policy = draw(st.sampled_from(bounds))
    padding_idx = draw(st.one_of(st.just(-1), st.integers(0, rows - 1)))
    dtype = draw(st.sampled_from((np.int32, np.int64)))
    if draw(st.booleans()):
        shape: tuple[int, ...] = (draw(st.integers(0, 5)), draw(lengths))
        offsets = None
    else:
        counts = draw(bag_lengths())
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # What lies behind the last bag belongs to none.
        shape = (int(offsets[-1]) + draw(st.sampled_from((0, 0, 3))),)
    indices = rng.integers(0, rows, shape).astype(dtype)
    if padding_idx >= 0:
        indices[rng.random(shape) < 0.3] = padding_idx
    if policy != "unchecked" and draw(st.booleans()):
        outside = rng.random(shape) < draw(st.sampled_from((0.02, 0.4, 1.0)))
        indices[outside] = rng.choice(np.array(edge_values(dtype, rows), dtype), int(outside.sum()))
    which = draw(st.sampled_from(("weights", "scale", "both"))) if weighted else "neither"
    return Bags(
        words=make_words(rng, rows, dim),
        indices=indices,
        offsets=offsets,
        weights=make_gradient(rng, shape, "spread") if which in ("weights", "both") else None,
        row_scale=rng.uniform(-2, 2, rows).astype(np.float32) if which in ("scale", "both") else None,
        embedding_dim=dim,
        mode=mode,
        output=output,
        padding_idx=padding_idx,
        bounds=policy,
    )


@dataclass(frozen=True)
class Occurrences:
    """Kept entries of bags and the gradient of the bags: the arguments of the functions of the backward pass."""

    words: np.ndarray
    rows: np.ndarray
    bags: np.ndarray
    offsets: np.ndarray
    grad: np.ndarray
    weights: np.ndarray | None
    row_scale: np.ndarray | None
    counts: np.ndarray | None
    factor: float

    @property
    def embedding_dim(self) -> int:
        """Return D."""
        return int(self.grad.shape[1])


@st.composite
def occurrences(draw: st.DrawFn, *, dims: st.SearchStrategy[int] = dims) -> Occurrences:
    """Draw kept entries of bags; few distinct rows or many, so that a row occurs in no, one or many runs of 64."""
    rng = np.random.default_rng(draw(seeds))
    dim = draw(dims)
    counts = np.array(draw(bag_lengths()), np.int64)
    total = int(counts.sum())
    rows = draw(st.sampled_from((1, 2, 5, 1000)))
    kind = draw(st.sampled_from(GRADIENTS))
    return Occurrences(
        words=make_words(rng, rows, dim),
        rows=rng.integers(0, rows, total),
        bags=np.repeat(np.arange(len(counts)), counts),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        grad=make_gradient(rng, (len(counts), dim), kind),
        weights=make_gradient(rng, (total,), "normal") if draw(st.booleans()) else None,
        row_scale=rng.uniform(-2, 2, rows).astype(np.float32) if draw(st.booleans()) else None,
        counts=np.maximum(counts, 1).astype(np.float32) if draw(st.booleans()) else None,
        factor=draw(st.sampled_from((1.0, 0.5, 1 / 3, 0.0, -1e-3))),
    )


@dataclass(frozen=True)
class Counters:
    """A table of k-bit counters and one update of some of its rows: the arguments of `Backend.counter_update`."""

    words: np.ndarray
    planes: np.ndarray
    row_state: np.ndarray | None
    totals: np.ndarray
    rows: np.ndarray
    grad: np.ndarray
    bits: int
    rate: float
    adaptivity: str | None
    seed: int
    step: int
    table: int
    decay: float = 0.0
    threshold: float = -1.0
    spacing: float = 0.0
    group: int = 1
    first_row: int = 0
    first_column: int = 0
    columns_per_counter: int = 1

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return int(self.grad.shape[1]) * self.columns_per_counter

    def call(
        self,
        backend: Any,
        words: Any,
        planes: Any,
        row_state: Any,
        totals: Any,
        rows: Any,
        grad: Any,
        mean_squares: Any = None,
    ) -> None:
        """Call ``backend.counter_update`` with these arrays, which stand for this case's, and its other arguments."""
        backend.counter_update(
            words,
            planes,
            row_state,
            totals,
            rows,
            grad,
            rule=CounterRule(
                embedding_dim=self.embedding_dim,
                bits=self.bits,
                rate=self.rate,
                adaptivity=self.adaptivity,
                decay=self.decay,
                threshold=self.threshold,
                spacing=self.spacing,
                group=self.group,
                seed=self.seed,
                step=self.step,
                table=self.table,
                first_row=self.first_row,
                first_column=self.first_column,
                columns_per_counter=self.columns_per_counter,
            ),
            mean_squares=mean_squares,
        )


def make_row_state(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Return state words (rows,) int32: never touched, touched now and then, often, and more often than can be told."""
    touches = rng.choice(np.array([0, 1, 2, 7, 98, 99, 100, 127, 128, 135, 170, 254, 255], np.uint32), rows)
    statistic = (10.0 ** rng.uniform(-30, 10, rows)).astype(np.float32)
    word = (statistic.view(np.uint32) & np.uint32(0xFFFFFF00)) | touches
    return np.where(touches == 0, np.uint32(0), word).view(np.int32)


def make_totals(rng: np.random.Generator) -> np.ndarray:
    """Return totals (FIELDS,) int64 of a table that was updated before, or never."""
    found = totals.new()
    if rng.random() < 0.75:
        found[:] = rng.integers(0, 2**40, len(found))
        found[totals.TYPICAL] = (10.0 ** rng.uniform(-30, 10, 1)).astype(np.float32).view(np.uint32)[0]
    return found


@st.composite
def counters(draw: st.DrawFn, *, dims: st.SearchStrategy[int] = dims) -> Counters:
    """Draw counters of 1 to 8 bits, of one column or several, in any state, and an update of rows, in any order."""
    rng = np.random.default_rng(draw(seeds))
    dim = draw(dims)
    rows = draw(st.sampled_from((1, 2, 40)))
    bits = draw(st.integers(1, 8))
    joined = draw(st.sampled_from([p for p in (1, 1, 2, 4, 8) if p * bits <= 8 and dim % p == 0]))
    planes = rng.integers(0, 2**32, (rows, words_per_row(dim), bits - 1), dtype=np.uint32)
    if draw(st.booleans()):
        planes[:] = 0
    adaptivity = draw(st.sampled_from((None, "ema", "adagrad")))
    touched = rng.permutation(rows)[: draw(st.integers(0, rows))]
    lr = draw(st.sampled_from((1e-3, 0.1, 1.0, 30.0, 1e30)))
    return Counters(
        words=make_words(rng, rows, dim),
        planes=planes.view(np.int32),
        row_state=make_row_state(rng, rows) if adaptivity else None,
        totals=make_totals(rng),
        rows=touched.astype(np.int64),
        grad=make_gradient(rng, (len(touched), dim // joined), draw(st.sampled_from(GRADIENTS))),
        bits=bits,
        rate=float(np.float32(lr * 2 ** (bits * joined - 1))),
        adaptivity=adaptivity,
        seed=draw(st.integers(0, 2**64 - 1)),
        step=draw(st.sampled_from((0, 1, 12345, 2**32 - 1))),
        table=draw(st.sampled_from((0, 3, 65535))),
        decay=float(np.float32(draw(st.sampled_from((0.0, 0.0, 1e-3, 0.3, 1e30))))),
        threshold=float(np.float32(draw(st.sampled_from((-1.0, -1.0, 0.0, 1.3, np.inf))))),
        spacing=draw(st.sampled_from((0.0, 0.0, 1 / 32, 2.21875, 17.5, 255.0))),
        group=draw(st.sampled_from(GROUPS if joined == 1 else (1,))),
        first_row=draw(st.sampled_from((0, 0, 7, 2**32 - 3, 2**40))),
        first_column=draw(st.sampled_from((0, 0, 32, 416))) * joined,
        columns_per_counter=joined,
    )
