"""Reports with made-up measurements."""

from dataclasses import replace

from packedbag.report.compare import compute
from packedbag.report.kinds.kind import Load, Shape
from packedbag.report.kinds.registry import KEYS, make_kind

SMALL = (Shape(1000, 64),)
NAMED = (Shape(1000, 64, "user.weight"), Shape(50, 32, "<b>&item"))


def report(measured=("fp32", "packed"), shapes=SMALL, bits=8, keys=KEYS, factor=1.0):
    """Return a report in which kinds were ``measured`` at ``factor`` times what was computed."""
    kinds = [make_kind(key, bits=bits) for key in keys]
    in_file = {shape.name: 4 * shape.weights for shape in shapes if shape.name}
    made = compute(kinds, shapes, Load(32, 10), bytes_in_file=in_file)
    for line in made.lines:
        if line.kind.key in measured:
            line.measured = replace(line.computed, peak=int(line.computed.peak * factor))
        else:
            line.why_not = "needs 9 GB, and 1 GB may be used"
    return made
