"""Counts on the wire: packed in as few bits as they need, and added as they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag.adapters.torchrec_requirement import MissingTorchRecError, import_torchrec

try:
    import_torchrec()
except MissingTorchRecError as error:
    pytest.skip(f"TorchRec is not installed ({error})", allow_module_level=True)

from packedbag.adapters.torchrec.wire import CountCodec, Lanes, pack_counts, unpack_counts
from packedbag.core.footprint import count_bits

WIDTHS = (1, 2, 4, 8, 16)


def counts(bits: int, columns: int, seed: int, most: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    top = (1 << bits) - 1 if most is None else most
    return torch.randint(0, top + 1, (5, columns), generator=generator).float()


@pytest.mark.parametrize(
    ("longest", "bits"),
    [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (15, 4), (16, 8), (255, 8), (256, 16), (65_535, 16), (65_536, 32)],
)
def test_counts_of_a_bag_take_as_few_bits_as_its_length_needs(longest: int, bits: int) -> None:
    assert count_bits(longest) == bits


@given(bits=st.sampled_from(WIDTHS), elements=st.integers(0, 9), seed=st.integers(0, 2**32))
def test_packed_counts_come_back(bits: int, elements: int, seed: int) -> None:
    lanes = Lanes(bits)
    given_counts = counts(bits, elements * lanes.per_element, seed)
    packed = pack_counts(given_counts, lanes)
    assert packed.dtype == lanes.dtype
    assert packed.shape == (5, elements)
    assert packed.nbytes * 8 == given_counts.numel() * bits
    assert unpack_counts(packed, lanes).equal(given_counts)


@given(bits=st.sampled_from(WIDTHS), ranks=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_packed_parts_add_up_without_running_over(bits: int, ranks: int, seed: int) -> None:
    lanes = Lanes(bits)
    total = counts(bits, 6 * lanes.per_element, seed)
    # Parts whose totals take every value up to the largest that the width holds.
    shares = [(total / ranks).floor() for _ in range(ranks - 1)]
    parts = [*shares, total - sum(shares)]
    added = sum((pack_counts(part, lanes) for part in parts[1:]), start=pack_counts(parts[0], lanes))
    assert unpack_counts(added, lanes).equal(total)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("columns", [1, 7, 8, 33, 100])
@pytest.mark.parametrize("bits", [*WIDTHS, 32])
def test_a_reduce_scatter_gets_back_what_it_sent_whatever_the_columns(bits: int, columns: int, even: bool) -> None:
    codec = CountCodec()
    batches = [counts(min(bits, 16), columns, seed) for seed in (1, 2)]
    codec.begin(bits, even=even)
    sent = [codec.encode(batch) for batch in batches]  # the second before the first is received
    if not even:
        assert all(each.shape == batch.shape for each, batch in zip(sent, batches, strict=True))
    for each, batch in zip(sent, batches, strict=True):
        assert codec.decode(each).equal(batch)


@pytest.mark.parametrize("bits", [*WIDTHS, 32])
@pytest.mark.parametrize("dims", [[64, 32], [100, 7], [1, 3]])
def test_both_sides_of_an_all_to_all_agree_on_sizes(bits: int, dims: list[int]) -> None:
    for rank, columns in enumerate(dims):
        codec = CountCodec()
        codec.begin(bits, even=True)
        context = codec.create_context()
        batch = counts(min(bits, 16), columns, rank)
        padded, padding = codec.padded_size(batch, dims, rank, context)
        assert padded == columns + padding == context.padded_dim_sum_per_rank[rank]
        sent = codec.encode(torch.nn.functional.pad(batch, (0, padding)), context)
        assert len(sent) == codec.calc_quantized_size(padded * len(batch), context)
        assert codec.decode(sent, context).view(len(batch), padded)[:, :columns].equal(batch)
