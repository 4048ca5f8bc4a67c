"""One run: everything that decides its result, as JSON, and the short key that its result is filed under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from benchmarks.quality.schedule import SCHEDULES

#: Hex digits of a key: 48 bits, so that ten thousand runs collide once in five million grids.
KEY_DIGITS = 12


@dataclass(frozen=True)
class Config:
    """The settings of one run.

    A key leaves out what stands at its default. So a setting that is added later, with a default that means what
    runs did before it, keeps the keys of old results; and a default that stands here never changes.

    Args:
        data: "ml-1m", "movielens-100k" or "synthetic".
        method: a name of `benchmarks.quality.methods.METHODS`.
        embedding_dim: D of every table.
        bits: k, bits a weight in training, where the method has a choice.
        seed: of the initial weights, the order of rows, dropout and stochastic rounding; data are split without it.
        epochs, batch_size: of the training.
        lr, weight_decay: of the perceptron, AdamW.
        table_lr: of the tables' own optimizer.
        accumulate: batches of a step of the tables at the first rate, `packedbag.optim.AccumulatedSteps`; 0: a step a
            batch at all rates.
        scale_lr: of a table's scale, which the perceptron's optimizer trains; None follows ``lr``.
        l2: of the tables, added to the gradient.
        schedule: a name of `SCHEDULES`, for all rates alike.
        scale: of packed tables: "table", "row" or "none".
        bits_per_value: of packed tables: columns that make one value.
        code: of packed tables: how they make it, "thermometer" or "binary".
        initial_scale: of packed tables and of straight-through ones; ``field_scales`` says otherwise, by field.
        init_std: standard deviation of fresh real weights.
        hidden, dropout, input_norm: of the perceptron; input_norm puts batch norm before it.
        optimizer_options: keyword arguments for the tables' optimizer.
        data_options: keyword arguments for the data, as the sizes of synthetic ones.
    """

    data: str
    method: str
    embedding_dim: int
    bits: int | None = None
    seed: int = 0
    epochs: int = 10
    batch_size: int = 4096
    lr: float = 1e-3
    weight_decay: float = 0.0
    table_lr: float = 1e-3
    accumulate: int = 0
    scale_lr: float | None = None
    l2: float = 0.0
    schedule: str = "step"
    scale: str = "table"
    bits_per_value: int = 1
    code: str = "thermometer"
    initial_scale: float = 0.1
    field_scales: Mapping[str, float] = field(default_factory=dict)
    init_std: float = 0.01
    hidden: tuple[int, ...] = (256, 128, 64)
    dropout: float = 0.2
    input_norm: bool = False
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        if self.scale not in ("table", "row", "none"):
            raise ValueError(f"scale is {self.scale!r}; it must be 'table', 'row' or 'none'")
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(f"epochs is {self.epochs}, batch_size {self.batch_size}; at least 1, and 2 for batch norm")

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Config:
        """Return the run that `plain` described; settings it does not name are at their defaults."""
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(plain) - known)
        if unknown:
            raise ValueError(f"a run has no setting {', '.join(unknown)}; its settings are {', '.join(sorted(known))}")
        return cls(**plain)

    def plain(self) -> dict[str, Any]:
        """Return all settings as JSON can hold them."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def given(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, as JSON can hold them."""
        return {name: value for name, value in self.plain().items() if name not in DEFAULTS or value != DEFAULTS[name]}

    def canonical(self) -> str:
        """Return the one JSON text of this run: names in order, no spaces, defaults left out, 1.0 as 1."""
        return json.dumps(self.given(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def key(self) -> str:
        """The first hex digits of the canonical text's SHA-256."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:KEY_DIGITS]

    def without_seed(self) -> Config:
        """Return the run with seed 0: what runs that differ by seed alone have in common."""
        return replace(self, seed=0)

    def named(self) -> str:
        """Return a short name for people: method, D, k, seed."""
        bits = f" k={self.bits}" if self.bits is not None else ""
        return f"{self.data} {self.method} D={self.embedding_dim}{bits} seed={self.seed}"

    def details(self) -> dict[str, str]:
        """Return what else differs from the defaults: two rows of a table may differ in nothing else."""
        shown: dict[str, str] = {}
        for name, value in self.given().items():
            if name in ("data", "method", "embedding_dim", "bits", "seed"):
                continue
            if isinstance(value, dict):
                shown.update((inner, _short(v)) for inner, v in value.items())
            else:
                shown[name] = _short(value)
        return shown


def listed(details: Mapping[str, str]) -> str:
    """Return details in one line."""
    return ", ".join(f"{name} {value}" for name, value in details.items())


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON holds it; a whole float is an int, so that 1 and 1.0 are one setting."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(each: Any) -> Any:
    return _plain(each.default if each.default is not MISSING else each.default_factory())


DEFAULTS = {
    each.name: _default(each)
    for each in fields(Config)
    if each.default is not MISSING or each.default_factory is not MISSING
}
