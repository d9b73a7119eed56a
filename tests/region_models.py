"""Tiny models with something that a plain function call is not, one per kind of region."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal
from torch.func import functional_call, grad, grad_and_value, jvp, stack_module_state, vjp, vmap
from torch.nn.utils import parametrize, rnn
from torch.utils.checkpoint import checkpoint

try:
    from torch.nn.attention.flex_attention import flex_attention
except ImportError:  # a torch from before it
    flex_attention = None

X = torch.tensor([[0.5, -1.0, 2.0, 0.1], [1.5, 0.3, -0.2, 0.7]])
MODELS = {}


class Model(nn.Module):
    """A function of the module and its inputs as the forward; parts become submodules or parameters."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args):
        return self.function(self, *args)


def linear():
    torch.manual_seed(1)
    return nn.Linear(4, 4)


def weight():
    return nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 3.0]))


def block():
    return nn.Sequential(linear(), nn.Dropout(), nn.ReLU())


def model(expected, gaps="", inputs=None):
    """Register a factory, with the names of the operations and the kinds of the gaps to expect."""

    def register(factory):
        MODELS[factory.__name__] = (factory, expected.split(), gaps.split(), inputs or (X,))
        return factory

    return register


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * 2 * x * w, (g * x * x).sum(0)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, g):
        return g * 2


class Same(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x

    @staticmethod
    def setup_context(ctx, inputs, output): ...

    @staticmethod
    def backward(ctx, g):
        return g


scaled = Scaled.apply  # bound long before any trace


@model("mul mul add")
def autograd_function():
    return Model(lambda s, x: scaled(x, s.w) + 1, w=weight())


@model("linear mul_ add")
def autograd_function_that_writes():
    return Model(lambda s, x: Doubled.apply(s.fc(x)) + 1, fc=linear())


@model("linear view_as add")
def autograd_function_that_returns_its_input():
    return Model(lambda s, x: Same.apply(s.fc(x)) + 1, fc=linear())


@model("linear dropout relu mul")
def checkpoint_without_reentry():
    return Model(lambda s, x: checkpoint(s.b, x, use_reentrant=False) * 2, b=block())


@model("linear dropout relu mul")
def checkpoint_with_reentry():
    return Model(lambda s, x: checkpoint(s.b, x, use_reentrant=True) * 2, b=block())


@model("mul linear")
def functional():
    return Model(lambda s, x: functional_call(s.fc, {"weight": s.fc.weight * 2, "bias": s.fc.bias}, (x,)), fc=linear())


@model("softplus linear relu")
def parametrized():
    fc = linear()
    parametrize.register_parametrization(fc, "weight", nn.Softplus())
    return nn.Sequential(fc, nn.ReLU())


@model("_weight_norm linear")
def weight_norm():
    return torch.nn.utils.parametrizations.weight_norm(linear())


@model("flatten mv vdot div linear")
def spectral_norm():
    return torch.nn.utils.parametrizations.spectral_norm(linear()).eval()


@model("mul linear add add")
def hooks_of_the_user():
    fc = linear()
    fc.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    fc.register_forward_hook(lambda m, args, out: out + 1)
    fc.register_forward_hook(lambda m, args, out: out + 2)
    return fc


@model("linear relu float linear")
def autocast():
    def forward(s, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = F.relu(s.fc(x))
            with torch.autocast("cpu", enabled=False):
                return s.fc(y.float())

    return Model(forward, fc=linear())


@model("vmap add", "opaque")
def vmapped():
    return Model(lambda s, x: vmap(lambda row: torch.relu(row) * s.w)(x) + 1, w=weight())


@model("vmap add", "opaque")
def vmapped_with_noise():
    return Model(lambda s, x: vmap(F.dropout, randomness="different")(x) + 1)


@model("grad add", "opaque")
def gradient():
    return Model(lambda s, x: grad(lambda y: (y * s.fc(y)).sum())(x) + 1, fc=linear())


@model("grad_and_value mul", "opaque")
def gradient_and_value():
    def forward(s, x):
        slope, value = grad_and_value(lambda y: (y * y).sum())(x)
        return slope * value

    return Model(forward)


@model("jacrev add", "opaque")
def jacobian():
    return Model(lambda s, x: torch.func.jacrev(lambda y: y.sin() * s.w)(x) + 1, w=weight())


@model("hessian", "opaque")
def hessian_matrix():
    return Model(lambda s, x: torch.func.hessian(lambda y: (y**3).sum())(x))


@model("jvp", "opaque")
def tangent():
    return Model(lambda s, x: jvp(torch.sin, (x,), (x,)))


@model("vjp mul vjp_fn", "opaque opaque")
def pullback():
    def forward(s, x):
        y, back = vjp(torch.sin, x)
        return back(y * 2)

    return Model(forward)


@model("vmap", "opaque")
def transforms_inside_each_other():
    return Model(lambda s, x: vmap(grad(lambda row: (row * row).sum()))(x))


@model("stack detach requires_grad_ stack detach requires_grad_ vmap", "opaque")
def ensemble():
    def forward(s, x):
        parameters, buffers = stack_module_state(list(s.members))
        return vmap(lambda p, b: functional_call(s.members[0], (p, b), (x,)))(parameters, buffers)

    return Model(forward, members=nn.ModuleList([linear(), linear()]))


@model("sum gt mul add")
def cond():
    return Model(
        lambda s, x: torch.cond(x.sum() > 100, lambda a: s.fc(a), lambda a: a * s.fc.bias, (x,)) + 1, fc=linear()
    )


@model("tensor lt add mul lt add mul lt")
def while_loop():
    from torch._higher_order_ops.while_loop import while_loop

    def forward(s, x):
        return while_loop(lambda i, a: i < 2, lambda i, a: (i + 1, a * 2), (torch.tensor(0), x))

    return Model(forward)


@model("repeat_interleave repeat_interleave expand expand to to transpose matmul", "opaque", (torch.ones(1, 2, 4, 4),))
def flexible_attention():
    return Model(lambda s, q: flex_attention(q, q, q, score_mod=lambda score, b, h, i, j: score + (i - j)))


@model("script_method add", "opaque")
def scripted_module():
    return Model(lambda s, x: s.part(x) + 1, part=torch.jit.script(nn.Sequential(linear(), nn.ReLU())))


@model("script_method", "opaque")
def scripted_whole():
    return torch.jit.script(nn.Sequential(linear(), nn.Dropout()))


@model("script_method", "opaque")
def frozen():
    return torch.jit.freeze(torch.jit.script(nn.Sequential(linear(), nn.ReLU()).eval()))


@model("script_method add", "opaque")
def traced_module():
    return Model(lambda s, x: s.part(x) + 1, part=torch.jit.trace(nn.Sequential(linear(), nn.ReLU()), X))


def scripted(x, times: int):
    return torch.relu(x) * times, x + 1


scripted = torch.jit.script(scripted)


@model("mul script_function", "opaque")
def scripted_function():
    return Model(lambda s, x: scripted(x * 1, 3))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = linear()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        x.mul_(2)
        return self.norm(self.fc(x)) + self.calls


@model("mul script_method add add", "opaque")
def scripted_module_that_writes():
    def forward(s, x):
        y = x * 1
        z = s.part(y)
        return y + z + s.part.calls + s.part.norm.running_mean

    return Model(forward, part=torch.jit.script(Counting()))


@model("linear.default relu.default add")
def exported_program():
    part = torch.export.export(nn.Sequential(linear(), nn.ReLU()), (X,)).module()
    return Model(lambda s, x: s.part(x) + 1, part=part)


@model("__getitem__ _pack_padded_sequence lstm _pad_packed_sequence")
def packed_sequences():
    def forward(s, x):
        packed = rnn.pack_padded_sequence(x[None], torch.tensor([2]), batch_first=True)
        return rnn.pad_packed_sequence(s.lstm(packed)[0], batch_first=True)[0]

    return Model(forward, lstm=nn.LSTM(4, 3))


@model("__getitem__ _nested_tensor_from_tensor_list linear nested_to_padded_tensor")
def nested():
    def forward(s, x):
        return torch.nested.to_padded_tensor(s.fc(torch.nested.as_nested_tensor([x[0:1], x])), 0.0)

    return Model(forward, fc=linear())


@model("linear _nested_get_values")
def jagged():
    def forward(s, x):
        return s.fc(torch.nested.as_nested_tensor([x[0:1], x], layout=torch.jagged)).values()

    return Model(forward, fc=linear())


@model("to_sparse _sparse_mm to_sparse_csr matmul add")
def sparse():
    return Model(
        lambda s, x: torch.sparse.mm(x.to_sparse(), s.fc.weight) + x.to_sparse_csr() @ s.fc.weight, fc=linear()
    )


@model("quantize_per_tensor relu dequantize")
def quantized():
    return Model(lambda s, x: torch.relu(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)).dequantize())


@model("linear_dynamic to relu")
def quantized_module():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear(), nn.ReLU()), {nn.Linear})


@model("fft_fft conj fft_ifft real.__get__")
def complex_numbers():
    return Model(lambda s, x: torch.fft.ifft(torch.fft.fft(x).conj()).real)


@model("linear relu", inputs=(torch.ones(2, 4, device="meta"),))
def on_meta():
    return nn.Sequential(nn.Linear(4, 4, device="meta"), nn.ReLU())


class Marked(torch.Tensor):
    """A subclass without behaviour of its own."""


@model("as_subclass mul linear as_subclass add as_subclass")
def subclass_made_inside():
    return Model(
        lambda s, x: (x.as_subclass(Marked) * 2 + s.fc(x).as_subclass(Marked)).as_subclass(torch.Tensor), fc=linear()
    )


@model("linear relu", inputs=(X.clone().as_subclass(Marked),))
def subclass_as_input():
    return nn.Sequential(linear(), nn.ReLU())


class Boxed(torch.Tensor):
    """A wrapper around a tensor that it computes with."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args = [arg.inner if isinstance(arg, Boxed) else arg for arg in args]
        result = func(*args, **(kwargs or {}))
        return Boxed(result) if isinstance(result, torch.Tensor) else result


@model("mul wrap relu mul unwrap add", "opaque opaque")
def subclass_that_wraps():
    return Model(lambda s, x: (torch.relu(Boxed(x * 2)) * 3).inner + 1)


@model("ones mul _make_subclass linear")
def parameter_made_inside():
    return Model(lambda s, x: F.linear(x, nn.Parameter(torch.ones(4, 4) * 2)))


@torch.library.custom_op("lens_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("lens_tests::raise_", mutates_args=("x",))
def raise_(x: torch.Tensor) -> None:
    x.add_(1)


LIBRARY = torch.library.Library("lens_tests_too", "DEF")
LIBRARY.define("half(Tensor x) -> Tensor")
LIBRARY.impl("half", lambda x: x / 2, "CompositeExplicitAutograd")


@model("twice.default raise_.default half relu add.Tensor")
def custom_operators():
    def forward(s, x):
        y = twice(x)
        raise_(y)
        return torch.ops.aten.add.Tensor(torch.ops.lens_tests_too.half(y), torch.ops.aten.relu(x))

    return Model(forward)


@model("linear")
def data_parallel():
    return nn.DataParallel(linear())


@model("rand add randn add")
def generator():
    def forward(s, x):
        source = torch.Generator().manual_seed(3)
        return x + torch.rand(4, generator=source) + torch.randn(4, generator=source)

    return Model(forward)


@model("")
def distributions():
    def forward(s, x):
        normal, coin, die = Normal(x, 1.0), Bernoulli(logits=x), Categorical(logits=x)
        return normal.rsample() + normal.log_prob(x) + coin.sample() + die.sample()[:, None]

    return Model(forward)


@model("linear mul add")
def thread():
    def forward(s, x):
        found = []
        worker = threading.Thread(target=lambda: found.append(s.fc(x) * 2))
        worker.start()
        worker.join()
        return found[0] + 1

    return Model(forward, fc=linear())


@model("linear mul linear mul linear mul stack")
def thread_pool():
    def forward(s, x):
        with ThreadPoolExecutor(2) as pool:
            return torch.stack(list(pool.map(lambda i: s.fc(x) * i, range(3))))

    return Model(forward, fc=linear())


@model("")
def thread_pool_that_writes():
    def forward(s, x):
        out = torch.zeros(3, 2, 4)
        rows = [out[i] for i in range(3)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda i: rows[i].copy_(x * i), range(3)))
        return out.sum(0)

    return Model(forward)


@model("linear add linear add")
def generator_function():
    def steps(s, x):
        for _ in range(2):
            x = s.fc(x)
            yield x

    return Model(lambda s, x: sum(steps(s, x)), fc=linear())


@model("data.__get__ clone _make_subclass data.__get__ clone _make_subclass linear __deepcopy__ add")
def deep_copies():
    return Model(lambda s, x: copy.deepcopy(s.fc)(x) + copy.deepcopy(x), fc=linear())


@model("kaiming_uniform_ uniform_ linear")
def module_made_inside():
    return Model(lambda s, x: nn.Linear(4, 4)(x))


@model("detach requires_grad_ linear mul sum grad.__get__ mul", "unseen")
def backward_inside():
    def forward(s, x):
        x = x.detach().requires_grad_()
        scaled(s.fc(x), s.w).sum().backward()
        return x.grad * 2

    return Model(forward, fc=linear(), w=weight())


@model("linear sum grad matmul")
def gradient_inside():
    def forward(s, x):
        y = s.fc(x)
        (g,) = torch.autograd.grad(y.sum(), s.fc.weight, create_graph=True)
        return y @ g

    return Model(forward, fc=linear())
