"""Every public function and method, each parameter in turn, with wrong types, missing, empty and unknown values."""

import inspect
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

import lens
from lens.errors import (
    AbsentValueError,
    AmbiguousKeyError,
    LensError,
    StaleValueError,
    UnknownAttributeError,
    UnknownKeyError,
)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.norm(x)
        for _ in range(3):
            x = torch.relu(self.fc(x))
        return x


X = torch.ones(2, 4)
MODEL = Loop().eval()
HISTORY = lens.trace(MODEL, X)
BAD = {
    "none": None,
    "number": 3.5,
    "far": -99,
    "empty": "",
    "unknown": "nope",
    "bytes": b"x",
    "object": object(),
    "list": [None],
    "dict": {"a": 1},
    "class": nn.ReLU,
    "tensor": X,
    "nul": "no/such\0path",
    "call": "fc:9",
}
#: What a parameter gets that is not in turn.
GOOD = {
    "model": MODEL,
    "args": X,
    "inputs": X,
    "start": "input_1",
    "end": -1,
    "path": "p.svg",
    "key": "fc:1",
    "number": 1,
    "other": HISTORY,
    "history_a": HISTORY,
    "history_b": lens.trace(MODEL, torch.ones(3, 4)),
    "kinds": (),
}
#: Whose errors are those of the user's own code, or which take anything as true or false.
EXEMPT = {"args", "inputs", "where", "payloads", "beside", "guards", "optimize", "nested", "detach", "completeness"}


def callables():
    for name in lens.__all__:
        member = getattr(lens, name)
        if callable(member) and not inspect.isclass(member):
            yield f"lens.{name}", member
    for owner in (HISTORY, HISTORY["fc"], HISTORY["fc:2"]):
        for name in [name for name in dir(type(owner)) if not name.startswith("_")]:
            if inspect.isfunction(inspect.getattr_static(type(owner), name)):
                yield f"{type(owner).__name__}.{name}", getattr(owner, name)
    for name in ("__getitem__", "__contains__"):
        yield f"ModelHistory.{name}", getattr(HISTORY, name)


def cases():
    for name, function in callables():
        parameters = [p for p in inspect.signature(function).parameters.values() if p.kind < p.VAR_KEYWORD]
        for chosen in [p.name for p in parameters if p.name not in EXEMPT and p.kind != p.VAR_POSITIONAL]:
            yield pytest.param(function, chosen, id=f"{name}-{chosen}")


def call(function, chosen, value):
    positional, by_name = [], {}
    for parameter in inspect.signature(function).parameters.values():
        given = value if parameter.name == chosen else GOOD.get(parameter.name)
        if parameter.kind == parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
            if parameter.name == chosen:
                by_name[parameter.name] = given
        elif parameter.kind == parameter.POSITIONAL_OR_KEYWORD:
            positional.append(given)
    result = function(*positional, **by_name)
    if isinstance(result, AbstractContextManager):
        with result:
            pass
    elif inspect.isgenerator(result):
        list(result)


@pytest.mark.parametrize(("function", "chosen"), cases())
@pytest.mark.filterwarnings("ignore")
def test_bad_values_give_an_error_of_lens_with_advice_or_work(function, chosen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    errors = {}
    for name, value in BAD.items():
        if function == HISTORY.to_onnx and name in ("unknown", "call"):
            continue  # good paths, for which torch takes seconds
        try:
            call(function, chosen, value)
        except LensError as error:  # any other exception fails the test
            errors[name] = error
    assert not [(name, str(error)) for name, error in errors.items() if not error.hint or len(str(error)) > 1500]


def test_every_public_function_is_among_them():
    names = {name for name, _ in callables()}
    assert {"lens.trace", "lens.load", "lens.progress", "ModelHistory.to_onnx", "ModelHistory.__getitem__"} <= names
    assert len(list(cases())) > 75


def stale():
    x = torch.ones(3)
    history = lens.trace(nn.Identity(), x)
    x.add_(1)
    return history["input_1"].tensor_contents


@pytest.mark.parametrize(
    ("ask", "error", "advice"),
    [
        (lambda: HISTORY["fcc"], UnknownKeyError, "'fc'"),
        (lambda: HISTORY["relu_1_22"], UnknownKeyError, "relu_1"),
        (lambda: HISTORY["3"], UnknownKeyError, r"history\[3\]"),
        (lambda: HISTORY[99], UnknownKeyError, "ordinals go from"),
        (lambda: HISTORY[2.0], UnknownKeyError, "use a label"),
        (lambda: HISTORY[1:3], UnknownKeyError, r"list\(history\)"),
        (lambda: HISTORY.one("fc"), AmbiguousKeyError, "linear_1_2:1"),
        (lambda: HISTORY["fc"].tensor_contents, AmbiguousKeyError, ":1"),
        (lambda: HISTORY["fc:1"].tensor_content, UnknownAttributeError, "tensor_contents"),
        (lambda: HISTORY["fc"].layer_labels, UnknownAttributeError, "layer_label"),
        (lambda: HISTORY.layer_labels, UnknownAttributeError, "layer_list"),
        (lambda: lens.trace(MODEL, X, save=["norm"])["fc:1"].tensor_contents, AbsentValueError, 'save="all"'),
        (
            lambda: lens.trace(MODEL, X, save="none")["fc:1"].tensor_contents,
            AbsentValueError,
            r"save=\['linear_1_2:1'\]",
        ),
        (stale, StaleValueError, "copy what you need"),
        (lambda: HISTORY.layers(module="fcc"), UnknownKeyError, "'fc'"),
        (lambda: HISTORY.export("a.xyz"), LensError, "name the renderer"),
        (lambda: HISTORY.summary("tme"), LensError, "time"),
        (lambda: lens.trace(MODEL, X, backend="torch_funktion"), LensError, "torch_function"),
    ],
)
def test_the_error_says_what_to_type_instead(ask, error, advice):
    with pytest.raises(error, match=rf"(.|\n)*{advice}"):
        ask()
