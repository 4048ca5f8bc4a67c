"""`packedbag.report.kinds`: the formulas, and that the real things take what they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedbag.backends.registry import select
from packedbag.core.errors import ArgumentError
from packedbag.report.kinds.floats import OPTIMIZERS
from packedbag.report.kinds.kind import Load, Shape
from packedbag.report.kinds.registry import KEYS, make_kind
from packedbag.report.step_memory import Bags, measure

SHAPES = [Shape(60_000, 64), Shape(100_000, 40), Shape(3, 64)]
LOAD = Load(512, 20)
#: Bits a weight in training and bits a value that make counters of 2 to 8 bits.
COUNTERS = [(4, 2), (1, 2), (2, 4), (1, 8)]
LARGE_BATCHES = [
    (2, 1, "thermometer"),
    (8, 4, "thermometer"),
    (2, 16, "thermometer"),
    *((bits, group, "binary") for bits, group in COUNTERS),
]
MADE = [
    *(("fp32", {"optimizer": name}) for name in OPTIMIZERS),
    ("fp16", {"optimizer": "adagrad"}),
    ("fp16", {"optimizer": "rowwise-adagrad"}),
    ("int8", {}),
    ("char", {}),
    ("packed", {"bits": 8}),
    ("packed", {"bits": 2}),
    ("packed", {"bits": 1}),
    *(("packed", {"bits": bits, "bits_per_value": 4}) for bits in (8, 1)),
    *(("packed", {"bits": bits, "bits_per_value": group, "code": "binary"}) for bits, group in COUNTERS),
]


def kinds():
    return [make_kind(key, bits=bits) for key in KEYS for bits in ((1, 4, 8) if key == "packed" else (8,))]


@pytest.mark.parametrize(("key", "options"), MADE, ids=lambda value: str(value).strip("{}"))
def test_tables_take_what_the_formulas_say(key, options):
    shapes = SHAPES if "bits_per_value" in options else [*SHAPES, Shape(1, 1)]
    computed = make_kind(key, **options).costs(shapes, LOAD)
    batch = [Bags.of(shape, LOAD, seed) for seed, shape in enumerate(shapes)]
    measured = measure(key, batch, [shape.dim for shape in shapes], **options)
    assert measured.table_bytes == computed.table
    # Adagrad of torch counts steps in a float32 a table.
    assert computed.state <= measured.state_bytes <= computed.state + 4 * len(shapes)
    # How many distinct rows a batch has is a matter of chance, for int8; the rest is exact.
    assert measured.gradient_bytes == pytest.approx(computed.gradient, rel=0.01 if key == "int8" else 0)
    # The names, shapes and types of tensors take kilobytes.
    assert computed.checkpoint <= measured.checkpoint_bytes < computed.checkpoint + 20_000
    # The formula is of native_cpu; other backends unpack a mebibyte of rows at a time.
    chunks = 25_000_000 if key == "packed" and select("cpu").name != "native_cpu" else 0
    assert measured.peak_bytes == pytest.approx(computed.peak, rel=0.1, abs=1_500_000 + chunks)


@pytest.mark.parametrize(("bits", "group", "code"), LARGE_BATCHES)
def test_the_peak_of_a_batch_that_outweighs_its_table_is_that_of_the_formula(bits, group, code):
    shape, load = Shape(1000, 256), Load(20_000, 2)
    options = {"bits": bits, "bits_per_value": group, "code": code}
    measured = measure("packed", [Bags.of(shape, load)], [shape.dim], **options)
    chunks = 0 if select("cpu").name == "native_cpu" else 25_000_000
    computed = make_kind("packed", **options).costs([shape], load)
    assert (measured.gradient_bytes, measured.state_bytes) == (computed.gradient, computed.state)
    assert measured.peak_bytes == pytest.approx(computed.peak, rel=0.1, abs=chunks)


@given(
    rows=st.integers(1, 10**6), dim=st.integers(1, 300), load=st.builds(Load, st.integers(1, 50), st.integers(1, 50))
)
def test_a_step_holds_table_gradient_and_state_and_one_table_more_never_costs_less(rows, dim, load):
    for kind in kinds():
        one = kind.costs([Shape(rows, dim)], load)
        two = kind.costs([Shape(rows, dim), Shape(5, 8)], load)
        assert one.peak >= one.table + one.gradient + one.state
        assert one.checkpoint == one.table + one.state
        assert all(more >= less for more, less in zip(two.plain().values(), one.plain().values(), strict=True))


@given(rows=st.integers(1, 10**6), dim=st.integers(1, 300))
def test_more_rows_and_more_columns_never_cost_less(rows, dim):
    for kind in kinds():
        less, taller, wider = (
            kind.costs([shape], LOAD) for shape in (Shape(rows, dim), Shape(rows + 1, dim), Shape(rows, dim + 1))
        )
        for other in (taller, wider):
            assert other.table > less.table or kind.key == "packed"
            assert all(b >= a for a, b in zip(less.plain().values(), other.plain().values(), strict=True))


def test_tables_are_a_thirty_second_a_half_and_a_quarter_of_fp32():
    shape = Shape(1000, 128)
    sizes = {kind.key: kind.table(shape) for kind in kinds()}
    assert sizes == {
        "fp32": 512_000,
        "fp16": 256_000,
        "int8": 128_000 + 8 * 1000,
        "char": 128_000,
        "packed": 512_000 // 32,
    }


@pytest.mark.parametrize(("bits", "a_weight"), [(1, 0), (2, 1), (8, 7)])
def test_packed_state_is_the_bits_above_the_first_and_a_word_a_row(bits, a_weight):
    assert make_kind("packed", bits=bits).state(Shape(1000, 64)) == 1000 * 64 * a_weight // 8 + 4000 + 64


def test_what_optimizers_of_floats_keep_for_a_weight_and_a_row():
    shape = Shape(1000, 64)
    states = {name: make_kind("fp32", optimizer=name).state(shape) for name in OPTIMIZERS}
    assert states == {"adagrad": 4 * 64_000, "rowwise-adagrad": 4000, "adam": 8 * 64_000, "sgd": 0}


@given(rows=st.integers(1, 1000), entries=st.integers(1, 1000))
def test_distinct_rows_are_at_most_the_ids_and_the_rows(rows, entries):
    assert 1 <= Load(entries, 1).distinct(rows) <= min(rows, entries)
    assert Load(1, 1).distinct(rows) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "int4"}, "kind is 'int4'; it must be one of fp32, fp16, int8, char, packed"),
        ({"key": "packed", "bits": 9}, "--bits is 9; it must be in 1..8"),
        ({"key": "packed", "bits_per_value": 3}, "bits_per_value is 3; it must be 1, 2, 4, 8, 16 or 32"),
        ({"key": "packed", "code": "gray"}, "code is 'gray'; it must be 'thermometer' or 'binary'"),
        ({"key": "packed", "code": "binary"}, "bits_per_value is 1; it must be 2, 4 or 8 with code='binary'"),
        (
            {"key": "packed", "bits": 4, "bits_per_value": 4, "code": "binary"},
            "bits is 4; it must be at most 2 for a table of 4 bits a value",
        ),
        ({"key": "fp32", "optimizer": "lion"}, "--optimizer is 'lion'; it must be one of adagrad, rowwise-adagrad"),
    ],
)
def test_what_there_is_not_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        make_kind(**options)
