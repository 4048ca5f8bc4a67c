"""SignMomentum: the rule against plain NumPy, what it leaves alone, rounding, learning, the same bits everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag import PackedEmbedding, PackedEmbeddingBag
from packedbag.backends import available
from packedbag.core.philox import halfwords
from packedbag.optim import SignMomentum, packed_parameters
from tests.cuda_on_cpu import machine
from tests.devices import seeded
from tests.optim.problems import D, assert_same, batch, make_model, snapshot, train
from tests.strategies import dims, make_gradient, seeds

F32 = np.float32
STATE_DTYPES = ("float32", "int8")


def mean_square(g):
    """Return the mean of g^2, added in the lanes that DESIGN 2.1 prescribes."""
    lanes = [F32(0)] * 32
    for column, value in enumerate(g):
        lanes[column % 32] = lanes[column % 32] + value * value
    for half in (16, 8, 4, 2, 1):
        lanes = [lanes[lane] + lanes[lane + half] for lane in range(half)]
    return min(lanes[0] / F32(len(g)), np.finfo(F32).max)


class Oracle:
    """One row under the rule as the docstring states it: scalars of float32, one operation after another."""

    def __init__(self, signs, row, lr, threshold, state_dtype, seed):
        self.signs, self.row, self.lr, self.threshold, self.seed = list(signs), row, F32(lr), F32(threshold), seed
        self.averages, self.small = [F32(0)] * len(self.signs), state_dtype == "int8"
        self.statistic, self.touches = F32(0), 0

    def step(self, g, number):
        old = (self.statistic.view(np.uint32) & np.uint32(0xFFFFFF00)).view(F32)  # its low 8 bits hold the touches
        self.touches = min(self.touches + 1, 100)
        self.statistic = old + (mean_square(g) - old) / F32(self.touches)
        size = np.sqrt(self.statistic) + F32(1e-8)
        random = halfwords(np.array([self.row]), len(g), seed=self.seed, step=number, table=0)[0]
        for j, value in enumerate(g):
            x = min(max(value / size, F32(-8192)), F32(8192))
            m = self.averages[j] + (x - self.averages[j]) * self.lr
            if self.small:
                quanta = min(abs(m * F32(128)), F32(128))
                whole = np.trunc(quanta)
                up = F32(random[j]) + F32(0.5) < F32(65536) * (quanta - whole)
                m = np.copysign(min(whole + F32(up), F32(127)), m) / F32(128)
            self.averages[j] = m
            if abs(m) > self.threshold and (m > 0) == (self.signs[j] > 0):
                self.signs[j] = -self.signs[j]


def signs_of(module):
    return torch.where(module.to_bool(), 1.0, -1.0)


def averages_of(optimizer, module):
    """Return the averages (V, D) as numbers."""
    kept = optimizer.state[module.anchor]["averages"][:, : module.embedding_dim]
    return kept / 128 if kept.dtype == torch.int8 else kept


def take_step(module, optimizer, rows, gradient):
    """Take a step in which each of ``rows`` has its row of ``gradient``."""
    optimizer.zero_grad()
    module(torch.as_tensor(rows)).backward(torch.as_tensor(gradient))
    optimizer.step()


def make_table(dim, lr, *, rows=8, **options):
    torch.manual_seed(0)
    module = PackedEmbedding(rows, dim)
    return module, SignMomentum([module.anchor], lr, **{"seed": 5, **options})


@given(
    dim=dims,
    lr=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    threshold=st.sampled_from([0.0, 0.05, 0.4, 0.9]),
    state_dtype=st.sampled_from(STATE_DTYPES),
    kinds=st.lists(st.sampled_from(["normal", "spread", "zeros", "sparse", "huge", "subnormal", "equal"]), max_size=4),
    seed=seeds,
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_step_follows_the_rule_exactly(dim, lr, threshold, state_dtype, kinds, seed):
    module, optimizer = make_table(dim, lr, threshold=threshold, state_dtype=state_dtype, seed=seed)
    rows = [5, 0]
    oracles = [Oracle(signs_of(module)[row].tolist(), row, lr, threshold, state_dtype, seed) for row in rows]
    rng = np.random.default_rng(seed)
    for number, kind in enumerate(["normal", *kinds]):
        gradient = make_gradient(rng, (2, dim), kind)
        take_step(module, optimizer, rows, gradient)
        for oracle, g in zip(oracles, gradient, strict=True):
            oracle.step(g, number)
    assert signs_of(module)[rows].tolist() == [oracle.signs for oracle in oracles]
    found = averages_of(optimizer, module)[rows].cpu().numpy()
    np.testing.assert_array_equal(found, np.array([oracle.averages for oracle in oracles]))


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_three_steps_by_hand(state_dtype):
    module, optimizer = make_table(4, 0.5, threshold=0.3, state_dtype=state_dtype)
    module.words[1] = 0b0011
    # S = 4: the gradient is +-1 times its row's size, of which half goes into the average. Columns 0 and 3 fall
    # with their weight.
    take_step(module, optimizer, [1], [[2.0, -2.0, 2.0, -2.0]])
    assert averages_of(optimizer, module)[1].tolist() == [0.5, -0.5, 0.5, -0.5]
    assert signs_of(module)[1].tolist() == [-1, 1, -1, 1]
    # S = 4 + (0 - 4) / 2: averages halve, and no weight points along with its average any more.
    take_step(module, optimizer, [1], [[0.0] * 4])
    assert averages_of(optimizer, module)[1].tolist() == [0.25, -0.25, 0.25, -0.25]
    # S = 2 + (8 - 2) / 3 = 4: x is +-1.41; only what passes the threshold on the other side flips back.
    root = 8**0.5
    take_step(module, optimizer, [1], [[-root, -root, root, root]])
    expected = torch.tensor([-0.582, -0.832, 0.832, 0.582])
    torch.testing.assert_close(averages_of(optimizer, module)[1], expected, rtol=0, atol=0.01)
    assert signs_of(module)[1].tolist() == [1, 1, -1, -1]


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_a_weight_flips_where_its_average_opposes_it_beyond_the_threshold_and_nowhere_else(state_dtype, threshold):
    module, optimizer = make_table(100, 0.2, rows=50, threshold=threshold, state_dtype=state_dtype)
    flips = 0
    for number in range(10):
        before = signs_of(module)
        take_step(module, optimizer, range(50), torch.randn(50, 100, generator=seeded(number)))
        opposed = averages_of(optimizer, module) * before > threshold
        assert torch.equal(signs_of(module), torch.where(opposed, -before, before))
        flips += int(opposed.sum())
    assert 50 < flips < 20_000  # both cases are there


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_the_size_of_a_tables_gradients_does_not_matter(state_dtype):
    results = []
    for factor in (1.0, 2.0**20):
        module, optimizer = make_table(70, 0.1, state_dtype=state_dtype)
        for number in range(4):
            take_step(module, optimizer, [1, 6], factor * torch.randn(2, 70, generator=seeded(number)))
        results.append([module.words.clone(), averages_of(optimizer, module)])
    assert_same(*results)


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_only_rows_that_occur_change(state_dtype):
    module = PackedEmbeddingBag(1000, D, scale="row", padding_idx=7)
    optimizer = SignMomentum([module.anchor], 0.5, state_dtype=state_dtype, seed=0)
    touched = torch.tensor([3, 500, 999])
    words = module.words.clone()
    for _ in range(3):
        module(torch.tensor([[3, 500, 7, 999]])).sum().backward()
        optimizer.step()
    others = torch.ones(1000, dtype=torch.bool)
    others[touched] = False
    state = optimizer.state[module.anchor]
    assert torch.equal(words[others], module.words[others])
    assert not torch.equal(words[touched], module.words[touched])
    for name in ("averages", "row_state", "scale_sum"):
        assert not state[name][others].any()
        assert state[name][touched].any(-1).all()
    assert (state["row_state"][touched] & 0xFF).tolist() == [3, 3, 3]


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_the_tail_stays_zero_in_words_and_averages(state_dtype):
    model = make_model()
    optimizer = SignMomentum(packed_parameters(model), 0.5, state_dtype=state_dtype, seed=0)
    train(model, [optimizer], range(4))
    for name in ("item", "history"):
        averages = optimizer.state[model[name].anchor]["averages"]
        assert averages[:, :D].any()
        assert not averages[:, D:].any()
        assert not (model[name].words[:, -1] & ~((1 << (D % 32)) - 1)).any()


def test_a_rate_of_zero_moves_nothing():
    module, optimizer = make_table(D, 0.0, threshold=0.0, state_dtype="int8")
    before = module.words.clone()
    take_step(module, optimizer, range(8), torch.randn(8, D))
    assert torch.equal(before, module.words)
    assert not averages_of(optimizer, module).any()


def test_int8_averages_saturate():
    module, optimizer = make_table(64, 1.0, state_dtype="int8", threshold=0.99)
    module.words[0] = torch.tensor([0b01, 0b10])
    gradient = torch.zeros(1, 64)
    gradient[0, 0], gradient[0, 32] = 3.0, -3.0  # each 5.7 times the row's root mean square
    take_step(module, optimizer, [0], gradient)
    kept = optimizer.state[module.anchor]["averages"][0]
    assert kept[[0, 32]].tolist() == [127, -127]
    assert not kept[1:32].any()
    assert module.to_bool()[0].nonzero().flatten().tolist() == [32, 33]  # beyond 0.99 even so: both flipped


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_int8_averages_are_rounded_without_bias(sign):
    module, optimizer = make_table(128, 0.1, rows=1000, state_dtype="int8")
    take_step(module, optimizer, range(1000), torch.full((1000, 128), sign))  # 0.1 * 128 quanta: 12.8
    kept = optimizer.state[module.anchor]["averages"].float() * sign
    assert set(kept.unique().tolist()) == {12.0, 13.0}
    assert abs(kept.mean().item() - 12.8) < 0.006  # 5 standard errors of 128 000 draws


def test_sums_that_overflowed_neither_poison_averages_nor_flip_without_direction():
    module, optimizer = make_table(32, 1.0, rows=3)
    before = module.words.clone()
    huge = torch.full((128, 32), 3e38)
    huge[64:, :16] *= -1  # runs of 64: the first 16 columns are inf - inf, the others inf
    take_step(module, optimizer, [2] * 128, huge)
    assert averages_of(optimizer, module)[2].tolist() == [0.0] * 16 + [8192.0] * 16
    assert (module.words[2].item() ^ before[2].item()) & 0xFFFF == 0
    assert not module.to_bool()[2, 16:].any()


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_a_packed_table_learns_a_rule_that_a_frozen_one_cannot(state_dtype):
    """Each of 64 items has a target of D signs, seen through noise; the only parameters are the bits."""
    torch.manual_seed(0)
    module = PackedEmbedding(64, 32)
    target = torch.where(torch.rand(64, 32) > 0.5, 1.0, -1.0)
    optimizer = SignMomentum(packed_parameters(module), 0.05, state_dtype=state_dtype, seed=0)
    before = (signs_of(module) == target).float().mean().item()
    for _ in range(200):
        noise = 2 * torch.randn(64, 32)  # hides the sign of a step's gradient in a third of the cases
        take_step(module, optimizer, range(64), noise - target)
    after = (signs_of(module) == target).float().mean().item()
    assert before < 0.6
    assert after > 0.97


def some_steps(state_dtype, scale, *, seed=3):
    """Return what four steps leave of two tables: words, scales, state."""
    model = make_model(scale=scale)
    optimizer = SignMomentum(packed_parameters(model), 0.1, state_dtype=state_dtype, seed=seed)
    for number in range(4):
        optimizer.zero_grad()
        items, histories, _ = batch(number)
        # The same gradients in: dense layers and weighted sums may differ in the last bit between backends.
        torch.manual_seed(number)
        for name, indices in (("item", items), ("history", histories)):
            out = model[name](indices)
            out.backward(torch.randn_like(out))
        optimizer.step()
    assert optimizer.param_groups[0]["step"] == 4
    return snapshot(model, optimizer)


@pytest.mark.host
@pytest.mark.parametrize("scale", ["table", "row"])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("backend", [name for name in available("cpu") if name != "reference"])
def test_every_backend_trains_the_same_bits(backend, state_dtype, scale, monkeypatch):
    results = []
    for name in (backend, "reference"):
        monkeypatch.setenv("PACKEDBAG_BACKEND", name)
        results.append(some_steps(state_dtype, scale))
    assert_same(*results)


@pytest.mark.host
@pytest.mark.skipif(machine.missing() is not None, reason=f"the emulator of CUDA: {machine.missing()}")
@pytest.mark.parametrize("scale", ["table", "row"])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_a_gpu_trains_the_same_bits(state_dtype, scale):
    expected = some_steps(state_dtype, scale)
    with machine.serving_the_cpu() as backend:
        assert backend.deferred
        assert_same(some_steps(state_dtype, scale), expected)


def test_two_runs_with_one_seed_are_identical_whatever_the_number_of_threads():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            module = PackedEmbeddingBag(5000, 128)
            optimizer = SignMomentum([module.anchor], lr=0.1, state_dtype="int8", seed=2)
            for step in range(3):
                generator = seeded(step)
                out = module(torch.randint(0, 5000, (600, 20), generator=generator))
                out.backward(torch.randn(out.shape, generator=generator))
                optimizer.step()
            results.append(snapshot(module, optimizer))
    finally:
        torch.set_num_threads(before)
    assert_same(*results)


def test_a_seed_matters_to_int8_averages_alone():
    assert_same(some_steps("float32", "table", seed=1), some_steps("float32", "table", seed=2))
    with pytest.raises(AssertionError):
        assert_same(some_steps("int8", "table", seed=1), some_steps("int8", "table", seed=2))


def test_int8_averages_of_two_tables_are_rounded_by_numbers_of_their_own():
    modules = [PackedEmbedding(8, 128), PackedEmbedding(8, 128)]
    optimizer = SignMomentum([module.anchor for module in modules], 0.1, state_dtype="int8", seed=0)
    for module in modules:
        module(torch.arange(8)).sum().backward()
    optimizer.step()
    assert not torch.equal(*(averages_of(optimizer, module) for module in modules))
