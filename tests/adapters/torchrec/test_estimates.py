"""TorchRec's planner with estimates of packed tables: what it counts, what it proposes, and what ranks then hold."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")
try:
    from packedbag.adapters.torchrec import (
        PackedEmbeddingBagCollection,
        PackedEmbeddingBagCollectionSharder,
        PackedEmbeddingCollection,
        PackedEmbeddingCollectionSharder,
    )
except ImportError as error:
    if type(error).__name__ != "MissingTorchRecError":
        raise
    pytest.skip(str(error), allow_module_level=True)

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, Partitioner, PlannerError, Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from packedbag.adapters.torchrec.estimates import (
    PackedPerfEstimator,
    PackedStorageEstimator,
    packed_planner,
)
from packedbag.adapters.torchrec.features import INT32_ROWS
from packedbag.core import footprint as formulas
from packedbag.core.errors import ArgumentError
from tests.distributed.ranks import assert_ok

BATCH, LENGTH = 64, 20
SHARDERS = [
    PackedEmbeddingBagCollectionSharder(),
    PackedEmbeddingCollectionSharder(),
    EmbeddingBagCollectionSharder(),
]
#: Rows and columns: one that splits at words unevenly, one of a single word, and one that is large.
SHAPES = {"uneven": (100_000, 200), "word": (5000, 20), "large": (50_000_000, 256)}
BOTH_DEVICES = pytest.mark.parametrize("device", ["cpu", "cuda"])
WORLDS = pytest.mark.parametrize("world", [2, 4, 8])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """TorchRec tells what it plans."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def configs(shapes=SHAPES):
    return [
        EmbeddingBagConfig(num_embeddings=rows, embedding_dim=dim, name=name, feature_names=[f"f_{name}"])
        for name, (rows, dim) in shapes.items()
    ]


def collection(shapes=SHAPES, **options):
    return PackedEmbeddingBagCollection(configs(shapes), device="meta", seed=0, **options)


def told(kinds=None, shapes=SHAPES, **options):
    """Return the same constraints for each table."""
    options = {"pooling_factors": [float(LENGTH)], "sharding_types": kinds, **options}
    return {name: ParameterConstraints(**options) for name in shapes}


def planned(planner, module=None):
    """Return the options that a planner chose for each table, by name."""
    planner.plan(collection() if module is None else module, SHARDERS)
    return {option.name: option for option in planner._best_plan}


def on_device(storage, device):
    return storage.hbm if device == "cuda" else storage.ddr


@WORLDS
@BOTH_DEVICES
@pytest.mark.parametrize("kind", [None, "table_wise", "row_wise", "column_wise", "table_row_wise"])
def test_what_a_plan_counts_for_a_rank_is_the_formula(world, device, kind):
    planner = packed_planner(
        Topology(world, device, hbm_cap=10**12, ddr_cap=10**12),
        bits=4,
        batch_size=BATCH,
        constraints=told([kind] if kind else None),
    )
    for option in planned(planner).values():
        rows, dim = SHAPES[option.name]
        held = 0
        for shard in option.shards:
            r, c = shard.size
            held += r * c
            words = 4 * -(-c // 32)
            bags = world * BATCH
            ids = bags * LENGTH * r / rows
            buffers = -(-4 * ids // 1) + 4 * bags + bags * c * 1 + bags * c * 4  # 20 ids are counted in 8 bits
            if option.sharding_type == "data_parallel":
                buffers -= bags * c
            if c < dim:
                buffers += 132 * formulas.distinct_gradients(r, ids, bags) + 4 * formulas.distinct_rows(r, ids)
            state = 4 if shard.offset[1] == 0 else 0
            assert on_device(shard.storage, device) == r * (4 * words + state) + buffers
            assert on_device(shard.storage, {"cpu": "cuda", "cuda": "cpu"}[device]) == 0
        assert held == rows * dim * (world if option.sharding_type == "data_parallel" else 1)


@WORLDS
@pytest.mark.parametrize("kind", ["column_wise", "table_column_wise"])
@pytest.mark.parametrize("least", [None, 4, 32, 48, 96])
def test_columns_are_split_at_words_with_at_most_one_part_a_rank(world, kind, least):
    local = world // 2
    topology = Topology(world, "cuda", local_world_size=local, hbm_cap=10**12)
    for option in planned(packed_planner(topology, constraints=told([kind], min_partition=least))).values():
        dim = SHAPES[option.name][1]
        sizes, ranks = [s.size[1] for s in option.shards], [s.rank for s in option.shards]
        assert sum(sizes) == dim
        assert [s.offset[1] for s in option.shards] == [sum(sizes[:i]) for i in range(len(sizes))]
        assert all(size % 32 == 0 and size >= (least or 128) for size in sizes[:-1])
        assert len(set(ranks)) == len(ranks)
        if kind == "table_column_wise":
            assert len({rank // local for rank in ranks}) == 1


@pytest.mark.parametrize("pooled", [True, False])
def test_columns_are_split_at_eight_binary_numbers(pooled):
    values = {"bits_per_value": 8, "code": "binary"}
    shapes = {"a": (5000, 192)}
    if pooled:
        module = collection(shapes, **values)
    else:
        tables = [EmbeddingConfig(num_embeddings=5000, embedding_dim=192, name="a", feature_names=["f"])]
        module = PackedEmbeddingCollection(tables, device="meta", seed=0, **values)
    constraints = told(["column_wise"], shapes, min_partition=32)
    (option,) = planned(packed_planner(Topology(8, "cpu"), constraints=constraints), module).values()
    assert [shard.size[1] for shard in option.shards] == [64, 64, 64]  # 32 columns are 4 numbers of 8 bits


def test_a_rank_that_is_free_for_both_parts_gets_one():
    """TorchRec's own partitioner puts both on rank 1, as rank 0 has a table that takes longer than they."""
    shapes = {"busy": (10**6, 64), "split": (1000, 128)}
    constraints = {
        "busy": ParameterConstraints(sharding_types=["table_wise"], pooling_factors=[500.0]),
        "split": ParameterConstraints(sharding_types=["column_wise"], pooling_factors=[1.0], min_partition=64),
    }
    for partitioner, ranks in ((None, [0, 1]), (GreedyPerfPartitioner(), None)):
        planner = packed_planner(Topology(2, "cuda"), constraints=constraints, partitioner=partitioner)
        if ranks is None:
            with pytest.raises(PlannerError, match=r"table 'split' has columns on ranks \[1, 1\]"):
                planned(planner, collection(shapes))
        else:
            assert sorted(s.rank for s in planned(planner, collection(shapes))["split"].shards) == ranks


class AllOnTheFirst(Partitioner):
    """Puts every shard on rank 0."""

    def partition(self, proposal, storage_constraint):
        for option in proposal:
            for shard in option.shards:
                shard.rank = 0
        return proposal


def test_another_partitioner_is_held_to_one_part_a_rank():
    topology = Topology(2, "cpu")
    with pytest.raises(PlannerError, match="columns on ranks"):
        planned(packed_planner(topology, constraints=told(["column_wise"]), partitioner=AllOnTheFirst()))
    by_table = packed_planner(topology, constraints=told(["table_wise"]), partitioner=AllOnTheFirst())
    assert {s.rank for option in planned(by_table).values() for s in option.shards} == {0}
    planned(packed_planner(topology, constraints=told(), partitioner=GreedyPerfPartitioner()))


def test_sequences_are_split_in_parts_of_one_width():
    tables = [
        EmbeddingConfig(num_embeddings=rows, embedding_dim=192, name=f"s{rows}", feature_names=[f"q{rows}"])
        for rows in (100, 5000)
    ]
    module = PackedEmbeddingCollection(tables, device="meta", seed=0)
    names = {each.name: (each.num_embeddings, 192) for each in tables}
    constraints = told(["column_wise"], names)
    constraints["s100"].min_partition = 32
    planner = packed_planner(Topology(4, "cuda"), batch_size=BATCH, constraints=constraints)
    for option in planned(planner, module).values():
        assert [s.size[1] for s in option.shards] == [192]  # 128, TorchRec's least, does not divide 192
    for each in constraints.values():
        each.min_partition = 64
    planner = packed_planner(Topology(4, "cuda"), batch_size=BATCH, constraints=constraints)
    for option in planned(planner, module).values():
        assert [s.size[1] for s in option.shards] == [64, 64, 64]
        rows, ids = option.tensor.shape[0], 4 * BATCH * LENGTH
        rows_back = ids * 64 // 8 + ids * 64 * 4  # a bit a weight, and float32 gradients
        statistics = 136 * formulas.distinct_rows(rows, ids)
        expected = rows * 8 * 8 + 4 * ids + 4 * 4 * BATCH + rows_back + statistics
        assert [s.storage.hbm for s in option.shards] == [expected + 4 * rows, expected, expected]


@BOTH_DEVICES
def test_a_table_that_fits_no_device_as_fp32_fits_packed(device):
    rows, dim = 10**8, 128
    shapes = {"large": (rows, dim)}
    topology = Topology(2, device, hbm_cap=16 * 10**9, ddr_cap=16 * 10**9)  # fp32 takes 51 GB
    floats = EmbeddingBagCollection(tables=configs(shapes), device=torch.device("meta"))
    with pytest.raises(PlannerError, match="insufficient storage"):
        EmbeddingShardingPlanner(
            topology=topology,
            constraints=told(shapes=shapes),
            storage_reservation=FixedPercentageStorageReservation(0.15),
        ).plan(floats, SHARDERS)
    planner = packed_planner(topology, constraints=told(["table_wise"], shapes), bits=4)
    (option,) = planned(planner, collection(shapes)).values()
    (shard,) = option.shards
    assert rows * 68 < on_device(shard.storage, device) < rows * 68 * 1.01


@WORLDS
def test_plans_are_not_those_of_fp32(world):
    """A table that must be split as fp32 lies on one rank packed."""
    shapes = {"large": (20_000_000, 256)}
    topology = Topology(world, "cuda", hbm_cap=16 * 10**9)
    reserved = FixedPercentageStorageReservation(0.15)
    both = told(["table_wise", "row_wise"], shapes)
    floats = EmbeddingBagCollection(tables=configs(shapes), device=torch.device("meta"))
    theirs = EmbeddingShardingPlanner(topology=topology, constraints=both, storage_reservation=reserved)
    theirs.plan(floats, SHARDERS)
    assert theirs._best_plan[0].sharding_type == "row_wise"
    ours = packed_planner(topology, constraints=told(["table_wise"], shapes))
    (option,) = planned(ours, collection(shapes)).values()
    assert [s.rank for s in option.shards] == [0]


@BOTH_DEVICES
def test_every_type_of_sharding_is_proposed(device):
    planner = packed_planner(Topology(4, device, local_world_size=2), constraints=told())
    planned(planner)
    found = {(option.name, option.sharding_type) for option in planner._enumerator.last_stored_search_space}
    types = set(PackedEmbeddingBagCollectionSharder().sharding_types(device))
    assert found == {(name, kind) for name in SHAPES for kind in types}
    assert "row_wise" in types


def test_tables_that_serve_are_words_alone():
    for options in ({"bits": None}, {"bits": None, "adaptivity": None}):
        planner = packed_planner(Topology(2, "cpu"), constraints=told(["table_wise"]), **options)
        for option in planned(planner).values():
            rows, dim = SHAPES[option.name]
            assert option.shards[0].storage.ddr == rows * 4 * -(-dim // 32)
            assert option.shards[0].perf.bwd_compute == option.shards[0].perf.bwd_comms == 0


def test_state_of_the_optimizer_is_counted_by_its_options():
    sizes = {}
    for bits, adaptivity in ((1, None), (1, "ema"), (2, None), (8, "adagrad")):
        planner = packed_planner(Topology(2, "cpu"), bits=bits, adaptivity=adaptivity, constraints=told(["table_wise"]))
        sizes[bits, adaptivity] = planned(planner)["uneven"].shards[0].storage.ddr
    rows, words = 100_000, 28
    assert sizes[1, "ema"] - sizes[1, None] == 4 * rows
    assert sizes[2, None] - sizes[1, None] == rows * words
    assert sizes[8, "adagrad"] - sizes[1, None] == 7 * rows * words + 4 * rows


def test_times_are_bytes_over_bandwidths():
    topology = Topology(4, "cuda", hbm_mem_bw=1000.0, intra_host_bw=10.0, inter_host_bw=1.0)
    shapes = {"t": (1000, 64)}
    planner = packed_planner(topology, bits=2, batch_size=10, constraints=told(["table_wise"], shapes))
    (option,) = planned(planner, collection(shapes)).values()
    perf = option.shards[0].perf
    ids, bags = 4 * 10 * LENGTH, 4 * 10
    assert perf.fwd_compute == pytest.approx((ids * (4 + 8) + bags * 64 * 4) / 1000)
    touched = formulas.distinct_rows(1000, ids)
    assert perf.bwd_compute == pytest.approx((ids * 64 * 4 + 2 * touched * (16 + 4)) / 1000)
    assert perf.input_dist_comms == pytest.approx((ids * 4 + bags * 4) * 3 / 4 / 10)
    assert perf.fwd_comms == pytest.approx(bags * 64 * 3 / 4 / 10)
    assert perf.bwd_comms == pytest.approx(bags * 64 * 4 * 3 / 4 / 10)


def test_by_rows_inside_of_hosts_most_bytes_stay_there():
    topology = Topology(4, "cuda", local_world_size=2, intra_host_bw=10.0, inter_host_bw=1.0)
    shapes = {"t": (1000, 64)}
    planner = packed_planner(topology, batch_size=10, constraints=told(["table_row_wise"], shapes))
    (option,) = planned(planner, collection(shapes)).values()
    # A rank sums 2 x 10 samples of its neighbour, and sends the other host's 10 of its sums.
    assert option.shards[0].perf.fwd_comms == pytest.approx(20 * 64 / 10 + 10 * 64 / 1)
    assert option.shards[0].perf.bwd_comms == pytest.approx(20 * 256 / 10 + 10 * 256 / 1)


@pytest.mark.parametrize(("factor", "bits"), [(1, 1), (3, 2), (4, 4), (15, 4), (255, 8), (256, 16), (70_000, 32)])
def test_bags_travel_in_bits_of_their_length(factor, bits):
    constraints = told(["row_wise"], pooling_factors=[float(factor)])
    planner = packed_planner(Topology(2, "cpu", inter_host_bw=1.0, intra_host_bw=1.0), constraints=constraints)
    perf = planned(planner)["large"].shards[0].perf
    assert perf.fwd_comms == 512 * 256 * bits / 8
    assert perf.bwd_comms == 512 * 256 * 4


def test_a_majority_travels_in_a_bit_where_all_its_rows_are():
    for kind, bits in (("table_wise", 1), ("row_wise", 8)):
        topology = Topology(2, "cpu", inter_host_bw=1.0, intra_host_bw=1.0)
        planner = packed_planner(topology, constraints=told([kind]))
        perf = planned(planner, collection(majority=["large"]))["large"].shards[0].perf
        assert perf.fwd_comms == 512 * 256 * bits / 8


def test_weighted_bags_travel_as_floats_and_ids_with_their_weights():
    topology = Topology(2, "cpu", inter_host_bw=1.0, intra_host_bw=1.0)
    planner = packed_planner(topology, constraints=told(["table_wise"]))
    perf = planned(planner, collection(is_weighted=True))["large"].shards[0].perf
    assert perf.fwd_comms == 512 * 256 * 4
    assert perf.input_dist_comms == 512 * LENGTH * 8 + 512 * 4


def test_ids_have_64_bits_where_a_table_of_the_collection_needs_them():
    shapes = {"small": (100, 32), "huge": (2**31, 32)}
    topology = Topology(2, "cpu", ddr_cap=10**13, inter_host_bw=1.0, intra_host_bw=1.0)
    planner = packed_planner(topology, constraints=told(["table_wise"], shapes))
    perf = planned(planner, collection(shapes))["small"].shards[0].perf
    assert perf.input_dist_comms == 512 * LENGTH * 8 + 512 * 4


def test_a_table_of_two_features_counts_both_without_constraints():
    table = EmbeddingBagConfig(num_embeddings=100, embedding_dim=32, name="t", feature_names=["a", "b"])
    module = PackedEmbeddingBagCollection([table], device="meta", seed=0)
    planner = packed_planner(Topology(2, "cpu"), batch_size=BATCH)
    assert planned(planner, module)["t"].input_lengths == [1.0, 1.0]


def test_tables_that_are_not_packed_are_left_to_torchrec():
    floats = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(num_embeddings=1000, embedding_dim=64, name="floats", feature_names=["x"])],
        device=torch.device("meta"),
    )
    topology, kinds = Topology(2, "cuda"), told(["table_wise"], ["floats", *SHAPES])
    mixed = planned(packed_planner(topology, constraints=kinds), torch.nn.ModuleList([collection(), floats]))
    theirs = EmbeddingShardingPlanner(
        topology=topology, constraints=kinds, storage_reservation=FixedPercentageStorageReservation(0.15)
    )
    theirs.plan(torch.nn.ModuleList([floats]), SHARDERS)
    (alone,) = theirs._best_plan
    assert mixed["floats"].shards[0].storage == alone.shards[0].storage
    assert mixed["floats"].shards[0].perf == alone.shards[0].perf
    assert len(mixed) == 4


@pytest.mark.parametrize("estimator", [PackedStorageEstimator, PackedPerfEstimator])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, "bits is 9; it must be in 1..8, or None for tables that only serve."),
        ({"bits": 0}, "bits is 0; it must be in 1..8"),
        ({"adaptivity": "adam"}, "adaptivity is 'adam'; it must be 'ema', 'adagrad' or None."),
    ],
)
def test_options_that_no_optimizer_has_are_refused(estimator, options, message):
    with pytest.raises(ArgumentError, match=message.replace(".", r"\.")):
        estimator(Topology(2, "cpu"), **options)


def test_constraints_of_another_number_of_features_are_refused():
    constraints = told(["table_wise"], pooling_factors=[1.0], batch_sizes=[5, 5])
    with pytest.raises(ArgumentError, match="must be for as many in all its lists"):
        planned(packed_planner(Topology(2, "cpu"), constraints=constraints))


def test_without_a_process_group_a_topology_is_asked_for():
    with pytest.raises(ArgumentError, match=r"topology is None; .*init_process_group first"):
        packed_planner()


def test_indices_are_as_wide_as_those_that_are_sent():
    assert formulas.index_bytes(INT32_ROWS - 1) == 4
    assert formulas.index_bytes(INT32_ROWS) == 8


@pytest.mark.parametrize(("world", "local"), [(1, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize(
    "kind",
    ["any", "table_wise", "row_wise", "column_wise", "data_parallel", "table_row_wise", "table_column_wise"],
)
def test_ranks_hold_and_send_what_is_counted(world, local, kind):
    assert_ok("tests.adapters.torchrec.planned", kind, world, local)
