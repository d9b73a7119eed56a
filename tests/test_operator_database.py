"""Every entry of PyTorch's own databases of operators and modules is recorded as it happened (issue: all backends)."""

import pytest
import torch

from lens.capture.recorder import Recorder

pytest.importorskip("expecttest", reason="torch's own test material needs it; it is in the extra 'test'")

from operator_database import EXEMPT, NOT_RUN, UNINITIALISED, backends, entries
from witness import Call, examine

SHARDS = 16


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_entry(shard, backend):
    faults = {entry.name: entry.outcome(backend).faults for entry in entries()[shard::SHARDS]}
    assert {name: found for name, found in faults.items() if found} == {}


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


def test_an_operation_that_is_lost_is_found(monkeypatch):
    finish = Recorder.finish

    def losing(self, call, result, duration):
        finish(self, call, result, duration)
        if call[0].ref.name == "relu_":
            self.tape.ops.pop()
            self.tape.ops.append(("lost", *self.tape.ops[-1][1:])) if False else None

    monkeypatch.setattr(Recorder, "finish", losing)
    assert "calls" in kinds(torch.relu_, torch.randn(3))
