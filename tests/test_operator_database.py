"""Every entry of PyTorch's own databases of operators and modules is recorded as it happened."""

import pytest
import torch
from attrs import evolve
from torch import nn

from lens.capture import torch_function
from lens.capture.keeping import Keeper
from lens.capture.recorder import Recorder
from lens.functions import Function, Kind

pytest.importorskip("expecttest", reason="torch's own test material needs it; it is in the extra 'test'")

from operator_database import EXEMPT, NOT_RUN, UNINITIALISED, backends, entries
from witness import Call, examine

SHARDS = 16
#: Per entry and dtype; ``benchmarks/operator_coverage.py`` takes five, and writes docs/operator-coverage.md.
SAMPLES = 2


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_entry(shard, backend):
    faults = {entry.name: entry.outcome(backend, SAMPLES).faults for entry in entries()[shard::SHARDS]}
    faulty = {name: found for name, found in faults.items() if found}
    assert not faulty


def test_the_tables_of_reasons_name_entries():
    names = {entry.name for entry in entries()}
    assert len(names) > 700
    assert not {*NOT_RUN, *EXEMPT, *UNINITIALISED} - names


# The harness finds what is planted


def kinds(function, *args, **kwargs):
    return {finding.kind for finding in examine([Call("planted", "", function, args, kwargs)])}


def test_nothing_is_found_where_nothing_is_wrong():
    assert kinds(torch.sub, torch.randn(3), torch.randn(3)) == set()
    assert kinds(torch.rand, 3) == set()


def test_a_tensor_of_unknown_origin_is_found():
    assert "external" in kinds(lambda x: torch.from_numpy(x.numpy()) + 1, torch.randn(3))


@pytest.fixture
def plant(monkeypatch):
    """Replaces a method by ``change(original)``."""
    return lambda owner, name, change: monkeypatch.setattr(owner, name, change(getattr(owner, name)))


def test_a_lost_operation_is_found(plant):
    def blind(describe):
        return lambda function: evolve(describe(function), kind=Kind.METADATA)

    plant(torch_function, "describe", blind)
    assert "calls" in kinds(torch.relu, torch.randn(3))


@pytest.mark.parametrize(
    ("encode", "function", "operands", "constants"),
    [("_encode_few", torch.sub, 2, {}), ("_encode", torch.addcdiv, 3, {"value": 2.0})],
)
def test_swapped_operands_are_found(plant, encode, function, operands, constants):
    plant(Recorder, encode, lambda encode: lambda self, args, *rest: encode(self, args[::-1], *rest))
    assert {"operands", "replay"} <= kinds(function, *torch.randn(operands, 3), **constants)


def test_a_lost_write_is_found(plant):
    plant(Function, "written", lambda _: lambda *_: [])
    norm = (torch.randn(4, 3), torch.zeros(3), torch.ones(3), None, None, True)
    assert "writes" in kinds(nn.functional.batch_norm, *norm)


def test_an_invented_write_is_found(plant):
    plant(torch_function, "describe", lambda describe: lambda f: evolve(describe(f), writes=(0,)))
    assert "writes" in kinds(torch.exp, torch.randn(3))


def test_wrong_saved_values_are_found(plant):
    def doubled(self, record, value, tensor, raw=False):
        wrong = tensor.detach() * 2
        self._held[value] = wrong, wrong._version

    plant(Keeper, "hold", lambda _: doubled)
    assert {"operands", "results"} <= kinds(torch.exp, torch.randn(3))


def test_a_disturbed_generator_is_found(plant):
    plant(Recorder, "_result", lambda result: lambda self, *call: (torch.rand(1), result(self, *call))[1])
    assert "result" in kinds(torch.exp, torch.randn(3))
