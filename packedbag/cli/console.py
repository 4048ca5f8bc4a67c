"""How the command speaks: results to stdout, everything else to stderr, errors as one clear line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from packedbag.core.errors import PackedBagError

#: Exit codes. 2 is also what typer uses for options it does not know; 130 is 128 + SIGINT, as shells have it.
OK, FAILED, MISUSE, INTERRUPTED = 0, 1, 2, 130

OUT_OF_MEMORY = "not enough memory for these tables, layers or batches ({}). Make them smaller."

R = TypeVar("R")

#: Rich honours NO_COLOR, and leaves out colours and movement where the stream is no terminal.
output = Console(highlight=False)
notes = Console(stderr=True, highlight=False)


def fail(message: str) -> None:
    """Print an error as one line."""
    notes.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)


def printable(name: str) -> str:
    """Return a name of a file for a terminal, to which its author must not send codes."""
    return name if name.isprintable() else repr(name)


def guarded(work: Callable[[], R]) -> R:
    """Run ``work``; an error of packedbag, a full disk or Ctrl-C ends the process without a traceback.

    A traceback stays for what is a defect of packedbag itself.
    """
    try:
        return work()
    except PackedBagError as error:
        fail(str(error))
        sys.exit(MISUSE)
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        sys.exit(FAILED)
    except MemoryError as error:
        fail(OUT_OF_MEMORY.format(error))
        sys.exit(FAILED)
    except RuntimeError as error:  # torch has no class of its own for this on a CPU
        if "can't allocate memory" not in str(error):
            raise
        fail(OUT_OF_MEMORY.format(str(error).partition("DefaultCPUAllocator: ")[2] or error))
        sys.exit(FAILED)
    except OSError as error:
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
        sys.exit(FAILED)
    except KeyboardInterrupt:
        fail("interrupted")
        sys.exit(INTERRUPTED)
