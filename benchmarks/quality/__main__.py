"""A bench of learning: grids of (method, D, k, seed) on real data, and a page of what came out.

    python -m benchmarks.quality run GRID [--data ml-1m] [--data-path PATH] [--jobs 2] [--method counter] [--dim 128]
    python -m benchmarks.quality missing GRID      which runs have no result yet
    python -m benchmarks.quality page              docs/benchmarks/quality.md and its figures, of the results so far

GRID: screen (1 seed), confirm (3), headline (5), smoke (tiny, synthetic), or custom: --method, --dim, --bits and
--seed say which runs, each by its recipe. --set NAME=VALUE changes a setting of every run, as --set epochs=6
optimizer_options.adaptivity=adagrad. A run that has a result is not done again: a grid goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality import grids, methods, page, results, runner, table
from benchmarks.quality.config import Config

CUSTOM = "custom"
RESULTS = Path("docs/benchmarks/quality.jsonl")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run what has no result yet")
    absent = verbs.add_parser("missing", help="say which runs have no result")
    for verb in (run, absent):
        verb.add_argument("grid", nargs="?", default=CUSTOM, choices=[*grids.GRIDS, CUSTOM])
        verb.add_argument("--data", default="ml-1m", choices=list(grids.MODELS))
        verb.add_argument("--method", nargs="+", choices=list(methods.METHODS), help="these alone")
        verb.add_argument("--dim", nargs="+", type=int, help="these D alone")
        verb.add_argument("--bits", nargs="+", type=int, help="these k alone")
        verb.add_argument("--seed", nargs="+", type=int, help="these seeds alone")
        verb.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="in every run")
    run.add_argument("--data-path", help="of data that are no part of the tree; ml-1m: or $PACKEDBAG_ML1M")
    run.add_argument("--jobs", type=int, default=1, help="processes at once; 0: in this one (default: 1)")
    written = verbs.add_parser("page", help="write the page and its figures")
    written.add_argument("--page", type=Path, default=Path("docs/benchmarks/quality.md"))
    written.add_argument("--figures", type=Path, default=Path("docs/_static"))
    for verb in (run, absent, written):
        verb.add_argument("--results", type=Path, default=RESULTS, help=f"JSON lines (default: {RESULTS})")
    verbs.add_parser("one", help="used by run: one run, read from standard input").add_argument("--data-path")
    return parser.parse_args(arguments)


def wanted(given: argparse.Namespace) -> list[Config]:
    """Return the runs that were asked for."""
    if given.grid != CUSTOM:
        configs = grids.chosen(grids.GRIDS[given.grid](given.data), given.method, given.dim, given.bits, given.seed)
    else:
        if not (given.method and given.dim):
            raise SystemExit("without a grid, say which runs: --method and --dim, with --bits and --seed as it needs")
        configs = [
            grids.recipe(given.data, method, dim, bits, seed)
            for seed in given.seed or [0]
            for method in given.method
            for bits in given.bits or [None]
            for dim in given.dim
        ]
    # Several k are one run where a method has no choice of k.
    return list({run.key: run for run in (changed(config, given.set) for config in configs)}.values())


def changed(config: Config, settings: Sequence[str]) -> Config:
    """Return the run with ``NAME=VALUE`` settings; NAME.INNER sets one entry of a setting that is a mapping."""
    plain = config.plain()
    for text in settings:
        name, sign, value = text.partition("=")
        if not sign:
            raise SystemExit(f"--set {text}: it takes NAME=VALUE")
        name, _, inner = name.partition(".")
        if name not in plain:
            raise SystemExit(f"--set {text}: a run has no {name}; it has {', '.join(plain)}")
        plain[name] = {**plain[name], inner: _value(value)} if inner else _value(value)
    return replace(config, **plain)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main(arguments: Sequence[str]) -> int:
    """Do what was asked; 1 where a run failed or, for ``missing``, where one is missing."""
    given = parse(arguments)

    def say(text: str) -> None:
        print(text, flush=True)

    if given.verb == "one":
        runner.child(given.data_path)
        return 0
    if given.verb == "page":
        page.write(results.read(given.results, say), given.page, given.figures)
        say(f"{given.page} is written")
        return 0
    configs = wanted(given)
    if given.verb == "run":
        outcome = runner.run_grid(configs, given.results, data_path=given.data_path, jobs=given.jobs, say=say)
        say(f"{len(outcome.done)} done, {len(outcome.failed)} failed")
        return 1 if outcome.failed else 0
    absent = results.missing(configs, results.read(given.results, say))
    for line in table.missing_lines(absent):
        say(line)
    say(f"{len(absent)} of {len(configs)} runs are missing")
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
