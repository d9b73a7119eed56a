"""Recipes for torch_geometric: its layers, with arguments by the names of their parameters, on one small graph."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch_geometric import nn as layers

from lens.model_specs import ModelCall

_NODES, _WIDTH = 8, 16
#: Values for the parameters of constructors that have no default.
_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("in_channels", "out_channels", "channels", "hidden_channels", "emb_dim", "node_dim"), _WIDTH),
    **dict.fromkeys(("in_channels_node", "in_channels_edge", "edge_dim", "dim_g", "dim_h"), _WIDTH),
    **dict.fromkeys(("kernel_size", "K", "num_layers", "heads", "num_heads", "num_filters"), 2),
    **dict.fromkeys(("num_relations", "num_edge_types", "num_types", "dim", "num_bases"), 3),
    **dict.fromkeys(("alpha", "dropout", "cutoff"), 0.1),
    **dict.fromkeys(("k", "space_dimensions", "propagate_dimensions", "filter_size"), 3),
    **dict.fromkeys(("num_node_types", "edge_type_emb_dim", "edge_attr_emb_dim"), 3),
}
#: Layers that need an argument that their signature calls optional.
_NEEDED = {
    **dict.fromkeys(("RGCNConv", "FastRGCNConv", "RGATConv"), "edge_type"),
    **dict.fromkeys(("GMMConv", "NNConv"), "edge_attr"),
}


def names(everything: bool) -> list[str]:
    """All convolutions, and the whole models built of them."""
    models = ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN")
    return sorted({*layers.conv.classes, *models} - {"MessagePassing"})


def build(name: str) -> ModelCall:
    """A layer and a graph for it. Raises TypeError if a parameter of it is not known here."""
    layer = getattr(layers, name)
    settings, graph = _settings(), _graph()
    if name == "NNConv":
        settings["nn"] = torch.nn.Linear(3, _WIDTH * _WIDTH)
    model = layer(**_arguments(layer.__init__, settings, ()))
    return ModelCall(model.eval(), (), _arguments(model.forward, graph, (_NEEDED.get(name),)))


def _settings() -> dict[str, Any]:
    mlp = torch.nn.Sequential(torch.nn.LazyLinear(_WIDTH), torch.nn.ReLU(), torch.nn.Linear(_WIDTH, _WIDTH))
    conv = layers.GCNConv(_WIDTH, _WIDTH)
    return {
        **_SETTINGS,
        "nn": mlp,
        "conv": conv,
        "aggregators": ["mean", "max"],
        "scalers": ["identity"],
        "deg": torch.ones(4),
    }


def _graph() -> dict[str, Any]:
    edges = torch.stack([torch.arange(_NODES), torch.arange(_NODES).roll(1)]).repeat(1, 2)
    count = edges.shape[1]
    return {
        "x": torch.randn(_NODES, _WIDTH),
        "x_0": torch.randn(_NODES, _WIDTH),
        "edge_index": edges,
        "hyperedge_index": edges,
        "pos": torch.randn(_NODES, 3),
        "normal": torch.randn(_NODES, 3),
        "edge_attr": torch.randn(count, 3),
        "pseudo": torch.rand(count, 3),
        "edge_weight": torch.rand(count),
        "edge_type": torch.randint(0, 3, (count,)),
        "batch": torch.zeros(_NODES, dtype=torch.long),
    }


def _arguments(function: Any, known: dict[str, Any], further: tuple[str | None, ...]) -> dict[str, Any]:
    """The arguments that a function needs, and further ones."""
    parameters = inspect.signature(function).parameters.values()
    ordinary = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    wanted = [p.name for p in ordinary if p.default is p.empty or p.name in further]
    missing = [name for name in wanted if name not in known and name != "self"]
    if missing:
        raise TypeError(f"no value is known for {', '.join(missing)}")
    return {name: known[name] for name in wanted if name != "self"}
