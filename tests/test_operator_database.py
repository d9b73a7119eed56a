"""Every entry of PyTorch's own databases of operators and modules is recorded as it happened."""

import pytest
import torch
from attrs import evolve
from torch import nn
from torch.overrides import TorchFunctionMode

from lens.capture import torch_function
from lens.capture.keeping import Keeper
from lens.capture.recorder import Recorder
from lens.capture.tensor_table import storage_of
from lens.functions import Function, Kind, describe

pytest.importorskip("expecttest", reason="torch's own test material needs it; it is in the extra 'test'")

from operator_database import EXEMPT, NOT_RUN, UNINITIALISED, backends, entries, possible
from witness import Call, examine, tensors_in

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


class FreshnessMode(TorchFunctionMode):
    """Notes which functions return what is fresh, as lens says they do, and which do not."""

    def __init__(self):
        super().__init__()
        self.kept, self.broken = set(), set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        function = describe(func)
        if (function.returns_fresh or function.shows_or_copies) and "out" not in (kwargs or {}):
            given = tensors_in((args, kwargs))
            made = [tensor for tensor in tensors_in(result) if all(tensor is not one for one in given)]
            if function.shows_or_copies:
                made = [tensor for tensor in made if tensor._base is None]
            memories = [memory for tensor in made if (memory := storage_of(tensor)) is not None]
            is_fresh = len(set(memories)) == len(memories) and not set(memories) & set(map(storage_of, given))
            (self.kept if is_fresh else self.broken).add(str(function.ref))
        return result


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_said_to_be_fresh_shares_no_memory(grad):
    with torch.set_grad_enabled(grad):
        mode = FreshnessMode()
        for entry in entries():
            for calls in entry.calls.values():
                for call in map(possible, calls(SAMPLES)):
                    if call is not None:
                        with mode:
                            call.run()
    assert not mode.broken
    assert len(mode.kept) > 400
    assert {"torch.Tensor.reshape", "torch.Tensor.__getitem__", "torch.Tensor.to"} <= mode.kept


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


def general_way(fast_lane):
    """Every call goes the general way: in the fast lane nothing can be planted in the recorder's methods."""

    def lane(recorder, functions, otherwise):
        return lambda mode, func, types, args=(), kwargs=None: otherwise(func, types, args, kwargs)

    return lane


def tampered(change):
    """After every call in the fast lane something is changed that it wrote."""

    def plant(fast_lane):
        def lane(recorder, functions, otherwise):
            handle = fast_lane(recorder, functions, otherwise)

            def __torch_function__(mode, func, types, args=(), kwargs=None):
                result = handle(mode, func, types, args, kwargs)
                change(recorder)
                return result

            return __torch_function__

        return lane

    return plant


@pytest.mark.parametrize(
    ("function", "operands", "constants"), [(torch.sub, 2, {}), (torch.addcdiv, 3, {"value": 2.0})]
)
def test_swapped_operands_are_found(plant, function, operands, constants):
    plant(torch_function, "fast_lane", general_way)
    plant(Recorder, "encode", lambda encode: lambda self, args, kwargs: encode(self, args[::-1], kwargs))
    assert {"operands", "replay"} <= kinds(function, *torch.randn(operands, 3), **constants)


def test_operands_swapped_in_the_fast_lane_are_found(plant):
    def swap(recorder):
        name, interior, operands, *rest = recorder.tape.ops[-1]
        recorder.tape.ops[-1] = (name, interior, operands[::-1], *rest)

    plant(torch_function, "fast_lane", tampered(swap))
    assert {"operands", "replay"} <= kinds(torch.sub, *torch.randn(2, 3))


def test_values_saved_wrongly_in_the_fast_lane_are_found(plant):
    def double(recorder):
        value = recorder.tape.ops[-1][5][0]
        tensor, version = recorder.keeper.held[value]
        recorder.keeper.held[value] = tensor * 2, version

    plant(torch_function, "fast_lane", tampered(double))
    assert "results" in kinds(torch.exp, torch.randn(3))


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
        self.held[value] = wrong, wrong._version

    plant(Keeper, "hold", lambda _: doubled)
    assert {"operands", "results"} <= kinds(torch.t, torch.randn(3, 2))


def test_a_disturbed_generator_is_found(plant):
    plant(torch_function, "fast_lane", general_way)
    plant(Recorder, "_result", lambda result: lambda self, *call: (torch.rand(1), result(self, *call))[1])
    assert "result" in kinds(torch.exp, torch.randn(3))
