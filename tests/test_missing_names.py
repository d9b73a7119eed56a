"""Private names of torch that capture uses, taken away before lens is imported: it imports, and says what it lacks.

Not those of types in C, which nobody can take away: ``_fix_weakref``, ``_make_subclass``, ``_version``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs" / "private-names.md"
PYTHON_LEVEL = ["decoration", "torch_function"]
#: Where, which names, and the backends that cannot do without them.
NAMES = [
    *(("torch.overrides", name, PYTHON_LEVEL) for name in (
        "_push_mode", "_pop_mode", "_pop_mode_temporarily", "_get_current_function_mode",
        "_get_current_function_mode_stack", "_len_torch_function_stack",
    )),
    ("torch._C", "DisableTorchFunction", []),
    ("torch._C", "_is_torch_function_all_disabled", ["decoration"]),
    ("torch._C", "_VariableFunctions", ["decoration"]),
    ("torch._C", "_linalg _special _fft _sparse _nested", []),
    ("torch._C", "_dispatch_has_kernel_for_dispatch_key", []),
    ("torch._C", "ScriptFunction ScriptMethod", []),
    ("torch._C", "_jit_pass_constant_propagation_immutable_types", []),
    ("torch.utils._python_dispatch", "TorchDispatchMode", ["torch_dispatch"]),
    ("torch.utils._python_dispatch", "_disable_current_modes", []),
    ("torch.multiprocessing.reductions", "StorageWeakRef", ["torch_dispatch"]),
    ("torch._dynamo.eval_frame", "_callback_from_stance", []),
    ("torch._dynamo.eval_frame", "set_fullgraph_compiled_frame_count cached_backends", []),
    ("torch._functorch.eager_transforms", "_func_increment_nesting", []),
    ("torch._functorch.eager_transforms", "grad_impl", []),
    ("torch._functorch.apis", "vmap_impl", []),
    ("torch._vmap_internals", "_vmap", []),
    ("torch.jit._builtins", "_find_builtin _register_builtin", []),
    ("torch.utils._device", "_device_constructors", []),
    ("torch.nn.Module", "_call_impl", []),
]  # fmt: skip
CHILD = r"""
import importlib, json, os, sys, types, torch, torch._dynamo.eval_frame, torch.jit._builtins, torch.utils._device
import torch._functorch.eager_transforms, torch.multiprocessing.reductions, torch.utils._python_dispatch

def find(path):
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found

def take_away(path, name):
    owner = find(path)
    if path == "torch._dynamo.eval_frame":  # torch itself needs the names: lens alone misses them
        proxy = sys.modules[path] = types.ModuleType(path)
        vars(proxy).update({key: value for key, value in vars(owner).items() if key != name})
        torch._dynamo.eval_frame = proxy
        return True
    if name == "_call_impl":
        torch.nn.Module.__call__ = torch.nn.Module._call_impl
    holders = [holder for holder in getattr(owner, "__mro__", [owner]) if name in vars(holder)]
    for holder in holders:
        delattr(holder, name)
    return bool(holders)

def look(path, names):
    if not all([take_away(path, name) for name in names.split()]):
        return "not there"
    import lens
    from lens.capture import backends
    found = {}
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    for info in sorted(backends(), key=lambda info: info.name):
        if info.reason is not None:
            found[info.name] = info.reason
            continue
        with torch.no_grad():
            history = lens.trace(model, torch.ones(1, 2), backend=info.name)
        assert history.graph.ops[-1].function.name.startswith("relu"), history
        assert len(history.graph.scopes) == 3
        assert not history.gaps or info.name == "torch_dispatch", history.gaps
    return found

for path, names in json.loads(sys.argv[1]):
    print(end="", flush=True)
    child = os.fork()
    if child == 0:
        try:
            answer = look(path, names)
        except BaseException as error:
            import traceback
            answer = "".join(traceback.format_exception(error)[-3:])
        print(json.dumps([names, answer]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each name is taken away in a process of its own, made by fork")
def test_without_a_private_name_lens_imports_and_falls_back_or_tells_what_is_missing():
    asked = json.dumps([[path, name] for path, name, _ in NAMES])
    result = subprocess.run([sys.executable, "-c", CHILD, asked], capture_output=True, text=True, timeout=300)
    answers = dict(map(json.loads, result.stdout.splitlines()))
    assert answers.keys() == {name for _, name, _ in NAMES}, result.stderr
    wrong = {name: answers[name] for _, name, unavailable in NAMES if (
        isinstance(answers[name], str) or sorted(answers[name]) != unavailable
    )}  # fmt: skip
    assert wrong == {}, "\n".join(f"{name}: {answer}" for name, answer in wrong.items())
    reasons = [(name, why) for name, found in answers.items() for why in found.values()]
    assert [(name, why) for name, why in reasons if name not in why] == []


def test_the_names_taken_away_stand_in_the_documentation():
    listed = DOCS.read_text(encoding="utf-8")
    names = [name for _, names, _ in NAMES for name in names.split()]
    assert [name for name in names if name not in listed] == ["grad_impl", "vmap_impl"]  # of modules listed there
