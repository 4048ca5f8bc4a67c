"""Which runs belong together: a screen with one seed, a confirmation with three, the headline with five.

A method's recipe is one for all data sets; what differs by data set is the model around the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.quality import methods
from benchmarks.quality.config import Config

#: The perceptron, batch and epochs; movielens-100k keeps those of `packedbag train`.
MODELS: dict[str, dict[str, Any]] = {
    "ml-1m": {"input_norm": True},
    "movielens-100k": {
        "hidden": (128, 64),
        "dropout": 0.4,
        "input_norm": True,
        "batch_size": 512,
        "epochs": 12,
    },
    "synthetic": {"input_norm": True},
}

#: Rates and the like of each method; `BY_BITS` adds what depends on k. Chosen on the validation rows of ml-1m, seed 0.
RECIPES: dict[str, dict[str, Any]] = {
    "fp32-adam": {"table_lr": 3e-3, "l2": 5e-4},
    "fp32-adagrad": {"table_lr": 0.02, "l2": 1e-5},
    "ste-adam": {"table_lr": 1e-3, "schedule": "cosine"},
    "int8-adagrad": {"table_lr": 0.02, "l2": 1e-6},
    "frozen": {"schedule": "cosine"},
    "counter": {"schedule": "cosine"},
    "counter-binary": {"schedule": "cosine", "bits_per_value": 4, "code": "binary"},
    "bit-flip": {"table_lr": 0.02, "schedule": "cosine"},
    "vote-flip": {"table_lr": 1.0, "schedule": "cosine", "optimizer_options": {"threshold": 1.5, "decay": 0.003}},
    "sign-momentum": {"table_lr": 0.01, "schedule": "cosine"},
}
#: A counter of few bits is soon at the end of its range: it takes larger parts of it at a step, forgets less of it, and
#: takes fewer steps, of more batches.
BY_BITS: dict[tuple[str, int], dict[str, Any]] = {
    ("counter", 8): {"table_lr": 0.08, "bits_per_value": 4, "optimizer_options": {"decay": 0.25}},
    ("counter", 4): {"table_lr": 0.2, "bits_per_value": 4, "accumulate": 2, "optimizer_options": {"decay": 0.08}},
    ("counter-binary", 2): {"table_lr": 0.2, "optimizer_options": {"decay": 0.1}},
    ("counter", 2): {"table_lr": 0.3, "bits_per_value": 4, "accumulate": 2, "optimizer_options": {"decay": 0.03}},
}

#: What the headline compares: method, dims, and bits where there is a choice.
#: 2 bits at D = 256 cost 544 bits a row, as fp32 at D = 16 with row-wise Adagrad does.
HEADLINE: tuple[tuple[str, tuple[int, ...], tuple[int | None, ...]], ...] = (
    ("fp32-adam", (16,), (None,)),
    ("counter", (128,), (8, 4)),
    ("counter", (256,), (2,)),
    ("counter-binary", (128, 256), (2,)),
    ("frozen", (128, 256), (None,)),
    ("ste-adam", (128,), (None,)),
    ("counter", (64,), (8,)),
    ("vote-flip", (128,), (4,)),
    ("fp32-adagrad", (16, 128), (None,)),
    ("sign-momentum", (128,), (None,)),
    ("bit-flip", (256,), (None,)),
    ("int8-adagrad", (16,), (None,)),
    ("fp32-adam", (64,), (None,)),
    ("frozen", (64,), (None,)),
    ("ste-adam", (64,), (None,)),
)
#: What is confirmed with three seeds before the headline is run.
CONFIRM = (
    ("fp32-adam", (16,), (None,)),
    ("ste-adam", (128,), (None,)),
    ("frozen", (128, 256), (None,)),
    ("counter", (128,), (8, 4)),
    ("counter", (256,), (2,)),
)
#: What a screen varies, one setting at a time, around a recipe.
VARIED: dict[str, tuple[tuple[str, tuple[Any, ...]], ...]] = {
    "fp32-adam": (("l2", (0.0, 1e-4, 1e-3)), ("input_norm", (False,)), ("schedule", ("cosine",))),
    "fp32-adagrad": (("table_lr", (0.005, 0.01, 0.05)), ("l2", (0.0, 1e-6))),
    "int8-adagrad": (("table_lr", (0.005, 0.01, 0.05)), ("l2", (0.0, 1e-5))),
    "ste-adam": (("table_lr", (3e-4, 3e-3)), ("schedule", ("step",)), ("epochs", (6,))),
    "frozen": (("input_norm", (False,)),),
    "counter": (
        ("table_lr", (0.04, 0.16)),
        ("schedule", ("step", "constant")),
        ("input_norm", (False,)),
        ("scale", ("row",)),
        ("optimizer_options", ({"adaptivity": "adagrad", "decay": 0.25}, {"decay": 0.0}, {"decay": 0.5})),
    ),
    "bit-flip": (("table_lr", (3e-3, 0.1)),),
    "vote-flip": (("table_lr", (0.25, 0.5)),),
    "sign-momentum": (("table_lr", (1e-3, 0.1)),),
}
SCREEN = (
    ("fp32-adam", (16,), (None,)),
    ("fp32-adagrad", (16,), (None,)),
    ("int8-adagrad", (16,), (None,)),
    ("ste-adam", (128,), (None,)),
    ("frozen", (128,), (None,)),
    ("counter", (128,), (8, 4)),
    ("vote-flip", (128,), (4, 2)),
    ("bit-flip", (256,), (None,)),
    ("sign-momentum", (128,), (None,)),
)
#: A few seconds for all methods: does everything run?
TINY: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 256,
    "hidden": (16, 8),
    "data_options": {"examples": 4000, "fields": 3, "field_rows": 60, "bag_length": 3},
}

Lines = Sequence[tuple[str, tuple[int, ...], tuple[int | None, ...]]]


def recipe(data: str, method: str, dim: int, bits: int | None = None, seed: int = 0) -> Config:
    """Return the run of a method's recipe on a data set; ``bits`` counts only where the method has a choice."""
    if data not in MODELS:
        raise ValueError(f"data is {data!r}; it must be one of {', '.join(MODELS)}")
    usual = methods.METHODS[method].usual_bits
    bits = usual if usual is None or bits is None else bits
    settings = {**MODELS[data], **RECIPES.get(method, {}), **BY_BITS.get((method, bits or 0), {})}
    return Config(data, method, dim, bits=bits, seed=seed, **settings)


def _lines(lines: Lines, data: str, seeds: int) -> list[Config]:
    return [
        recipe(data, method, dim, k, seed)
        for seed in range(seeds)  # a grid that is cut short has all methods, with fewer seeds
        for method, dims, bits in lines
        for k in bits
        for dim in dims
    ]


def _screen(data: str) -> list[Config]:
    found = []
    for config in _lines(SCREEN, data, 1):
        found.append(config)
        for name, values in VARIED.get(config.method, ()):
            found += [replace(config, **{name: value}) for value in values]
    return found


def _smoke(data: str) -> list[Config]:
    return [
        replace(recipe("synthetic", method, 8, bits=min(4, methods.METHODS[method].usual_bits or 4)), **TINY)
        for method in methods.METHODS
        if not methods.missing(method)
    ]


GRIDS: dict[str, Callable[[str], list[Config]]] = {
    "screen": _screen,
    "confirm": lambda data: _lines(CONFIRM, data, 3),
    "headline": lambda data: _lines(HEADLINE, data, 5),
    "smoke": _smoke,
}


def chosen(
    configs: Iterable[Config],
    names: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
    bits: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Config]:
    """Return those of the given methods, dims, bits and seeds; None allows all."""
    return [
        config
        for config in configs
        if (names is None or config.method in names)
        and (dims is None or config.embedding_dim in dims)
        and (bits is None or config.bits in bits)
        and (seeds is None or config.seed in seeds)
    ]
