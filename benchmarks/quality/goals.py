"""The goals of training quality, each with what was measured; what was not measured is said, never guessed.

Where a goal names no configuration, the candidate is chosen on validation rows (`benchmarks.quality.table.best`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.quality import table
from benchmarks.quality.table import Grid, Group

#: Methods that train the packed bits from a few bits of state.
COUNTERS = ("counter", "counter-binary")
TRAINED = (*COUNTERS, "bit-flip", "vote-flip", "sign-momentum")
FP32 = ("fp32-adam", "fp32-adagrad")
#: What is of whole tables costs less than this, in bits a column and bits a row, and is within the goals' rounding.
SCALES_BITS, SCALES_BITS_ROW = 0.01, 1.0
SEEDS = 5
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Finding:
    """What was measured, whether it is enough, and from how many seeds at least."""

    measured: str
    reached: bool
    seeds: int

    @property
    def verdict(self) -> str:
        """ "yes" or "no", and "so far" where seeds are missing."""
        return ("yes" if self.reached else "**no**") + (f", {self.seeds} of {SEEDS} seeds" * (self.seeds < SEEDS))


@dataclass(frozen=True)
class Goal:
    """A row of `GOALS`: the data set, what is compared, what is to be reached."""

    data: str
    what: str
    reach: str
    find: Callable[[Sequence[Group]], Finding | None]


def within(groups: Sequence[Group], bits: float, dim: int, bits_row: float = float("inf")) -> list[Group]:
    """Return the groups of trained packed tables that cost at most so much in training."""
    return [
        group
        for group in groups
        if group.config.method in TRAINED
        and group.config.embedding_dim <= dim
        and group.mean("training_bits") <= bits / group.columns_per_weight + SCALES_BITS
        and group.mean("training_bits_row") <= bits_row + SCALES_BITS_ROW
    ]


def _difference(ours: Group, theirs: Group, name: str) -> float:
    return ours.mean(name) - theirs.mean(name)


def _seeds(*groups: Group) -> int:
    return min(len(group.results) for group in groups)


def _to_fp32(bits: float, dim: int, least: float, *, log_loss: bool) -> Callable[[Sequence[Group]], Finding | None]:
    def find(groups: Sequence[Group]) -> Finding | None:
        ours, theirs = table.best(within(groups, bits, dim)), table.mark(groups)
        if ours is None or theirs is None:
            return None
        auc = _difference(ours, theirs, "test_auc")
        loss = _difference(ours, theirs, "test_log_loss")
        text = f"{auc:+.5f}, log loss {loss:+.4f} ({ours.title})"
        return Finding(text, auc >= least and (loss <= 0 or not log_loss), _seeds(ours, theirs))

    return find


def _to_frozen(groups: Sequence[Group]) -> Finding | None:
    ours = table.best(within(groups, 2.125, 1 << 30, 544))
    if ours is None:
        return None
    dim = ours.config.embedding_dim
    theirs = table.best(g for g in groups if (g.config.method, g.config.embedding_dim) == ("frozen", dim))
    if theirs is None:
        return None
    auc = _difference(ours, theirs, "test_auc")
    return Finding(f"{auc:+.5f} ({ours.title})", auc >= 0.002, _seeds(ours, theirs))


def _to_straight_through(groups: Sequence[Group]) -> Finding | None:
    found = []
    for dim in sorted({group.config.embedding_dim for group in groups}):
        same = [group for group in groups if group.config.embedding_dim == dim]
        ours, theirs = table.best(within(same, 9, dim)), table.best(g for g in same if g.config.method == "ste-adam")
        if ours is not None and theirs is not None:
            found.append((_difference(ours, theirs, "test_auc"), ours.title, _seeds(ours, theirs)))
    if not found:
        return None
    text = "; ".join(f"{auc:+.5f} ({title})" for auc, title, _ in found)
    return Finding(text, all(auc >= 0 for auc, _, _ in found), min(seeds for _, _, seeds in found))


def _time(groups: Sequence[Group]) -> Finding | None:
    """Compare seconds a step of runs that shared the machine with equally many others."""
    found = []
    for dim in sorted({group.config.embedding_dim for group in groups}):
        same = [group for group in groups if group.config.embedding_dim == dim]
        ours = table.best(group for group in same if group.config.method == "counter")
        twins = [t for method in FP32 if (t := table.best(g for g in same if g.config.method == method))]
        twins = [twin for twin in twins if ours is not None and _place(twin) == _place(ours)]
        if ours is not None and twins:
            fastest = min(map(_seconds, twins))
            found.append((_seconds(ours) / fastest, ours.title, _seeds(ours, *twins)))
    if not found:
        return None
    text = "; ".join(f"{ratio:.2f}x ({title})" for ratio, title, _ in found)
    return Finding(text, all(ratio <= 1 for ratio, _, _ in found), min(seeds for _, _, seeds in found))


def _seconds(group: Group) -> float:
    return group.mean("seconds") / group.mean("steps")


def _place(group: Group) -> set[tuple[str, int]]:
    return {(result["machine"]["processor"], result["machine"]["jobs"]) for result in group.results.values()}


def _demo(groups: Sequence[Group]) -> Finding | None:
    ours = table.best(group for group in groups if group.config.method in COUNTERS)
    theirs = table.best(group for group in groups if group.config.method in FP32)
    if ours is None or theirs is None:
        return None
    auc = _difference(ours, theirs, "test_auc")
    return Finding(f"{auc:+.5f} ({ours.title}, minus {theirs.title})", auc >= -0.003, _seeds(ours, theirs))


MARK = "fp32 D = 16"
GOALS = (
    Goal(
        "ml-1m",
        f"at most 9 bits a weight, D <= 128, minus {MARK}",
        ">= -0.0005, log loss no worse",
        _to_fp32(9, 128, -0.0005, log_loss=True),
    ),
    Goal(
        "ml-1m",
        f"at most 4.5 bits a weight, D <= 128, minus {MARK}",
        ">= -0.003",
        _to_fp32(4.5, 128, -0.003, log_loss=False),
    ),
    Goal("ml-1m", "at most 2.125 bits a weight and 544 a row, minus frozen bits at equal D", ">= 0.002", _to_frozen),
    Goal("ml-1m", "at most 9 bits a weight, minus fp32 latents with STE at equal D", ">= 0", _to_straight_through),
    Goal("ml-1m", "time of training steps at equal D, over the faster fp32 twin's", "<= 1.0x", _time),
    Goal("movielens-100k", "packed, k of its recipe, minus fp32", ">= -0.003", _demo),
)


def goals_grid(by_data: dict[str, list[Group]]) -> Grid:
    """Return every goal with what was measured; bits are those of training."""
    rows = []
    for goal in GOALS:
        finding = goal.find(by_data.get(goal.data, []))
        found = [NOT_MEASURED, table.NONE] if finding is None else [finding.measured, finding.verdict]
        rows.append([goal.what, goal.data, goal.reach, *found])
    return ["goal (mean test AUC, unless it says more)", "data", "reach", "measured", "reached"], rows
