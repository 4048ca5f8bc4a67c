"""The page of `benchmarks.distributed`: what was measured, and what 8 and 128 GPUs would hold and exchange."""

from __future__ import annotations

from typing import Any

from packedbag.core.footprint import count_bits, footprint, index_bytes, traffic
from packedbag.report.memory import human

FP32, NAMES = "fp32", ("fp32", "8 bits", "4 bits", "majority")
#: Goals: times as many bytes as ours; parts of fp32's bytes forward; part of its time on two ranks.
MEMORY = {"8 bits": 3.5, "4 bits": 7.0}
FORWARD = {"8 bits": 1 / 4, "4 bits": 1 / 4, "majority": 1 / 32}
TIME = 0.7

#: The study on paper: rows, dim, ids a bag, bags of a rank in a step.
STUDY_ROWS, STUDY_DIM, STUDY_BAG, STUDY_BATCH = 10**11, 64, 20, 4096
#: The part of a memory that tables may take; ranks and bytes of memory of each.
USABLE = 0.85
CLUSTERS = ((8, 141 * 10**9), (128, 141 * 10**9))

TEXT = """# Several processes

`python -m benchmarks.distributed` on {processor}, torch {torch}, TorchRec 1.8.0. {tables} tables of
{rows:,} x {dim}; on each rank {batch:,} samples, bags of 1 to {longest} ids of every table. A step is forward, backward
and update; contenders take turns in the same processes, over gloo on the loopback; medians of {rounds}. fp32 is
TorchRec's `EmbeddingBagCollection` with FBGEMM's fused row-wise Adagrad. All ranks share the machine's cores: more of
them take longer here, and only the proportion says something.

## Step time and memory

{steps}

Goals: a step on 2 ranks at most {time} of fp32's: {time_said}. Memory a rank at most 1/3.5 of fp32's with 8 bits in
training, 1/7 with 4, 1/32 in serving: {memory_said}.

## Bytes on the wire

What the rank that sends most hands to others in a step, counted at the collectives.

{wire}

Goals, forward: at most 1/4 of fp32's for sums, 1/32 for majorities: {forward_said}. Where a bag is no longer than 15,
sums take 1/8; with one id a bag, 1/32. By column, an update sends rows' statistics: they are what makes the result
that of one process, and `adaptivity=None` has none.

## On paper: {study_rows:.0e} rows x {study_dim}

By formula, as `packedbag plan --ranks` computes: one table by row, {study_batch:,} bags of {study_bag} ids a rank and
step. By row, every rank has a part of every bag of all ranks, so that what it sends forward grows with their number;
plans by table and row keep that inside a node. fp32 with row-wise Adagrad.

{study}

{study_said}
"""


def table(head: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])


def steps(records: list[dict[str, Any]]) -> str:
    """Return the table of step times and memory."""
    head = ["ranks, plan", *(f"{name}: ms" for name in NAMES), "8 bits / fp32", "4 bits / fp32"]
    head += ["fp32: memory", "8 bits", "4 bits", "table alone"]
    lines = []
    for record in records:
        of = record["contenders"]
        base = of[FP32]
        cells = [f"{record['ranks']}, {record['sharding']}"]
        cells += [f"{1e3 * of[name]['seconds']:.0f}" if name in of else "-" for name in NAMES]
        cells += [f"{of[name]['seconds'] / base['seconds']:.2f}" for name in ("8 bits", "4 bits")]
        cells.append(human(held(base)))
        cells += [f"1/{held(base) / held(of[name]):.1f}" for name in ("8 bits", "4 bits")]
        cells.append(f"1/{base['table_bytes'] / of['8 bits']['table_bytes']:.1f}")
        lines.append(cells)
    return table(head, lines)


def held(contender: dict[str, Any]) -> int:
    """Return the bytes of tables and optimizer on a rank."""
    return int(contender["table_bytes"] + contender["state_bytes"])


def wire(records: list[dict[str, Any]]) -> str:
    """Return the table of bytes on the wire."""
    head = ["ranks, plan", "tables", "indices", "forward", "of fp32's", "gradients", "update", "in all", "of fp32's"]
    lines = []
    for record in records:
        if record["ranks"] == 1:
            continue
        base = record["contenders"][FP32]["sent"]
        for name, contender in record["contenders"].items():
            sent = contender["sent"]
            cells = [f"{record['ranks']}, {record['sharding']}", name, human(sent["indices"]), human(sent["forward"])]
            cells += [f"1/{base['forward'] / sent['forward']:.0f}", human(sent["backward"]), human(sent["update"])]
            cells += [human(sum(sent.values())), f"{sum(sent.values()) / sum(base.values()):.2f}"]
            lines.append(cells)
    return table(head, lines)


def said(reached: list[bool], what: str) -> str:
    """Return how many of the measured cases reach a goal."""
    missed = len(reached) - sum(reached)
    return f"reached in all {len(reached)} {what}" if not missed else f"**missed in {missed} of {len(reached)} {what}**"


def study() -> tuple[str, str]:
    """Return the table of what many GPUs would hold and exchange, and which kinds fit where."""
    head = ["ranks x memory", "table", "held by a rank", "fits", "indices", "forward", "gradients", "sent a step"]
    lines, fitting = [], []
    for ranks, memory in CLUSTERS:
        rows = -(-STUDY_ROWS // ranks)
        bags, entries = STUDY_BATCH * ranks, STUDY_BATCH * STUDY_BAG
        of = {"columns": STUDY_DIM, "bags": bags, "entries": entries}
        packed = traffic(**of, index=index_bytes(STUDY_ROWS), bits=count_bits(STUDY_BAG))
        floats = traffic(**of, index=8, bits=32)
        kinds = [(f"packed, {bits} bits", footprint(rows, STUDY_DIM, bits).total, packed) for bits in (8, 4, 2)]
        kinds += [("packed, serving", footprint(rows, STUDY_DIM).total, packed)]
        kinds += [("fp32", rows * (4 * STUDY_DIM + 4), floats)]
        where = f"{ranks} x {human(memory)}"
        fit = [name for name, size, _ in kinds if size < USABLE * memory]
        fitting.append(f"{where}: {', '.join(fit) or 'none'}")
        for name, size, sent in kinds:
            gradients = 0 if name.endswith("serving") else sent.gradients
            shown = [human(sent.indices), human(sent.forward), human(gradients) if gradients else "-"]
            total = human(sent.indices + sent.forward + gradients)
            lines.append([where, name, human(size), "yes" if name in fit else "no", *shown, total])
    return table(head, lines), f"What fits in {USABLE:.0%} of the memory: {'; '.join(fitting)}."


def page(data: dict[str, Any]) -> str:
    """Return the page of docs/benchmarks."""
    records, (on_paper, fitting) = data["records"], study()
    two = [r["contenders"] for r in records if r["ranks"] == 2]
    times = [c["8 bits"]["seconds"] / c[FP32]["seconds"] <= TIME for c in two]
    of = [r["contenders"] for r in records]
    memory = [held(c[FP32]) / held(c[name]) >= least for c in of for name, least in MEMORY.items()]
    memory += [c[FP32]["table_bytes"] / c["8 bits"]["table_bytes"] >= 32 for c in of]
    several = [c for r, c in zip(records, of, strict=True) if r["ranks"] > 1]
    forward = [
        c[name]["sent"]["forward"] <= part * c[FP32]["sent"]["forward"]
        for c in several
        for name, part in FORWARD.items()
        if name in c
    ]
    return TEXT.format(
        processor=data["machine"]["processor"],
        torch=data["machine"]["torch"],
        **data["shape"],
        steps=steps(records),
        time=TIME,
        time_said=said(times, "plans"),
        memory_said=said(memory, "cases"),
        wire=wire(records),
        forward_said=said(forward, "cases"),
        study_rows=STUDY_ROWS,
        study_dim=STUDY_DIM,
        study_bag=STUDY_BAG,
        study_batch=STUDY_BATCH,
        study=on_paper,
        study_said=fitting,
    )
