"""What is measured on a GPU: tables far larger than its second-level cache, and batches that fill it."""

from __future__ import annotations

from benchmarks.shapes import Shape

#: The table of most goals, and the same with other widths.
MAIN = "1e7x128x65536x20"
WIDTHS = (64, 128, 256)
#: 1.6 GB of packed words: no cache holds a noticeable part. Packed contenders alone.
LARGE = "1e8x128x65536x20"
ONE_BAG = "1e6x128x1x20"
#: A step on a table that small cards hold in fp32 with both moments of Adam, too.
SMALL_STEP = "1e6x128x65536x20"

FORWARD = tuple(map(Shape.parse, (*(f"1e7x{dim}x65536x20" for dim in WIDTHS), LARGE)))
STEP = tuple(map(Shape.parse, (MAIN, SMALL_STEP)))
LATENCY = (Shape.parse(ONE_BAG),)

#: Different sets of indices that take turns: at 65,536 x 20 they are 84 MB of int32.
SETS = 16
#: Of one bag, whose rows are few.
BAG_SETS = 64
#: Of a training step, int64.
STEP_SETS = 8
