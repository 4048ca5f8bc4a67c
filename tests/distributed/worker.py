"""One rank: joins the others, runs the checks of a module, and writes what each of them said."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from packedbag.adapters.torchrec_requirement import import_torchrec
from tests.distributed.places import place


def main(module: str, rank: int, world: int, folder: Path) -> None:
    import_torchrec()
    logging.disable(logging.WARNING)  # TorchRec tells what it does
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    place().prepare(rank)
    dist.init_process_group(place().group, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    said = {}
    for name, check in importlib.import_module(module).checks(rank, world, folder).items():
        said[name] = outcome(check)
        if said[name] != "ok":
            break  # the others would wait for this rank, or it for them, for ever
    (folder / f"{rank}.json").write_text(json.dumps(said))
    if all(text == "ok" for text in said.values()):
        dist.destroy_process_group()


def outcome(check: Callable[[], None]) -> str:
    """Return "ok", or what went wrong, whatever it is: the test shows it."""
    try:
        check()
    except BaseException:
        return traceback.format_exc()
    return "ok"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
