"""``history.to_onnx()``: the trace as an ONNX model, by way of ``torch.fx``, ``torch.export`` and ``torch.onnx``.

A trace has no control flow left, so models that torch cannot export themselves can be exported this way.
"""

from __future__ import annotations

import ast
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from operator import attrgetter
from os import PathLike
from typing import Any

import torch
from torch import fx, nn
from torch._decomp import get_decompositions
from torch.nn.attention import SDPBackend, sdpa_kernel

from lens.errors import RenderError
from lens.foreign import Raised, attempt
from lens.ir.facets import Labels
from lens.ir.graph import Graph
from lens.ir.types import TensorType
from lens.programs.building import make_program
from lens.programs.fx_module import Program
from lens.render.files import path_of, replacing, writing
from lens.render.renderer import Traced

#: What torch's exporters raise, besides their own errors, for a program that they cannot take.
_REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError)
#: Given these, torch's exporter writes a node that reads the running statistics also where the batch's are meant.
_BATCH_NORMS = (
    torch.ops.aten._native_batch_norm_legit_functional,
    torch.ops.aten._native_batch_norm_legit,
    torch.ops.aten._batch_norm_with_update_functional,
)
_NODE = re.compile(r"(?:translating node|While executing) %(\w+)")
_WITHOUT = "to_onnx_structure writes the graph alone, for which no operation needs a counterpart in ONNX"
#: Bytes beyond which the weights stand in a file beside the model: protobuf takes no more than 2 GiB.
_LARGEST = 1 << 30


def convert_history(history: Traced, model: nn.Module | None, noise: str, optimize: bool) -> Any:
    """torch's ``ONNXProgram`` of a trace. Raises RenderError: it has no such form, or onnx is not installed."""
    program = make_program(history, model, guards=False, noise=noise, flat=True)
    for name, tensor in (*program.named_parameters(), *program.named_buffers()):
        if tensor.is_meta:
            raise RenderError(f"{name} is on the meta device: it has no numbers", where=name, hint=_WITHOUT)
    exported = export_program(program, tuple(map(example, input_types(history.graph))))
    return convert(exported, history.graph[Labels].outputs, optimize)


def input_types(graph: Graph) -> list[TensorType]:
    """The types of the tensors among the arguments of the model, in order. Linear in the leaves."""
    return [graph.values[leaf.value].type for leaf in graph.leaves if leaf.kind == "input"]


def save(converted: Any, path: str | PathLike[str]) -> str:
    """Write an ``ONNXProgram``, the weights beside it if they are more than 1 GiB, and give the path.

    A file with no other beside it appears whole or not at all.
    """
    target = path_of(path)
    with writing("the export", target, RenderError):
        if _nbytes(converted) > _LARGEST:  # the file names that beside it
            target.parent.mkdir(parents=True, exist_ok=True)
            converted.save(target, external_data=True)
        else:
            with replacing(target) as temporary:
                converted.save(temporary)
    return str(path)


def example(kind: TensorType) -> torch.Tensor:
    """A tensor of a type, for exporters that look at types alone. Raises RenderError if it has no such tensor."""
    odd = kind.layout if kind.layout != "strided" else kind.dtype if kind.dtype.startswith("q") else ""
    if odd:
        raise RenderError(f"an input is a {odd} tensor, which ONNX has not", where=str(kind), hint="give a dense one")
    return torch.zeros(kind.shape, dtype=getattr(torch, kind.dtype), device=kind.device)


def export_program(program: Program, inputs: tuple[torch.Tensor, ...], dynamic_shapes: Any = None) -> Any:
    """``torch.export`` of a program. Raises RenderError that names the operation that cannot be exported."""
    for node in program.graph.nodes:
        layout = getattr(_attribute(node, program), "layout", torch.strided)
        if layout not in (torch.strided, torch.jagged):  # torch may end the process over those of compressed rows
            raise _refusal(TypeError(f"it reads a {layout} tensor".replace("torch.", "")), next(iter(node.users), None))
    try:
        # exporters take attention apart: the layout of its result must be that of its parts
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")
            exported = torch.export.export(program, inputs, strict=False, dynamic_shapes=dynamic_shapes)
            if any(_normalises_by_batch(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions(get_decompositions(_BATCH_NORMS))
            return exported
    except _REFUSALS as error:
        raise _refusal(error, _running_node(error, program)) from error


def _normalises_by_batch(node: fx.Node) -> bool:
    return "batch_norm" in str(node.target) and True in node.args[:6]


def convert(exported: Any, output_names: Sequence[str], optimize: bool = False) -> Any:
    """``torch.onnx`` of an exported program. Raises RenderError that names the operation without a counterpart."""
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(
                exported, dynamo=True, verbose=False, optimize=optimize, output_names=list(output_names)
            )
    except ImportError as error:
        hint = "pip install 'lens-trace[export]'"
        raise RenderError(f"{error.name} is not installed", where="to_onnx", hint=hint) from error
    except torch.onnx.OnnxExporterError as error:
        raise _refusal(error, _untranslated_node(error, exported)) from error
    _add_labels(converted)
    return converted


def _add_labels(converted: Any) -> None:
    """The label, pass, function, module and line of each operation, as metadata of the nodes made of it."""
    customs = {node.name: node.meta.get("custom", {}) for node in converted.exported_program.graph.nodes}
    graphs = [converted.model.graph, *(function.graph for function in converted.model.functions.values())]
    for node in (node for graph in graphs for node in graph):
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        for key, item in customs.get(scopes[-1], {}).items():
            if key.startswith("lens_"):
                node.metadata_props[key.replace("_", ".", 1)] = str(item)
    converted.model.metadata_props["lens.runnable"] = "yes"


def _nbytes(converted: Any) -> int:
    return sum(item.const_value.nbytes for item in converted.model.graph.initializers.values() if item.const_value)


def _refusal(error: Exception, node: fx.Node | None) -> RenderError:
    """The error of lens for one of torch's exporters."""
    *_, cause = _causes(error)
    first = next(iter(str(cause).strip().splitlines()), type(cause).__name__)[:300]
    custom = {} if node is None else node.meta.get("custom", {})
    what = "the model has no form in ONNX: "
    if "lens_label" in custom:
        what = f"{custom['lens_label']} ({custom['lens_function']}) has no form in ONNX: "
    return RenderError(what + first, where=custom.get("lens_location", ""), hint=_WITHOUT)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what caused it, the root last."""
    while error is not None:
        yield error
        error = error.__cause__


def _untranslated_node(error: BaseException, exported: Any) -> fx.Node | None:
    """The node of an exported program that torch.onnx names in its error."""
    *_, found = (None, *(match[1] for cause in _causes(error) if (match := _NODE.search(str(cause)))))
    if found is None:
        return None
    nodes = [*exported.graph.nodes]
    if all(node.name != found for node in nodes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decomposed = attempt(exported.run_decompositions)  # which fails where sizes depend on data
        nodes += [] if isinstance(decomposed, Raised) else decomposed.graph.nodes
    exact = [node for node in nodes if node.name == found]
    alike = [node for node in nodes if found.strip("_0123456789") in node.name]
    return next(iter(exact + alike), None)


def _running_node(error: BaseException, program: Program) -> fx.Node | None:
    """The node of a program that ran when an error was raised: the message or the source line names it.

    If none ran, the first that reads what exporters do not take: an object, or a tensor without strides.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    names = _NODE.findall(str(error))
    names += [str(frame.line).partition(" = ")[0].strip() for frame in traceback.extract_tb(error.__traceback__)]
    odd = (user for node in nodes.values() if _is_odd(node, program) for user in node.users)
    return next((nodes[name] for name in names if name in nodes), None) or next(odd, None)


def _attribute(node: fx.Node, program: Program) -> Any:
    """What a node takes out of the program; None if it takes nothing."""
    return attrgetter(str(node.target))(program) if node.op == "get_attr" else None


def _is_odd(node: fx.Node, program: Program) -> bool:
    item = _attribute(node, program)
    if item is None:
        return False
    return not isinstance(item, torch.Tensor) or item.layout != torch.strided or item.is_nested or item.is_quantized
