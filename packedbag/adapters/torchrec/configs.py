"""The configs of TorchRec's tables, as far as packed tables have what they ask for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType, PoolingType

from packedbag.core.errors import ArgumentError

Config = TypeVar("Config", bound=BaseEmbeddingConfig)


def checked_tables(tables: Sequence[Config]) -> list[Config]:
    """Return copies of the tables' configs, each with the names of its features.

    Raises:
        ArgumentError: two tables have one name, or a table asks for what packed tables do not have.
    """
    found = [_checked(config) for config in tables]
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError("tables", f"holding {names.count(name)} tables named {name!r}", "of different names")
    return found


def _checked(config: Config) -> Config:
    where = f"tables[{config.name!r}]"
    if getattr(config, "pooling", PoolingType.SUM) not in (PoolingType.SUM, PoolingType.MEAN):
        raise ArgumentError(f"{where}.pooling", config.pooling, "SUM or MEAN")
    if config.data_type != DataType.FP32:
        advice = "Leave it out: weights have one bit, results are float32."
        raise ArgumentError(f"{where}.data_type", config.data_type, "FP32", advice)
    for name in ("num_embeddings_post_pruning", "total_num_buckets", "use_virtual_table", "enable_embedding_update"):
        if getattr(config, name):
            raise ArgumentError(f"{where}.{name}", getattr(config, name), "left out: packed tables have none")
    if getattr(config.init_fn, "func", None) is not torch.nn.init.uniform_:  # which TorchRec fills in
        raise ArgumentError(f"{where}.init_fn", config.init_fn, "left out: first bits are drawn")
    copied = copy.copy(config)
    copied.feature_names = list(config.feature_names) or [config.name]
    return copied
