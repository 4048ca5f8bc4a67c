"""``packedbag``: the command line."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from packedbag import __version__
from packedbag.core.errors import MissingExtraError

if TYPE_CHECKING:
    import typer


def make_app() -> typer.Typer:
    """Return the Typer app with all commands.

    Raises:
        MissingExtraError: typer or rich is not installed.
    """
    try:
        import rich  # noqa: F401
        import typer
    except ImportError as error:
        raise MissingExtraError("The command line", error.name or "typer", "cli") from None
    from packedbag.cli import compare, convert, export, inspection, plan
    from packedbag.cli.doctor import doctor
    from packedbag.cli.outputs import Command
    from packedbag.cli.train import EXAMPLES, train

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="Recommender embedding tables in one bit a weight, in training and in serving.",
        epilog="Start with: [bold]packedbag train movielens-100k --compare[/bold]",
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"packedbag {__version__}")
            raise typer.Exit

    # The annotation must be a value here: typer is imported only when the command runs.
    def options(version: bool = False) -> None:
        pass

    options.__annotations__["version"] = Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ]
    app.callback()(options)
    for command, examples, kind in (
        (train, EXAMPLES, None),
        (compare.compare, compare.EXAMPLES, Command),
        (plan.plan, plan.EXAMPLES, Command),
        (export.export, export.EXAMPLES, Command),
        (inspection.inspect, inspection.INSPECT_EXAMPLES, Command),
        (inspection.verify, inspection.VERIFY_EXAMPLES, Command),
        (convert.convert, convert.EXAMPLES, Command),
        (doctor, None, None),
    ):
        app.command(cls=kind, help=prose(command), epilog=examples)(command)
    return app


def prose(command: Callable[..., None]) -> str:
    """Return what a command's docstring says, each paragraph in one line, to be broken where a terminal ends."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(command.__doc__ or "").split("\n\n"))


def main() -> None:
    """Run the command line; the entry point of the ``packedbag`` script."""
    # OpenMP reads this when torch loads it. Threads that spin while they wait give 54,000 samples/s on two idle
    # cores and 2,700 on two busy ones; threads that sleep give 46,000 on either. The user's own setting stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app = make_app()
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
