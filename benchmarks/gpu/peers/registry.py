"""Every contender of the forward comparison on a GPU, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.gpu.contender import Contender
from benchmarks.gpu.peers import boolean, ceiling, fbgemm, floats, packed
from benchmarks.shapes import Shape

CONTENDERS: tuple[Contender, ...] = (
    *floats.CONTENDERS,
    *fbgemm.CONTENDERS,
    *boolean.CONTENDERS,
    *packed.CONTENDERS,
    *ceiling.CONTENDERS,
)
#: Whatever is selected: ratios are to these.
ALWAYS = (floats.FP32, packed.SUM)


def selected(shape: Shape, device: torch.device, parts: Sequence[str] | None) -> tuple[list[Contender], dict[str, str]]:
    """Return who is measured for ``shape`` on ``device``, and why the others that were asked for are not.

    Args:
        parts: of names; a contender with one of them in its name is chosen. None chooses all.
    """
    chosen, skipped = [], {}
    for contender in CONTENDERS:
        wanted = parts is None or any(part.lower() in contender.name.lower() for part in parts)
        if not (contender.name in ALWAYS or wanted) or not contender.fits(shape):
            continue
        reason = contender.missing(device)
        if reason:
            skipped[contender.name] = reason
        else:
            chosen.append(contender)
    return chosen, skipped
