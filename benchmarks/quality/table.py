"""Results of runs that differ by seed alone, together; and the tables of the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.config import Config, listed
from benchmarks.quality.methods import METHODS
from packedbag.core.value_codes import columns_per_counter

Grid = tuple[list[str], list[list[str]]]
NONE = "-"
#: What differences are to.
MARK_METHOD, MARK_DIM = "fp32-adam", 16


@dataclass(frozen=True)
class Group:
    """The runs of one configuration; ``config`` has seed 0, ``results`` are by seed."""

    config: Config
    results: dict[int, dict[str, Any]]

    def values(self, name: str) -> list[float]:
        """Return a number of each run."""
        return [result[name] for result in self.results.values()]

    def mean(self, name: str) -> float:
        """Return a number's mean over seeds."""
        return statistics.fmean(self.values(name))

    def sd(self, name: str) -> float | None:
        """Return its standard deviation over seeds; None for a single run."""
        return statistics.stdev(self.values(name)) if len(self.results) > 1 else None

    @property
    def columns_per_weight(self) -> int:
        """Columns that make a weight: those of a binary value, which have no value of their own."""
        return columns_per_counter(self.config.bits_per_value, self.config.code)

    def bits_a_weight(self, name: str) -> float:
        """Return the mean of ``training_bits`` or ``serving_bits``, which are bits a column, by weight."""
        return self.mean(name) * self.columns_per_weight

    @property
    def title(self) -> str:
        """Method, D and k for people."""
        method = METHODS[self.config.method].title if self.config.method in METHODS else self.config.method
        bits = "" if self.config.bits is None else f", k = {self.config.bits}"
        return f"{method}{bits}, D = {self.config.embedding_dim}"


def groups(entries: Iterable[dict[str, Any]]) -> list[Group]:
    """Return all groups, in the order of `METHODS`, then of k and D."""
    found: dict[str, Group] = {}
    for entry in entries:
        config = Config.from_plain(entry["config"])
        base = config.without_seed()
        found.setdefault(base.key, Group(base, {})).results[config.seed] = entry["result"]
    order = list(METHODS)
    return sorted(
        found.values(),
        key=lambda group: (
            order.index(group.config.method) if group.config.method in order else len(order),
            -(group.config.bits or 0),
            group.config.embedding_dim,
        ),
    )


def best(candidates: Iterable[Group]) -> Group | None:
    """Return the group with most seeds and, among those, the best mean *validation* AUC; None of none.

    Test rows take no part in a choice; nor does a lucky single run beat one that was repeated.
    """
    return max(candidates, key=lambda group: (len(group.results), group.mean("valid_auc")), default=None)


def best_each(all_groups: Sequence[Group]) -> list[Group]:
    """Return the best group of each (method, k, D)."""
    kinds: dict[tuple[str, int | None, int], list[Group]] = {}
    for group in all_groups:
        kinds.setdefault((group.config.method, group.config.bits, group.config.embedding_dim), []).append(group)
    return [one for kind in kinds.values() if (one := best(kind))]


def mark(all_groups: Iterable[Group]) -> Group | None:
    """Return the fp32 model that others are compared with."""
    return best(g for g in all_groups if (g.config.method, g.config.embedding_dim) == (MARK_METHOD, MARK_DIM))


def spread(group: Group, name: str, digits: int) -> str:
    """Return "mean +- sd", without the latter for a single run."""
    deviation = group.sd(name)
    return f"{group.mean(name):.{digits}f}" + ("" if deviation is None else f" +- {deviation:.{digits}f}")


def shared_details(shown: Sequence[Group]) -> dict[str, str]:
    """Return the settings that differ from the defaults in all groups, and alike."""
    first, *others = [group.config.details() for group in shown]
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def quality_grid(shown: Sequence[Group], compared_with: Group | None, shared: Mapping[str, str]) -> Grid:
    """Return the main table; ``shared`` settings are left out of its last column."""
    header = [
        *("method", "D", "k", "bits a weight, training / serving", "bits a row, training / serving"),
        *("table, MB", "seeds", "test AUC", "minus fp32", "log loss", "best epoch", "seconds"),
        *("table + state in training, MB", "peak above the data, MB", "settings"),
    ]
    rows = []
    for group in shown:
        config = group.config
        method = METHODS[config.method].title if config.method in METHODS else config.method
        away = NONE if compared_with is None else f"{group.mean('test_auc') - compared_with.mean('test_auc'):+.5f}"
        rows.append(
            [
                method,
                str(config.embedding_dim),
                NONE if config.bits is None else str(config.bits),
                f"{group.bits_a_weight('training_bits'):.3f} / {group.bits_a_weight('serving_bits'):.3f}",
                f"{group.mean('training_bits_row'):.0f} / {group.mean('serving_bits_row'):.0f}",
                f"{group.mean('serving_bytes') / 1e6:.3f}",
                str(len(group.results)),
                spread(group, "test_auc", 5),
                away,
                spread(group, "test_log_loss", 4),
                "/".join(str(int(epoch) + 1) for epoch in group.values("best_epoch")),
                f"{group.mean('seconds'):.0f}",
                f"{(group.mean('table_bytes') + group.mean('state_bytes')) / 1e6:.3f}",
                f"{(group.mean('peak_bytes') - group.mean('before_bytes')) / 1e6:.0f}",
                listed({n: v for n, v in config.details().items() if shared.get(n) != v}) or NONE,
            ]
        )
    return header, rows


def missing_lines(configs: Iterable[Config]) -> list[str]:
    """Return a line a configuration, with the seeds that are missing."""
    seeds: dict[str, tuple[Config, list[int]]] = {}
    for config in configs:
        seeds.setdefault(config.without_seed().key, (config, []))[1].append(config.seed)
    lines = []
    for config, absent in seeds.values():
        name = config.named().rpartition(" seed=")[0]
        details = f" ({listed(config.details())})" if config.details() else ""
        lines.append(f"{name}: seed {', '.join(map(str, absent))}{details}")
    return lines
