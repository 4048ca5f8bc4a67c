"""The way without the dispatcher gives what the operator gives, and is taken only where nothing watches operators."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import packedbag
from packedbag import PackedEmbeddingBag, backends
from packedbag.backends import registry
from packedbag.core.bounds import BOUNDS
from packedbag.core.modes import MODES
from packedbag.ops import dispatch, schema
from tests.devices import seeded, settled

# A default device is a mode, and where one is active the dispatcher is never passed by.
pytestmark = pytest.mark.host(emulated=True)

V, D = 30, 70
INDICES = torch.randint(0, V, (4, 5), generator=seeded(1))
FLAT, OFFSETS = INDICES.flatten(), torch.tensor([0, 3, 3, 11])
OUTSIDE = torch.tensor([[0, 3], [V, -1]])
COMBINATIONS = [(mode.name, output) for mode in MODES.values() for output in mode.outputs]


@pytest.fixture
def ways(monkeypatch):
    """Return the list of ways taken from now on: "operator" or "direct"."""
    taken, implementation = [], schema.bag

    def direct(*args):
        taken.append("direct")
        return implementation(*args)

    monkeypatch.setattr(schema, "bag", direct)
    watched = dispatch.is_watched

    def note(*args):
        answer = watched(*args)
        if answer and not torch.compiler.is_compiling():
            taken.append("operator")
        return answer

    monkeypatch.setattr(dispatch, "is_watched", note)
    return taken


def through_the_operator(monkeypatch, function):
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "_WATCHERS", None)
        return function()


@pytest.mark.parametrize("name", backends.available("cpu"))
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("mode", "output"), COMBINATIONS)
def test_both_ways_give_the_same(mode, output, bounds, name, monkeypatch, ways):
    monkeypatch.setenv(registry.ENVIRONMENT, name)
    module = PackedEmbeddingBag(V, D, mode=mode, padding_idx=3, bounds=bounds, output_dtype=getattr(torch, output))
    indices = OUTSIDE if bounds in ("clamp", "skip") else INDICES
    cases = [(indices, None), (indices.int(), None), (indices.T, None), (indices[:0], None), (FLAT, OFFSETS)]
    for case in cases:
        direct = module(*case).detach()
        assert ways.pop() == "direct"
        operator = through_the_operator(monkeypatch, lambda case=case: module(*case).detach())
        assert ways.pop() == "operator"
        assert direct.dtype == operator.dtype
        assert torch.equal(direct.view(torch.uint8), operator.view(torch.uint8))


@pytest.mark.parametrize("scale", [None, "row", "table"])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_both_ways_give_the_same_with_weights_and_scales(mode, scale, monkeypatch, ways):
    module = PackedEmbeddingBag(V, D, mode=mode, scale=scale)
    module.scale = module.scale if scale is None else type(module.scale)(torch.rand_like(module.scale))
    for weights in (torch.randn(4, 5), torch.randn(5, 4).T, torch.randn(4, 5).half(), torch.randn(4, 5).double()):
        direct = module(INDICES, None, weights)
        assert ways.pop() == "direct"
        operator = through_the_operator(monkeypatch, lambda w=weights: module(INDICES, None, w))
        assert torch.equal(direct, operator)


def test_weights_that_are_a_negated_view_are_read_negated(ways):
    module = PackedEmbeddingBag(V, D)
    numbers = torch.complex(torch.randn(4, 5), torch.randn(4, 5))
    negated = torch.imag(numbers.conj())
    assert negated.is_neg()
    assert torch.equal(module(INDICES, None, negated), module(INDICES, None, -numbers.imag.contiguous()))
    assert ways == ["operator", "direct"]


def test_both_ways_push_the_same_gradients(monkeypatch):
    found = []
    for run in (lambda f: f(), lambda f: through_the_operator(monkeypatch, f)):
        module = PackedEmbeddingBag(V, D, generator=seeded(2))
        weights = torch.linspace(-1, 1, 20).view(4, 5).requires_grad_()
        run(lambda m=module, w=weights: m(INDICES, None, w).square().sum()).backward()
        found.append((module.sink.drain().grad, module.anchor.grad, weights.grad))
    for direct, operator in zip(*found, strict=True):
        assert torch.equal(direct, operator)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        (OUTSIDE,),
        (INDICES.float(),),
        (torch.tensor(3),),
        (FLAT,),
        (INDICES, OFFSETS),
        (FLAT, torch.tensor([1, 2])),
        (FLAT, torch.tensor([0, 4, 2])),
        (FLAT, torch.tensor([0, 21])),
        (FLAT, torch.tensor([0.0])),
        (INDICES, None, torch.ones(2, 2)),
        (INDICES, None, torch.ones(4, 5, dtype=torch.int64)),
        (INDICES.to("meta"),),
        (INDICES.cpu().numpy(),),
    ],
)
def test_a_wrong_argument_is_the_same_error_on_both_ways(arguments, grad, monkeypatch):
    module = PackedEmbeddingBag(V, D)
    with torch.set_grad_enabled(grad):
        with pytest.raises(packedbag.PackedBagError) as direct:
            settled(lambda: module(*arguments))
        with pytest.raises(packedbag.PackedBagError) as operator:
            settled(lambda: through_the_operator(monkeypatch, lambda: module(*arguments)))
    assert type(direct.value) is type(operator.value)
    assert str(direct.value) == str(operator.value)


@pytest.mark.parametrize("grad", [True, False])
def test_a_dispatch_mode_sees_the_operator(grad):
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    module = PackedEmbeddingBag(V, D)
    with torch.set_grad_enabled(grad), Record():
        module(INDICES)
    assert torch.ops.packedbag.bag.default in seen


def test_a_function_mode_sees_the_operator():
    seen = []

    class Record(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    module = PackedEmbeddingBag(V, D)
    with torch.no_grad(), Record():
        module(INDICES)
    assert any("packedbag" in str(function) for function in seen)


@pytest.mark.parametrize("grad", [True, False])
def test_fake_tensors_have_a_shape_and_no_values(grad):
    module, mode = PackedEmbeddingBag(V, D), FakeTensorMode(allow_non_fake_inputs=True)
    indices = mode.from_tensor(INDICES)
    for active in (mode, contextlib.nullcontext()):
        with torch.set_grad_enabled(grad), active:
            out = module(indices)
        assert type(out).__name__ == "FakeTensor"
        assert out.shape == (4, D)


def test_make_fx_records_the_operator():
    module = PackedEmbeddingBag(V, D)
    with torch.no_grad():
        graph = make_fx(lambda i: module(i))(INDICES)
    assert torch.ops.packedbag.bag.default in [node.target for node in graph.graph.nodes]
    following = (INDICES + 1) % V
    assert torch.equal(graph(following), module(following))


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and says so in several words
def test_jit_trace_records_the_operator():
    module = PackedEmbeddingBag(V, D, bounds="skip")
    with torch.no_grad():
        traced = torch.jit.trace(lambda i: module(i), INDICES)
        assert "packedbag::bag" in str(traced.graph)
        assert torch.equal(traced(INDICES + 1), module(INDICES + 1))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_a_compiled_graph_holds_the_operator(grad):
    graphs = []

    def keep(graph, example_inputs):
        graphs.append(str(graph.print_readable(print_output=False)))
        return graph.forward

    module = PackedEmbeddingBag(V, D)
    torch.compiler.reset()
    with torch.set_grad_enabled(grad):
        out = torch.compile(lambda i: module(i), fullgraph=True, backend=keep)(INDICES)
        assert torch.equal(out, module(INDICES))
    torch.compiler.reset()
    assert "torch.ops.packedbag.bag" in graphs[0]


@pytest.mark.filterwarnings("ignore:.*There is a performance drop.*")
def test_vmap_does_not_read_the_memory_of_its_wrappers():
    module = PackedEmbeddingBag(V, D)
    batch = torch.stack([INDICES, (INDICES + 1) % V])
    with torch.no_grad():
        out = torch.vmap(lambda i: module(i))(batch)
    assert torch.equal(out, torch.stack([module(batch[0]), module(batch[1])]))


@pytest.mark.parametrize("grad", [True, False])
def test_the_profiler_lists_the_operator(grad):
    module = PackedEmbeddingBag(V, D)
    with torch.set_grad_enabled(grad), torch.autograd.profiler.profile() as profile:
        module(INDICES)
    assert "packedbag::bag" in {event.name for event in profile.function_events}


def test_a_subclass_of_tensor_sees_the_operator():
    seen = []

    class Noticing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    with torch.no_grad():
        PackedEmbeddingBag(V, D)(INDICES.as_subclass(Noticing))
    assert any("packedbag" in function for function in seen)


def test_the_backend_is_read_from_the_environment_at_every_call(monkeypatch):
    module, used = PackedEmbeddingBag(V, D), []
    for name in ("reference", "eager"):
        backend = backends.get(name)
        implementation = backend.bag

        def note(*args, name=name, implementation=implementation, **kwargs):
            used.append(name)
            return implementation(*args, **kwargs)

        monkeypatch.setattr(backend, "bag", note)
    with torch.no_grad():
        module(INDICES)
        used.clear()
        for name in ("reference", "eager", "reference"):
            monkeypatch.setenv(registry.ENVIRONMENT, name)
            module(INDICES)
        assert used == ["reference", "eager", "reference"]
        monkeypatch.setenv(registry.ENVIRONMENT, "abacus")
        with pytest.raises(packedbag.PackedBagError, match="abacus"):
            module(INDICES)


def test_the_environment_may_be_a_plain_dictionary(monkeypatch):
    monkeypatch.setattr("os.environ", {registry.ENVIRONMENT: "reference"})
    assert backends.select().name == "reference"


def test_a_torch_that_cannot_be_asked_gets_the_operator(monkeypatch, ways):
    monkeypatch.delattr(torch._C, "_len_torch_dispatch_stack")
    assert dispatch._find_watchers() is None
    monkeypatch.setattr(dispatch, "_WATCHERS", dispatch._find_watchers())
    PackedEmbeddingBag(V, D)(INDICES)
    assert ways == ["operator"]
