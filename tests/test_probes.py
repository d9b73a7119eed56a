"""Small programs that are likely to be recorded wrongly, under all backends: each is the plain run, and replays."""

import copy
import gc
import itertools
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from region_models import MODELS as REGIONS
from region_models import Model, X, block, linear, weight
from test_regions import TorchMarks, same, traced
from torch import nn
from torch.nn.utils import rnn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import lens
from lens.ir.verifier import find_problems
from lens.validate.check import check

BACKENDS = ["torch_function", "decoration", "torch_dispatch"]
PROBES = {}


def at_python_level(kind):
    return {"torch_function": kind, "decoration": kind}


def probe(name, function, *args, gaps=(), context=torch.no_grad, **parts):
    """Register a forward: its arguments, the kinds of gaps (by backend), and what makes the parts of its module."""
    PROBES[name] = (lambda: Model(function, **{k: make() for k, make in parts.items()}), args or (X,), gaps, context)


def body(name, **options):
    return lambda function: probe(name, function, **options)


# Memory


@body("views of views")
def _(s, x):
    y = x * 2
    flat, column = y.view(-1)[1:], y.t()[1]
    column.mul_(3)
    flat[2:4].add_(1)
    return y + column.sum(), flat * 2


@body("parts of one tensor, written one after the other")
def _(s, x):
    y = x * 2
    for i, part in enumerate(y.chunk(2, 1)):
        part.add_(i)
    for row in y:
        row.mul_(2)
    first, second = y.unbind(0)
    first.copy_(second)
    return y, first + second


@body("overlapping views")
def _(s, x):
    y = x.reshape(-1) * 2
    low, high = y.as_strided((5,), (1,), 0), y.as_strided((5,), (1,), 3)
    low.add_(1)
    high.mul_(high.flip(0))
    return y, low + high, y.unfold(0, 3, 1).sum()


@body("as_strided of another view, read after a write to the base")
def _(s, x):
    y = x * 2
    diagonal = y[0].as_strided((2,), (5,), 0)
    y.zero_()
    y.view(-1)[5] = 7.0
    return diagonal + 1


@body("set_ to a storage", gaps={"torch_dispatch": "external"})
def _(s, x):
    a, b = x + 1, x * 2
    a.set_(b.untyped_storage(), 2, (2, 2), (2, 1))
    a.add_(10)
    return a * 1, b * 1


@body("data and detach", context=torch.enable_grad, w=weight)
def _(s, x):
    y = x * s.w
    y.data[0] = 5.0
    z = y.detach()
    z[1] = 3.0
    s.w.data = s.w.data * 2
    return y.detach() * 1, z + 1, x * s.w


@body("out= of views, tuples and other shapes")
def _(s, x):
    buffer, values, places = torch.zeros(3, 2, 4), torch.empty(0), torch.empty(0, dtype=torch.long)
    torch.add(x, 1, out=buffer[1])
    torch.sort(x, dim=1, out=(values, places))
    torch.mm(x, x.t(), out=(product := torch.empty(2, 2)))
    return buffer * 1, values + places, product.t() * 2


@body("foreach")
def _(s, x):
    y = x * 2
    parts = [y[0], y[1, :2], torch.ones(2)]
    torch._foreach_add_(parts, 1.0)
    torch._foreach_copy_(parts[1:], [parts[2] * 3, parts[1]])
    return y + 0, *torch._foreach_mul(parts, 2.0)


@body("augmented item assignment")
def _(s, x):
    y = x * 2
    y[0] += 1
    y[y > 1] *= 2
    y[..., torch.tensor([0, 2])] -= y[:, [1, 3]]
    y[1, 1:][::2] /= 3
    y[0].data += 4
    return y * 1


@body("in place under inference mode", context=torch.inference_mode, gaps=dict.fromkeys(BACKENDS, "unseen"))
def _(s, x):
    y = x * 2
    v = y[:, 1:]
    v.add_(1)
    y[0] = 9.0
    return v * y[:, :3]


@body("parameters and buffers", context=torch.enable_grad, w=weight, norm=lambda: nn.BatchNorm1d(4))
def _(s, x):
    with torch.no_grad():
        s.w.mul_(2)
        s.norm.running_mean[1] += 1
    s.norm.running_var = s.norm.running_var * 2
    s.w[0].detach().zero_()
    return s.norm(x * s.w) + s.norm.running_mean


@body("an input")
def _(s, x):
    before = x + 1
    view = x[0]
    x.mul_(2)
    view += 1
    x.data[1] = 0
    return before, x, view


@body("memory as another type")
def _(s, x):
    y = x * 2
    y.view(torch.int32)[0].bitwise_not_()
    z = torch.complex(x, x)
    z.real.zero_()
    torch.view_as_real(z)[..., 1].mul_(2)
    z.imag += 1
    return y.view(torch.int32) + 0, z * 1, z.conj().imag + 1


@body("writes by index")
def _(s, x):
    y = x * 1
    y.index_put_((torch.tensor([0, 1]), torch.tensor([3, 3])), torch.ones(2), accumulate=True)
    y.scatter_(1, torch.tensor([[0], [1]]), 5.0).masked_fill_(y < 0, 0.5)
    y.index_copy_(0, torch.tensor([1]), y[:1] * 2).clamp_(max=4).swapaxes_(0, 1).t_()
    return y.sum(0), torch.where(y > 1, y, 0)


@body("resizing")
def _(s, x):
    y = x.reshape(-1) * 2
    part = y[:3]
    part.add_(1)
    y.resize_(4)
    return y * 1, part * 1


# Regions


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(x, scale):
        return x.sin() * scale, x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g, _):
        return g * ctx.saved_tensors[0], None


@body("an autograd function inside of another's forward", context=torch.enable_grad, w=weight)
def _(s, x):
    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return Sine.apply(x, 2.0)[0] + 1

        @staticmethod
        def backward(ctx, g):
            return g

    first, second = Sine.apply(x * s.w, 3.0)
    return Outer.apply(first) + second


@body("checkpoints in a checkpoint", context=torch.enable_grad, b=block)
def _(s, x):
    x = x.requires_grad_()
    inner = checkpoint_sequential(s.b, 2, x, use_reentrant=False)
    return checkpoint(lambda y: checkpoint(s.b, y, use_reentrant=True) * 2, inner, use_reentrant=False)


def counting(module, args, out):
    module.calls += 1


def hooked():
    fc = linear()
    fc.register_forward_pre_hook(lambda m, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True)
    fc.register_forward_hook(lambda m, args, out: out.add_(1))
    fc.register_forward_hook(lambda m, args, out: out * 3, prepend=True)
    fc.register_forward_hook(counting, always_call=True)
    fc.register_full_backward_hook(lambda m, given, out: None)
    fc.register_buffer("calls", torch.zeros(1))
    return fc


@body("hooks of every kind", context=torch.enable_grad, fc=hooked)
def _(s, x):
    y = s.fc(x)
    y.register_hook(lambda g: g * 2)
    return y + s.fc.calls


@body("tied and replaced parameters", fc=linear, tied=lambda: nn.Sequential(linear(), linear()))
def _(s, x):
    s.tied[1].weight = s.tied[0].weight
    given = {"0.weight": s.fc.weight * 2, "0.bias": x[0]}
    return torch.func.functional_call(s.tied, given, (x,), tie_weights=True)


def parametrized():
    old = nn.utils.weight_norm(linear())
    orthogonal = nn.utils.parametrizations.orthogonal(linear())
    spectral = nn.utils.parametrizations.spectral_norm(linear())
    return nn.Sequential(old, orthogonal, spectral, nn.utils.spectral_norm(linear()))


@body("parametrizations and norms of weights", fc=parametrized)
def _(s, x):
    with nn.utils.parametrize.cached():
        return s.fc(x) + s.fc[1].weight[0]


@body("autocast switched on, off and over", fc=linear)
def _(s, x):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def low(y):
        with torch.autocast("cpu", enabled=False):
            z = s.fc(y.float())
        return s.fc(z)

    with torch.autocast("cpu", dtype=torch.float16, cache_enabled=False):
        return low(s.fc(x)).float() + s.fc(x)


@body("transforms", gaps=at_python_level("opaque"), w=weight)
def _(s, x):
    slope = torch.func.grad(lambda y: (y * s.w).sin().sum())
    rows = torch.func.vmap(slope, in_dims=1, out_dims=1, chunk_size=2)(x.t()).t()
    value, tangent = torch.func.jvp(lambda y: y * s.w, (x,), (rows,))
    return value + tangent + torch.func.jacfwd(torch.sin)(x[0]).sum(0)


@body("operators that take functions", fc=linear)
def _(s, x):
    def outer(y):
        return torch.cond(y.sum() > 0, s.fc, lambda z: z.clone().mul_(2), (y,))

    return torch.cond(x.sum() > -100, outer, torch.sin, (x,))


@torch.jit.script
def scripted(x, parts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    for part in parts:
        x = x + part
    return {"sum": x, "first": parts[0] * 2}


@body(
    "scripted, traced and exported",
    gaps=at_python_level("opaque"),
    part=lambda: torch.jit.trace(linear(), X),
    exported=lambda: EXPORT.module(),
)
def _(s, x):
    found = scripted(s.part(x), [x, x * 2])
    return s.exported(found["sum"]) + found["first"]


EXPORT = torch.export.export(nn.Sequential(linear(), nn.ReLU()), (X,))


@body("packed sequences", gaps=dict.fromkeys(BACKENDS, "read"), lstm=lambda: nn.GRU(4, 3, bidirectional=True))
def _(s, x):
    packed = rnn.pack_sequence([x[:1], x], enforce_sorted=False)
    out, hidden = s.lstm(packed)
    return rnn.unpack_sequence(out)[1], hidden, out.data * 2


@body("nested")
def _(s, x):
    ragged = torch.nested.nested_tensor([x[:1], x], layout=torch.jagged)
    return (ragged * 2).sum(-1).values(), torch.nested.nested_tensor([x[0], x[1, :2]]).to_padded_tensor(0.0) + 1


@body("sparse")
def _(s, x):
    found = torch.sparse_coo_tensor(torch.tensor([[0, 1, 1], [2, 0, 0]]), x.view(-1)[:3], (2, 4)).coalesce()
    csr = found.to_sparse_csr()
    return torch.sparse.sum(found, 0).to_dense(), csr.values() + 1, csr.matmul(x.t()), found.indices()


@body("a write to the values of a sparse tensor", gaps=dict.fromkeys(BACKENDS, "external"))
def _(s, x):
    found = (x * 2).to_sparse()
    found.values().mul_(3)
    return found.to_dense() + 1


@body("quantized")
def _(s, x):
    scales = torch.tensor([0.1, 0.2])
    y = torch.quantize_per_channel(x, scales, torch.zeros(2, dtype=torch.long), 0, torch.qint8)
    z = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
    return y.dequantize() * 2, y.int_repr() + 1, torch.cat([z, z]).dequantize()


@body("complex numbers, conjugated and negated lazily")
def _(s, x):
    z = torch.complex(x, x * 2)
    w = z.conj()
    w.mul_(1j)
    return z.resolve_conj() * 1, w.imag.neg() + 1, (z @ z.mH).abs(), torch.polar(x.abs(), x)


class Logged(torch.Tensor):
    seen = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(getattr(func, "__name__", ""))
        return super().__torch_function__(func, types, args, kwargs or {})


@body("a subclass with functions of its own")
def _(s, x):
    y = x.as_subclass(Logged)
    y[0] += 1
    return (torch.cat([y, y * 2]) @ y.t()).as_subclass(torch.Tensor) + 1


@torch.library.custom_op("lens_probes::split", mutates_args=())
def split(x: torch.Tensor) -> list[torch.Tensor]:
    return [x[0].clone(), x[1].clone()]


@torch.library.custom_op("lens_probes::count", mutates_args=("counter",))
def count(x: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
    counter.add_(1)
    return x * 2


split.register_autograd(lambda ctx, grads: torch.stack(grads))


@body("custom operators", context=torch.enable_grad, w=weight)
def _(s, x):
    counter = torch.zeros(1)
    first, second = split(x * s.w)
    return count(first.detach(), counter) * second + torch.ops.aten.add(x, 1, alpha=2), torch.ops.aten.relu_(
        counter
    ) + 1


@body("overloads that write")
def _(s, x):
    out = torch.empty(0)
    torch.ops.aten.mul.out(x, x, out=out)
    torch.ops.aten.add_.Tensor(out, x)
    return out * 1


@body("generators and distributions")
def _(s, x):
    source = torch.Generator().manual_seed(3)
    places = torch.randperm(4, generator=source)
    picked = torch.multinomial(x.exp(), 2, generator=source)
    covariance = torch.distributions.MultivariateNormal(x, torch.eye(4))
    gamma = torch.distributions.Gamma(x.exp(), 1.0).rsample()
    return x[:, places], picked, covariance.sample() + gamma, torch.empty(3).bernoulli_(0.5, generator=source)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.ReLU())

    def forward(self, x):
        return self.parts(x) * self.parts[0].weight.sum()


@body("data parallel", part=lambda: nn.DataParallel(nn.Sequential(linear(), nn.ReLU())))
def _(s, x):
    return s.part(x) + s.part.module[0].bias


# The rest


@body("generators of Python, also one that is never finished", fc=linear)
def _(s, x):
    def steps(y):
        try:
            while True:
                y = s.fc(y)
                yield y
        finally:
            s.fc(y * 0)

    running = steps(x)
    first, second = itertools.islice(running, 2)
    s.left = steps(x)
    return first + second + next(s.left)


class Finalizer:
    """Works with tensors when it is thrown away, whenever that is."""

    def __init__(self, tensor):
        self.tensor, self.circle = tensor, self

    def __del__(self):
        torch.relu(self.tensor.add_(1))


@body("work in finalizers")
def _(s, x):
    y, z = x * 2, x * 3
    circle = Finalizer(z)
    circle.circle = None
    for _ in range(3):
        y = y + 1
    del circle
    return y + z


@body("copies", fc=linear)
def _(s, x):
    y = x * 2
    memo = {}
    again, shallow = copy.deepcopy(y, memo), copy.copy(y).__deepcopy__(memo={})
    again.mul_(2)
    twin = copy.deepcopy(s.fc)
    with torch.no_grad():
        twin.weight.zero_()
    return twin(x) + s.fc(x) + again + shallow + copy.deepcopy([y, y])[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_the_plain_run_and_replays(name, backend):
    make, args, gaps, context = PROBES[name]
    runs = []
    for trace in (False, True):
        torch.manual_seed(5)
        model, given = make(), copy.deepcopy(args)
        torch.manual_seed(6)
        with context():
            history, output = traced(model, given, backend=backend) if trace else (None, model(*given))
        left = [t for t in tree_leaves((output, given, model.state_dict())) if isinstance(t, torch.Tensor)]
        runs.append([t.detach() for t in (*left, torch.get_rng_state())])
    assert len(runs[0]) == len(runs[1])
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    assert find_problems(history.graph) == []
    report = check(history)
    assert report.failed == (), str(report)
    found = [gap for gap in history.gaps if gap.kind != "reads"]  # which torch_dispatch always says
    assert {gap.kind for gap in found} == set(dict(gaps).get(backend, "").split()), found
    assert all(gap.location.file == __file__ for gap in found if gap.kind == "opaque")


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_below_autograd_is_the_plain_run_or_says_where_it_is_not(name):
    factory, _, _, inputs = REGIONS[name]
    runs = []
    for trace in (False, True):
        torch.manual_seed(5)
        model = factory()
        torch.manual_seed(6)
        history, output = traced(model, inputs, backend="torch_dispatch") if trace else (None, model(*inputs))
        runs.append([*tree_leaves(output), torch.get_rng_state()])
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    assert find_problems(history.graph) == []
    assert check(history).failed == ()
    leaves = [leaf for leaf in history.graph.leaves if leaf.kind == "external"]
    assert len([gap for gap in history.gaps if gap.kind == "external"]) == len(leaves)
    assert history["output_1"].has_input_ancestor or leaves or any(g.kind == "unseen" for g in history.gaps)


@pytest.mark.parametrize("outer", BACKENDS)
@pytest.mark.parametrize("inner", BACKENDS)
def test_a_trace_inside_of_a_trace_with_any_two_backends(outer, inner):
    found = []

    def forward(s, x):
        y = torch.relu(x * 2)
        found.append(lens.trace(nn.Sequential(linear(), nn.ReLU()), y, backend=inner))
        with pytest.raises(ZeroDivisionError):
            lens.trace(Model(lambda t, z: torch.sin(z) * (1 // 0)), y, backend=inner)
        return y + found[0]["output_1"].tensor_contents[0]

    marks = TorchMarks()
    with torch.no_grad():
        history = lens.trace(Model(forward), X, backend=outer)
        plain = torch.relu(X * 2)
    assert marks.left_behind(TorchMarks()) == []
    assert torch.equal(history["output_1"].tensor_contents, plain + linear()(plain).relu()[0])
    assert found[0]["relu_1"].parent_layers
    assert {leaf.kind for leaf in found[0].graph.leaves} == {"input", "parameter"}
    assert history["mul_1"].parent_layers == ["input_1"]
    assert check(history).failed == check(found[0]).failed == ()
    assert len([gap for gap in history.gaps if gap.kind == "external"]) == len(
        [leaf for leaf in history.graph.leaves if leaf.kind == "external"]
    )


def test_traces_with_all_backends_at_once_in_threads():
    marks, found = TorchMarks(), {}

    def work(backend, layers):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
        for _ in range(5):
            history = lens.trace(model, X, backend=backend)
            found.setdefault(backend, []).append([op.function.name.split(".")[0] for op in history.graph.ops])

    threads = [threading.Thread(target=work, args=(backend, i + 2)) for i, backend in enumerate(BACKENDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["torch_function"] == [["linear"] * 2] * 5
    assert found["decoration"] == [["linear"] * 3] * 5
    assert found["torch_dispatch"] == [["t", "addmm"] * 4] * 5
    assert marks.left_behind(TorchMarks()) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_way_out_is_disclosed_with_its_line_and_what_to_do(backend):
    def forward(s, x):
        y = x * x.sum().item()
        y = y + x.tolist()[0][0]
        return y + torch.from_numpy(x.numpy() * 2)

    history = lens.trace(Model(forward), X, backend=backend)
    lines = {gap.location.line - forward.__code__.co_firstlineno: gap.kind for gap in history.gaps if gap.location}
    assert lines == {1: "read", 2: "read", 3: "read"} or {**lines, 3: "external"} == {
        1: "read",
        2: "read",
        3: "external",
    }
    assert {gap.kind for gap in history.gaps} >= {"read", "external"}
    assert all(gap.advice for gap in history.gaps)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    with torch.no_grad():
        opened = lens.trace(layer, X[None], backend=backend, fast_paths="open")
        kept = lens.trace(layer, X[None], backend=backend)
    assert [gap.kind for gap in opened.gaps if gap.kind == "fast_paths"] == ["fast_paths"]
    assert len(opened.graph.ops) > 5 > len(kept.graph.ops)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dropped_trace_keeps_no_tensor(backend):
    seen = []

    def forward(s, x):
        y = x * 2
        z = F.relu(y)
        z[0] = 1.0
        seen.extend(map(weakref.ref, (y, z)))
        return z + 1

    history = lens.trace(Model(forward), X, backend=backend)
    seen.append(weakref.ref(history["output_1"].tensor_contents))
    del history
    gc.collect()
    assert [reference() for reference in seen] == [None] * 3
    lens.trace(Model(forward), X, backend=backend, save="none")
    gc.collect()
    assert [reference() for reference in seen] == [None] * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_lazy_modules(backend):
    outputs = []
    for trace in (False, True):
        torch.manual_seed(5)
        model = Lazy()
        history, output = traced(model, (X,), backend=backend) if trace else (None, model(X))
        outputs.append(output)
        assert type(model.parts[0].weight) is nn.Parameter
    assert torch.equal(*outputs)
    assert "external" not in {leaf.kind for leaf in history.graph.leaves}
    assert check(history).failed == ()
