"""The operators under torch's own checks, and under torch.compile."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from packedbag import PackedEmbedding, PackedEmbeddingBag
from packedbag.optim import CounterSGD
from tests.devices import seeded

# Dynamo makes an instance of every autograd function that it traces, and, where there is a GPU, imports what is
# compiled by torch.jit: torch itself warns of both.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
]

V, D = 30, 70
INDICES = torch.randint(0, V, (4, 5), generator=seeded(1))
FLAT, OFFSETS = INDICES.flatten(), torch.tensor([0, 3, 3, 11])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def bag_arguments(module, mode, offsets, weights, dtype):
    indices = INDICES if offsets is None else FLAT
    return (module.words, indices, offsets, module.row_scale, D, mode, 3, False, "skip", weights, dtype)


@pytest.mark.parametrize("offsets", [None, OFFSETS])
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("sum", torch.float32),
        ("mean", torch.bfloat16),
        ("sum", torch.int32),
        ("majority", torch.uint32),
        ("max", torch.float16),
    ],
)
def test_opcheck_of_bag(mode, dtype, offsets):
    torch.library.opcheck(
        torch.ops.packedbag.bag.default, bag_arguments(PackedEmbeddingBag(V, D), mode, offsets, None, dtype)
    )


@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_opcheck_of_the_weight_gradient(offsets):
    module = PackedEmbeddingBag(V, D, scale="row")
    *common, _, _ = bag_arguments(module, "mean", offsets, None, None)
    torch.library.opcheck(torch.ops.packedbag.weight_gradient.default, (*common, torch.randn(4, D)))


def test_opcheck_of_sink_push():
    module = PackedEmbeddingBag(V, D)
    module.sink.set_owner(module)  # opcheck pushes more often than an optimizer would leave undrained
    arguments = (module.sink.handle, INDICES, torch.zeros(0, dtype=torch.int64), None, torch.randn(4, D))
    torch.library.opcheck(torch.ops.packedbag.sink_push.default, arguments)


def both(module, function):
    """Return ``function``, and it compiled, as functions of the same arguments."""
    return function, torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("scale", [None, "table"])
@pytest.mark.parametrize("mode", ["sum", "mean", "majority", "max"])
def test_a_compiled_module_gives_the_same_values_and_the_same_sink(mode, scale):
    module = PackedEmbeddingBag(V, D, mode=mode, scale=scale, padding_idx=2)
    eager, compiled = both(module, lambda i: module(i))
    sinks = []
    for function in (eager, compiled):
        module.anchor.grad = None
        module.sink.clear()
        for step in range(2):
            out = function((INDICES + step) % V)
            out.pow(2).sum().backward()
        assert len(module.sink.parts) == 2
        sinks.append((out.detach(), module.anchor.grad, module.sink.drain()))
    (out, anchor, gradients), (out_compiled, anchor_compiled, gradients_compiled) = sinks
    assert torch.equal(out, out_compiled)
    assert torch.equal(anchor, anchor_compiled)
    for name in ("rows", "bags", "grad", "counts", "columns"):
        mine, theirs = getattr(gradients, name), getattr(gradients_compiled, name)
        assert (mine is None and theirs is None) or torch.equal(mine, theirs), name


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_inductor_compiles_the_whole_graph_with_weights_and_offsets():
    if INDICES.is_cuda:
        pytest.importorskip("triton", reason="inductor compiles for a GPU with Triton")
        if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            pytest.skip("Triton needs Python.h")
    module = PackedEmbeddingBag(V, D, scale="table")
    weights = torch.randn(20, requires_grad=True)

    def loss(w):
        return module(FLAT, OFFSETS, w).tanh().sum()

    loss(weights).backward()
    expected, expected_push = weights.grad.clone(), module.sink.drain()
    weights.grad = module.anchor.grad = None
    torch.compile(loss, fullgraph=True)(weights).backward()
    torch.testing.assert_close(weights.grad, expected)
    torch.testing.assert_close(module.sink.drain().grad, expected_push.grad)


@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_two_identical_calls_stay_two_pushes_when_compiled(offsets):
    module = PackedEmbeddingBag(V, D)
    indices = INDICES if offsets is None else FLAT
    _, compiled = both(module, lambda: (module(indices, offsets) + module(indices, offsets)).sum())
    compiled().backward()
    assert len(module.sink.parts) == 2
    assert module.sink.parts[0].grad.sum() == 4 * D


def train_for_four_steps(compile_it):
    torch.manual_seed(0)
    module = PackedEmbedding(V, D)
    optimizer = CounterSGD([module.anchor], lr=0.3, seed=5)
    eager, compiled = both(module, lambda i: module(i).sum(1))
    function = compiled if compile_it else eager
    for step in range(4):
        optimizer.zero_grad()
        function((INDICES + step) % V).square().sum().backward()
        optimizer.step()
    return module.words


def test_compiled_training_equals_eager_training_bit_for_bit():
    assert torch.equal(train_for_four_steps(False), train_for_four_steps(True))


def test_no_gradient_means_no_autograd_node():
    module = PackedEmbeddingBag(V, D)
    with torch.no_grad():
        assert module(INDICES).grad_fn is None
    assert module(INDICES).grad_fn is not None
