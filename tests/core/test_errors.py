"""The exact text of every error, and the built-in that code written for torch expects."""

from __future__ import annotations

import inspect

import pytest

from packedbag.core import errors

#: One row or more for every class: how it is made, the built-in it is, and what it says.
TEXTS = [
    (errors.ArgumentError("mode", "'x'", "'sum'"), ValueError, "mode is 'x'; it must be 'sum'."),
    (errors.ArgumentError("mode", 3, "'sum'", "Pass it."), ValueError, "mode is 3; it must be 'sum'. Pass it."),
    (errors.DtypeError("words", "torch.int8", "uint32"), TypeError, "words has dtype int8; it must be uint32."),
    (
        errors.DtypeError("x", "int8", "bool", "Pack it."),
        TypeError,
        "x has dtype int8; it must be bool. Pack it.",
    ),
    (errors.ShapeError("x", (2, 3), "(V, 1)"), ValueError, "x has shape (2, 3); it must be (V, 1)."),
    (errors.ShapeError("x", (2,), "2-D", "Unsqueeze."), ValueError, "x has shape (2); it must be 2-D. Unsqueeze."),
    (
        errors.IndexRangeError(4, -7, 10),
        IndexError,
        "indices[4] is -7; the table has rows 0..9. Pass bounds='clamp' or 'skip' to accept such indices.",
    ),
    (
        errors.IndexRangeError(0, 0, 0),
        IndexError,
        "indices[0] is 0; the table has no rows. Pass bounds='clamp' or 'skip' to accept such indices.",
    ),
    (
        errors.OffsetsError(2, 9, "at most 5, the number of indices"),
        ValueError,
        "offsets[2] is 9; it must be at most 5, the number of indices. Bag b is indices[offsets[b]:offsets[b + 1]].",
    ),
    (
        errors.BackendError("fast", "does not exist", "eager, reference"),
        RuntimeError,
        "backend 'fast' does not exist. Backends: eager, reference. `packedbag doctor` says why one is missing.",
    ),
    (
        errors.MissingExtraError("the Parquet format", "pyarrow", "io"),
        ImportError,
        "the Parquet format needs pyarrow, which is not installed. Run: pip install 'packedbag[io]'",
    ),
    (
        errors.StateMismatchError("table 1", "3 rows", "4 rows"),
        ValueError,
        "table 1 has 3 rows; this optimizer has 4 rows. "
        "Load it into an optimizer of the same tables, in the same order; nothing was changed.",
    ),
    (
        errors.RankMismatchError("tables", "rank 0 has 3, rank 1 has 4"),
        RuntimeError,
        "the ranks' tables differ: rank 0 has 3, rank 1 has 4. Make the model after torch.manual_seed with one seed on "
        "all ranks, or load one checkpoint of model and optimizer on all of them.",
    ),
    (
        errors.RankMismatchError("packed tables", "their bits are not the same"),
        RuntimeError,
        "the ranks' packed tables differ: their bits are not the same. Make the model after torch.manual_seed with one "
        "seed on all ranks, or load one checkpoint of model and optimizer on all of them.",
    ),
    (
        errors.DeletedModuleError(),
        RuntimeError,
        "the packed module of this anchor or gradient was deleted. Keep a reference to the module.",
    ),
    (
        errors.ReplacedAnchorError("tables.user"),
        RuntimeError,
        "the anchor parameter of tables.user was replaced, as FSDP does: its gradients would be lost. FSDP is not "
        "supported yet. Use DistributedDataParallel(model, broadcast_buffers=False), or keep packed modules outside "
        "FSDP (ignored_modules).",
    ),
    (
        errors.GradientError("tables.user"),
        ValueError,
        "the gradient of table tables.user is NaN or infinite; the step was refused and no bit has changed. Lower "
        "the learning rate of the dense part, clip its gradients, or use torch.amp.GradScaler.",
    ),
    (
        errors.IndexRangeError(4, 11, 10, device="cuda:1"),
        IndexError,
        "indices[4] is 11; the table has rows 0..9. Pass bounds='clamp' or 'skip' to accept such indices. Found on "
        "cuda:1 by an earlier call, which left the entry out; packedbag.check_cuda() behind a call checks that call.",
    ),
    (
        errors.OffsetsError(0, 1, "0", device="cuda:0"),
        ValueError,
        "offsets[0] is 1; it must be 0. Bag b is indices[offsets[b]:offsets[b + 1]]. Found on cuda:0 by an earlier "
        "call, which left the entry out; packedbag.check_cuda() behind a call checks that call.",
    ),
    (
        errors.GradientError("0 (x)", refused=3),
        ValueError,
        "the gradient of table 0 (x) is NaN or infinite; 3 steps were refused on the device, and no bit has changed in "
        "them. A batch with an index outside the table, under bounds='raise', is refused in the same way. Lower the "
        "learning rate of the dense part, clip its gradients, or use torch.amp.GradScaler.",
    ),
    (
        errors.CaptureError("a first step"),
        RuntimeError,
        "a first step cannot be captured in a CUDA graph. Do it once before the capture, as a warm-up.",
    ),
    (
        errors.DataError("a.csv", 3, "has no label"),
        ValueError,
        "a.csv, line 3: has no label.",
    ),
    (
        errors.DataError("a.csv", None, "is empty", "Pass another file."),
        ValueError,
        "a.csv: is empty. Pass another file.",
    ),
    (
        errors.CheckpointError("run.pt", "is cut short", "Remove it."),
        RuntimeError,
        "run.pt: is cut short. Remove it.",
    ),
]


def classes() -> set[type]:
    return {value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__}


@pytest.mark.parametrize(("error", "builtin", "text"), TEXTS, ids=lambda x: x[:30] if isinstance(x, str) else "")
def test_an_error_says_exactly_this(error: Exception, builtin: type[Exception], text: str) -> None:
    assert str(error) == text
    assert isinstance(error, builtin)
    assert isinstance(error, errors.PackedBagError)


def test_the_text_of_every_class_is_pinned() -> None:
    assert {type(error) for error, _, _ in TEXTS} == classes() - {errors.PackedBagError}


def test_errors_carry_what_a_handler_needs() -> None:
    assert errors.ArgumentError("mode", 1, "2").argument == "mode"
    assert errors.DtypeError("x", "int8", "bool").argument == "x"
    assert errors.ShapeError("x", (), "1-D").argument == "x"
    outside = errors.IndexRangeError(4, -7, 10)
    assert (outside.position, outside.value) == (4, -7)
    assert errors.OffsetsError(2, 9, "0").position == 2
    assert errors.MissingExtraError("a", "b", "io").extra == "io"
    assert errors.GradientError("t").table == "t"
    assert (errors.DataError("a.csv", 3, "x").path, errors.DataError("a.csv", 3, "x").line) == ("a.csv", 3)
    assert errors.CheckpointError("run.pt", "x", "y").path == "run.pt"
