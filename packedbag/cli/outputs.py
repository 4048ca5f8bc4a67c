"""Options that name a file, with ``-`` or nothing behind them for stdout, and files that are written whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from packedbag.core.errors import ArgumentError
from packedbag.io.atomic import replacing

#: Options that several commands have.
Json = Annotated[Path | None, typer.Option("--json", help="Write JSON to this file; alone: print it instead.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and nothing else.")]
#: What an option is given for stdout.
STDOUT = Path("-")
#: Options that may stand alone.
ALONE = ("--json", "--csv")


class Command(TyperCommand):
    """A command whose ``--json`` and ``--csv`` may stand alone, for stdout."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give an option that stands alone the value ``-``."""
        given: list[str] = []
        for argument, following in zip(args, [*args[1:], None], strict=True):
            given.append(argument)
            if argument in ALONE and (following is None or (following.startswith("-") and following != "-")):
                given.append(str(STDOUT))
        return super().parse_args(ctx, given)


def check_file(path: Path | None, option: str, endings: tuple[str, ...] = ()) -> None:
    """Raise `ArgumentError` where a file cannot be written: before minutes of work, not after them."""
    if path is None or path == STDOUT:
        return
    if endings and path.suffix.lower().lstrip(".") not in endings:
        raise ArgumentError(option, path, f"a file that ends in {', '.join('.' + ending for ending in endings)}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ArgumentError(option, path, "a file in a folder that exists and may be written to")


def write_text(path: Path, text: str) -> None:
    """Replace a file by ``text`` in one step, or print it where the path is `STDOUT`.

    Raises:
        OSError: the file cannot be written; an older one is unchanged.
    """
    if path == STDOUT:
        print(text, end="")
    else:
        with replacing(path) as file:
            file.write(text.encode())
