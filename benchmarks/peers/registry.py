"""Every contender of the forward comparison, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contender import Contender
from benchmarks.peers import boolean, ceiling, fbgemm, packed, torch_float, torch_quantized
from benchmarks.shapes import Shape

CONTENDERS: tuple[Contender, ...] = (
    *torch_float.CONTENDERS,
    *torch_quantized.CONTENDERS,
    *fbgemm.CONTENDERS,
    *boolean.CONTENDERS,
    *packed.CONTENDERS,
    *ceiling.CONTENDERS,
)
#: In every group, whatever is selected: ratios are to these.
ALWAYS = (torch_float.FP32, packed.SUM)


def selected(shape: Shape, parts: Sequence[str] | None) -> tuple[list[Contender], dict[str, str]]:
    """Return who is measured for ``shape``, and why the others that were asked for are not.

    Args:
        parts: of names; a contender with one of them in its name is chosen. None chooses all.
    """
    chosen, skipped = [], {}
    for contender in CONTENDERS:
        wanted = parts is None or any(part.lower() in contender.name.lower() for part in parts)
        if contender.name not in ALWAYS and not (wanted and contender.fits(shape)):
            continue
        reason = contender.missing()
        if reason:
            skipped[contender.name] = reason
        else:
            chosen.append(contender)
    return chosen, skipped


def groups(contenders: Sequence[Contender], shape: Shape, most_bytes: float) -> list[list[Contender]]:
    """Divide contenders so that no group's tables take more than ``most_bytes``; each has `ALWAYS` in it."""
    weights = shape.rows * shape.dim
    always = [contender for contender in contenders if contender.name in ALWAYS]
    base = {contender.format: contender.bytes_a_weight * weights for contender in always}
    found: list[list[Contender]] = []
    group, held = list(always), dict(base)
    for contender in contenders:
        if contender in always:
            continue
        with_it = {**held, contender.format: contender.bytes_a_weight * weights}
        if sum(with_it.values()) > most_bytes and len(group) > len(always):
            found.append(group)
            group, held = list(always), dict(base)
            with_it = {**held, contender.format: contender.bytes_a_weight * weights}
        group.append(contender)
        held = with_it
    return [*found, group]
