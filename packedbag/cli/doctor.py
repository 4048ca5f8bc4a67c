"""``packedbag doctor``: what this machine runs, and what to install for the rest."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from packedbag.cli.console import guarded
from packedbag.cli.diagnosis import describe, diagnose


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as JSON, for programs and bug reports.")
    ] = False,
    warm: Annotated[
        bool,
        typer.Option("--warm-cuda", help="Compile every CUDA kernel for this machine's GPUs first, and keep them."),
    ] = False,
) -> None:
    """Say which backends, kernels and extras this machine has, and why one is missing.

    Exits with 1 where no backend can be used, as when PACKEDBAG_BACKEND names one that is missing.
    """

    def work() -> None:
        if warm:
            from packedbag.cli.warm_cuda import warm_cuda

            warm_cuda(lambda text: typer.echo(text, err=as_json))  # stdout is the JSON's
        facts = diagnose()
        typer.echo(json.dumps(facts, indent=2) if as_json else describe(facts))
        if facts["problem"]:
            raise typer.Exit(1)

    guarded(work)
