"""``packedbag train``: the options, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from packedbag.cli.console import guarded
from packedbag.cli.sources import DataOptions
from packedbag.recsys.settings import CHECKPOINT_STEPS, TIMEOUT, Settings

DEFAULTS = Settings()
DATA, TABLES, TRAINING, RUN = "Data", "Tables", "Training", "Run"

EXAMPLES = """[bold]Examples[/bold]

packedbag train movielens-100k --compare

packedbag train csv --data clicks.csv.gz --label clicked --categorical user,item,device --bag tags --bag-separator '|'

packedbag train csv --data ratings.csv --label rating --threshold 4 --categorical user,item --time at --split time

packedbag train criteo --data train.txt --hash-rows 1000000 --split time

packedbag train libfm --data train.libfm --output runs/mine --resume

packedbag train criteo --data train.txt --device cuda --batch-size 8192

torchrun --nproc-per-node=2 -m packedbag train movielens-100k --sharding row
"""


def train(
    dataset: Annotated[str, typer.Argument(help="movielens-100k, csv, libfm or criteo.", metavar="DATASET")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="The data file. movielens-100k: a folder or wheel to use, not the download.", rich_help_panel=DATA
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="csv: the column of the label.", rich_help_panel=DATA)] = None,
    categorical: Annotated[
        str | None, typer.Option(help="csv: columns with one id a row, commas between.", rich_help_panel=DATA)
    ] = None,
    bag: Annotated[
        str | None,
        typer.Option(help="csv: columns with any number of ids a row, commas between.", rich_help_panel=DATA),
    ] = None,
    bag_separator: Annotated[
        str | None, typer.Option(help="csv: what separates the ids of a bag; a space by default.", rich_help_panel=DATA)
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="csv: what separates columns; a comma by default.", rich_help_panel=DATA)
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="csv: a numeric column to split by; the row's position by default.", rich_help_panel=DATA),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="csv, libfm: a label of at least this is positive; else labels are 0 and 1.", rich_help_panel=DATA
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="random (by --seed) or time (the latest tenth tests): 80/10/10.", rich_help_panel=DATA)
    ] = "random",
    hash_rows: Annotated[
        int | None,
        typer.Option(
            help="Hash ids into tables of this many rows; by default each frequent id has its own.",
            rich_help_panel=TABLES,
        ),
    ] = None,
    unseen_rows: Annotated[
        int, typer.Option(help="Rows of each table for rare ids and ids never seen.", rich_help_panel=TABLES)
    ] = 16,
    min_count: Annotated[
        int, typer.Option(help="Ids with fewer training rows than this are rare.", rich_help_panel=TABLES)
    ] = 2,
    embedding_dim: Annotated[
        int, typer.Option(help="Weights in a row; multiples of 32 waste no bits.", rich_help_panel=TABLES)
    ] = DEFAULTS.embedding_dim,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train the same model with fp32 tables as well.", rich_help_panel=TRAINING)
    ] = False,
    epochs: Annotated[
        int, typer.Option(help="Passes over the training rows, at most.", rich_help_panel=TRAINING)
    ] = DEFAULTS.epochs,
    patience: Annotated[
        int, typer.Option(help="Stop after this many epochs without a better validation AUC.", rich_help_panel=TRAINING)
    ] = DEFAULTS.patience,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.", rich_help_panel=TRAINING)] = DEFAULTS.batch_size,
    hidden: Annotated[
        str, typer.Option(help="Widths of the hidden layers, commas between.", rich_help_panel=TRAINING)
    ] = ",".join(map(str, DEFAULTS.hidden)),
    dropout: Annotated[
        float, typer.Option(help="Share of hidden units left out.", rich_help_panel=TRAINING)
    ] = DEFAULTS.dropout,
    lr: Annotated[float, typer.Option(help="Rate of the dense part (AdamW).", rich_help_panel=TRAINING)] = DEFAULTS.lr,
    weight_decay: Annotated[
        float, typer.Option(help="Weight decay of the dense part.", rich_help_panel=TRAINING)
    ] = DEFAULTS.weight_decay,
    packed_lr: Annotated[
        float | None,
        typer.Option(
            help="Rate of the packed tables (CounterSGD). Default: by --bits and --code.", rich_help_panel=TRAINING
        ),
    ] = DEFAULTS.packed_lr,
    bits: Annotated[
        int,
        typer.Option(
            help="Bits a packed weight has in training, 2 to 8; with --code binary, 8 a value at most.",
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.bits,
    bits_per_value: Annotated[
        int,
        typer.Option(
            help="Neighbouring packed weights that make one value: 1, 2, 4, 8, 16 or 32.",
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.bits_per_value,
    code: Annotated[
        str,
        typer.Option(help="How they make it: binary, a number; or thermometer, their mean.", rich_help_panel=TRAINING),
    ] = DEFAULTS.code,
    decay: Annotated[
        float | None,
        typer.Option(
            help="How fast packed weights forget what is not confirmed; 0: never. Default: by --bits and --code.",
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.decay,
    fp32_lr: Annotated[
        float, typer.Option(help="Rate of the fp32 tables (Adagrad).", rich_help_panel=TRAINING)
    ] = DEFAULTS.fp32_lr,
    schedule: Annotated[
        str,
        typer.Option(help="Of all rates: cosine (to 0 over --epochs) or constant.", rich_help_panel=TRAINING),
    ] = DEFAULTS.schedule,
    seed: Annotated[
        int,
        typer.Option(
            help="Of the random split, the first weights, the order and the rounding.", rich_help_panel=TRAINING
        ),
    ] = DEFAULTS.seed,
    sharding: Annotated[
        str | None,
        typer.Option(
            help="Spread tables over the processes that torchrun started: table, row, column or auto.",
            rich_help_panel=RUN,
        ),
    ] = None,
    timeout: Annotated[
        int,
        typer.Option(help="With --sharding: seconds to wait for a process that is gone.", rich_help_panel=RUN),
    ] = TIMEOUT,
    device: Annotated[
        str,
        typer.Option(
            help="Where the model is trained: cpu, cuda (a GPU), or cuda:1. A run may go on on another.",
            rich_help_panel=RUN,
        ),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of torch; fewer are faster where others use the cores too.", rich_help_panel=RUN),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints and tables; runs/DATASET by default.", rich_help_panel=RUN),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in --output.", rich_help_panel=RUN)
    ] = False,
    checkpoint_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints; each epoch ends with one as well.", rich_help_panel=RUN)
    ] = CHECKPOINT_STEPS,
    memory: Annotated[
        bool, typer.Option(help="Measure the memory of a step, in child processes.", rich_help_panel=RUN)
    ] = True,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the numbers of the last table to this file.", rich_help_panel=RUN),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            help="Folder for TensorBoard: what OUTPUT/packed/log.jsonl holds, as curves and histograms.",
            rich_help_panel=RUN,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the table at the end and nothing else.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Train a click-through-rate model with every embedding weight in one bit, and measure it.

    Each categorical column gets a packed table with a learnable scale; a perceptron follows. The best epoch by
    validation AUC is tested, its tables are written to OUTPUT/packed/tables, and one table shows quality and memory.

    OUTPUT/packed/log.jsonl gets a line an epoch: loss, AUC, speed, and how the packed tables learn.

    Exit codes: 0 done, 1 the system failed, 2 wrong options or data, 130 stopped by Ctrl-C (continue with --resume).
    """

    def work() -> None:
        from packedbag.cli.job import Job

        Job(
            dataset=dataset,
            data=DataOptions(data, split, seed, label, categorical, bag, bag_separator, delimiter, time, threshold),
            settings=Settings(
                embedding_dim=embedding_dim,
                bits_per_value=bits_per_value,
                code=code,
                hidden=_widths(hidden),
                dropout=dropout,
                batch_size=batch_size,
                epochs=epochs,
                patience=patience,
                lr=lr,
                weight_decay=weight_decay,
                packed_lr=packed_lr,
                bits=bits,
                decay=decay,
                fp32_lr=fp32_lr,
                schedule=schedule,
                seed=seed,
            ),
            hash_rows=hash_rows,
            unseen_rows=unseen_rows,
            min_count=min_count,
            compare=compare,
            sharding=sharding,
            timeout=timeout,
            device=device,
            threads=threads,
            output=output or Path("runs") / dataset,
            resume=resume,
            checkpoint_steps=checkpoint_steps,
            memory=memory,
            json_path=json_path,
            tensorboard=tensorboard,
            quiet=quiet,
        ).run()

    guarded(work)


def _widths(text: str) -> tuple[int, ...]:
    from packedbag.core.errors import ArgumentError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ArgumentError("--hidden", repr(text), "whole numbers with commas between, as 128,64") from None
