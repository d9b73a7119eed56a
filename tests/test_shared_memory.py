"""Many tensors in one memory: whom a write reaches, and that it costs the same however many there are."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from counting import calls
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Body
from torch import nn

import lens
from lens.capture.footprint import EVERYWHERE, Footprint, FootprintIndex
from lens.capture.memory import Memory
from lens.ir.layouts import Layout
from lens.ir.verifier import find_problems
from lens.validate.check import check


@st.composite
def views(draw):
    """A part of a memory of 240 elements, as slices, transposes and windows make it."""
    step = draw(st.integers(1, 3))
    shape = draw(st.sampled_from([(240,), (12, 20), (4, 3, 20), (2, 6, 4, 5)]))
    view = torch.arange(240, dtype=torch.int16).view(shape)
    for dim, n in enumerate(view.shape):
        if draw(st.booleans()):
            begin = draw(st.integers(0, n - 1))
            part = view.narrow(dim, begin, draw(st.integers(0, n - begin)))
            view = part[(slice(None),) * dim + (slice(None, None, step),)]
    if draw(st.booleans()) and view.dim() > 1:
        view = view.transpose(0, -1)
    return view.unfold(0, 2, 1) if draw(st.booleans()) and view.shape[0] > 1 else view


def elements(view):
    return set(view.flatten().tolist())


@settings(max_examples=400, deadline=None)
@given(views(), views())
def test_what_has_an_element_in_common_meets(one, other):
    if elements(one) & elements(other):
        assert Footprint.of(one).meets(Footprint.of(other))
        assert Footprint.of(other).meets(Footprint.of(one))


@settings(max_examples=400, deadline=None)
@given(views(), views())
def test_what_has_all_elements_of_another_shows_it(one, other):
    for part in (other, one[::2], one[-1:], one):
        ours, its = Layout.of(one, 0), Layout.of(part, 0)
        is_shown = elements(part) <= elements(one)
        assert ours.shows(tuple(one.shape), its, tuple(part.shape)) == is_shown
        assert ours.in_bytes(2).shows((*one.shape, 2), its.in_bytes(2), (*part.shape, 2)) == is_shown


def test_columns_and_patches_do_not_meet_their_neighbours():
    image = torch.zeros(12, 20)
    patches = [image[i : i + 4, j : j + 5] for i in range(0, 12, 4) for j in range(0, 20, 5)]
    for parts in (image.unbind(1), image.unbind(0), patches, image.view(4, 3, 20).unbind(1), image.split(3, 1)):
        prints = [Footprint.of(part) for part in parts]
        assert [[a.meets(b) for b in prints] for a in prints] == torch.eye(len(prints), dtype=torch.bool).tolist()


@settings(max_examples=400, deadline=None)
@given(views())
def test_every_element_lies_in_the_footprint(view):
    where = Footprint.of(view)
    for element in elements(view):
        assert Footprint(2 * element, 2 * element + 2).meets(where), element


@settings(max_examples=200, deadline=None)
@given(st.lists(views(), max_size=40), views())
def test_the_index_finds_what_meets(parts, wanted):
    index, where = FootprintIndex(), Footprint.of(wanted)
    for number, part in enumerate(parts):
        index.add(Footprint.of(part), number)
    expected = [number for number, part in enumerate(parts) if Footprint.of(part).meets(where)]
    cells = [*index.cells(where)]
    assert len(cells) <= index.reach(where)
    assert sorted(n for cell in cells for found, n in cell if found.meets(where)) == expected
    assert sorted(index.take(where)) == expected
    assert index.take(where) == []
    others = [number for number, part in enumerate(parts) if part.numel() and number not in expected]
    assert sorted(index.take(EVERYWHERE)) == others


def _rows(buffer):
    for row in buffer.unbind(0):
        row.add_(1)
    return buffer * 1


def _columns(buffer):
    for column in buffer.t().contiguous().unbind(1):
        column.add_(1)
    return buffer * 1


def _rows_that_are_read(buffer):
    rows = buffer.unbind(0)
    for row in rows:
        row.mul_(2)
    return torch.stack([row + 1 for row in rows])


def _whole_with_rows_alive(buffer):
    rows = buffer.unbind(0)
    for _ in rows:
        buffer.add_(1)
    return buffer * 1


def _rows_made_one_by_one(buffer):
    kept = []
    for i in range(len(buffer)):
        kept.append(buffer[i])
        kept[-1].copy_(buffer[0])
    return buffer * 1


def _views_of_views(buffer):
    kept = [buffer]
    for _ in range(len(buffer)):
        kept.append(kept[-1].view_as(buffer))
    return kept[-1] * 1


def _rows_after_others_died(buffer):
    gone = buffer.unbind(0)
    buffer.add_(1)
    del gone
    for _ in range(len(buffer)):
        buffer.add_(1)
    return buffer * 1


def _rows_at_once(buffer):
    rows = list(buffer.unbind(0))
    torch._foreach_add_(rows, rows[1:] + rows[:1])
    return buffer * 1


def _rows_made_and_let_go_beside_others(buffer):
    kept = buffer.unbind(0)
    for i in range(len(buffer)):
        buffer[i].add_(1)
    return kept[0] * 1


def _detached_that_are_read(buffer):
    kept = [buffer.data for _ in buffer]
    for one in kept:
        buffer = buffer + one
    return buffer


WORK = [
    _detached_that_are_read,
    _rows_at_once,
    _rows_made_and_let_go_beside_others,
    _rows,
    _columns,
    _rows_that_are_read,
    _whole_with_rows_alive,
    _rows_made_one_by_one,
    _views_of_views,
    _rows_after_others_died,
]


class _Worker(nn.Module):
    def __init__(self, work):
        super().__init__()
        self.work = work

    def forward(self, x):
        return self.work(x)


@pytest.mark.parametrize("save", ["none", "all"])
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__.strip("_"))
def test_a_write_costs_the_same_however_many_tensors_share_the_memory(work, save):
    model = _Worker(work)

    def trace(rows):
        with torch.no_grad():
            lens.trace(model, torch.zeros(rows, 4), save=save, passes=())

    trace(20)
    few, many = (calls(lambda rows=rows: trace(rows)) / rows for rows in (200, 800))
    assert many < 1.3 * few, (few, many)


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__.strip("_"))
@pytest.mark.parametrize("backend", ["torch_function", "torch_dispatch"])
def test_what_many_writes_made_is_right(work, backend):
    x = torch.randn(40, 4)
    expected = work(x.clone())
    with torch.no_grad():
        history = lens.trace(_Worker(work), x.clone(), save="all", backend=backend)
    assert torch.equal(history.payloads.read(history.graph.outputs.values[0]), expected)
    report = check(history)
    assert report.ok, str(report)


def test_writes_to_other_columns_are_no_new_values():
    with torch.no_grad():
        history = lens.trace(_Worker(_columns), torch.zeros(30, 4))
    assert [op for op in history.graph.ops if op.effects] == []


def test_a_write_through_a_tensor_that_was_given_the_memory_of_another_is_found():
    class Model(nn.Module):
        def forward(self, x):
            made, other = x * 1.0, torch.empty(0)
            other.set_(made.untyped_storage(), 0, (4,), (1,))
            with torch._C.DisableTorchFunction():
                other.mul_(3)  # torch does not count it for the one that had the memory
            return made + 1.5

    history = lens.trace(Model(), torch.ones(2, 2))
    assert "external" in {leaf.kind for leaf in history.graph.leaves}


def test_what_another_thread_overwrites_through_a_view_is_copied_first():
    class Model(nn.Module):
        def forward(self, x):
            made = x * 0.0 + 5
            with ThreadPoolExecutor(1) as executor:
                for i in range(2):
                    executor.submit(lambda i=i: made[i].add_(i + 1) * 0).result()
            return made * 2

    with torch.no_grad():
        history = lens.trace(Model(), torch.ones(2, 2), save="all")
    assert history.payloads.read(history.graph.ops[1].results[0]).tolist() == [[5, 5], [5, 5]]
    assert history.payloads.read(history.graph.ops[-1].results[0]).tolist() == [[12, 12], [14, 14]]


def elsewhere(work):
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


class RowOverwritten(nn.Module):
    """Another thread overwrites a row that it has never seen."""

    def forward(self, x):
        made = x * 0.0 + 5
        row = made[0]

        def work():
            made[:].add_(1)
            return made.sum()

        return elsewhere(work) * 2, row


def test_what_another_thread_overwrites_without_knowing_it_is_copied_first():
    with torch.no_grad():
        history = lens.trace(RowOverwritten(), torch.ones(2, 2), save="all")
    assert check(history).failed == ()
    assert history.payloads.read(history.graph.ops[2].results[0]).tolist() == [5, 5]
    assert history["output_2"].tensor_contents.tolist() == [6, 6]


def test_what_was_saved_while_another_thread_overwrote_it_says_so(monkeypatch):
    monkeypatch.setattr(Memory, "copy_held", lambda *_: None)  # as if it had been saved a moment later
    with torch.no_grad():
        history = lens.trace(RowOverwritten(), torch.ones(2, 2), save="all")
    with pytest.raises(lens.errors.StaleValueError):
        history.payloads.read(history.graph.ops[2].results[0])


def numpy_in_a_thread(tensor):
    tensor.detach().numpy()[0, 0] = 7


def numpy_after_a_thread(tensor):
    elsewhere(lambda: tensor.detach().numpy())[0, 0] = 7


def numpy_before_a_use(tensor):
    def work():
        numpy_in_a_thread(tensor)
        return tensor + 1

    assert elsewhere(work)[0, 0] == 8


def numpy_after_a_use(tensor):
    def work():
        result = tensor + 1
        numpy_in_a_thread(tensor)
        return result

    assert elsewhere(work)[0, 0] == 3


def numpy_between_writes(tensor):
    def work():
        tensor.add_(0)
        numpy_in_a_thread(tensor)
        tensor[1].add_(1)

    elsewhere(work)


def numpy_first_of_all(tensor):
    elsewhere(lambda: tensor.numpy())[0, 0] = 7


NUMPY = [
    lambda tensor: elsewhere(lambda: numpy_in_a_thread(tensor)),
    numpy_after_a_thread,
    numpy_before_a_use,
    numpy_after_a_use,
    numpy_between_writes,
    numpy_first_of_all,
]


@pytest.mark.parametrize("backend", ["torch_function", "decoration"])  # torch_dispatch says that it sees no threads
@pytest.mark.parametrize("work", NUMPY)
def test_what_numpy_writes_where_another_thread_let_it_is_external(work, backend):
    """It broke the run, or went unnoticed: for what the other thread had met, and for what it had not."""

    class Model(nn.Module):
        def forward(self, x):
            made = x * 2
            first, second = made[0], made[1]
            work(made)
            return made + 1, first + 1, second + 1

    with torch.no_grad():
        history = lens.trace(Model(), torch.ones(2, 3), backend=backend)
    assert find_problems(history.graph) == []
    assert check(history).failed == ()
    assert "external" in {leaf.kind for leaf in history.graph.leaves}
    assert history["output_1"].tensor_contents[0].tolist() == [8, 3, 3]
    assert history["output_2"].tensor_contents.tolist() == [8, 3, 3]
    assert torch.equal(history.payloads.read(history.graph.ops[0].results[0]), torch.full((2, 3), 2.0))


def test_what_another_thread_wrote_is_noted_once():
    class Model(nn.Module):
        def forward(self, x):
            made = x * 2
            row = made[0]
            elsewhere(lambda: made.add_(1))
            return made + 1, row + 1

    with torch.no_grad():
        graph = lens.trace(Model(), torch.ones(2, 3)).graph
    (write,) = [op for op in graph.ops if op.function.name == "add_"]
    (row,) = [op for op in graph.ops if op.function.name == "__getitem__"]
    assert [old for old, _ in write.effects] == list(row.results)


def test_numpy_that_reads_in_another_thread_changes_nothing():
    class Model(nn.Module):
        def forward(self, x):
            made = x * 2
            row = made[0]
            assert elsewhere(lambda: float(made.detach().numpy().sum())) == 12
            return made + 1, row + 1

    with torch.no_grad():
        history = lens.trace(Model(), torch.ones(2, 3))
    assert check(history).failed == ()
    assert {leaf.kind for leaf in history.graph.leaves} == {"input"}


def out_of_sight(tensor):
    with torch._C.DisableTorchFunction(), torch.no_grad():
        tensor.mul_(3)


def test_what_nobody_saw_in_another_thread_that_used_the_tensor_is_external():
    class Model(nn.Module):
        def forward(self, x):
            made = x * 2
            row = made[0]

            def work():
                used = made + 1
                out_of_sight(made)
                return used

            used = elsewhere(work)
            return made + used, row + 1

    with torch.no_grad():
        history = lens.trace(Model(), torch.ones(2, 3))
    assert check(history).failed == ()
    made, row = (history[f"output_{number}"].parent_layers[0] for number in (1, 2))
    assert all(history[parent].parent_layers[0].startswith("external") for parent in (made, row))
    with pytest.raises(lens.errors.StaleValueError):
        history.payloads.read(history.graph.ops[0].results[0])


def test_a_write_that_torch_counts_elsewhere_does_not_hide_one_out_of_sight():
    class Model(nn.Module):
        def forward(self, x):
            made = x * 1.0
            data = made.data  # its writes are counted apart
            out_of_sight(made)
            data.add_(1)
            return made + 1

    history = lens.trace(Model(), torch.ones(2, 2))
    assert "external" in {leaf.kind for leaf in history.graph.leaves}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("backend", ["torch_function", "decoration"])
def test_who_reads_a_detached_tensor_finds_a_write_out_of_sight_to_what_it_shows(count, backend):
    class Model(nn.Module):
        def forward(self, x):
            made = x * 1.0
            data = [made.data for _ in range(count)]  # whose writes are counted apart
            out_of_sight(made)
            return data[-1] + 1, made

    history = lens.trace(Model(), torch.ones(2, 2), backend=backend)
    assert history["add_1"].parent_layers[0].startswith("external")
    assert check(history).ok


@pytest.mark.parametrize("save", ["all", lambda op: op.type == "data"])
@pytest.mark.parametrize("count", [1, 20])
def test_what_a_write_counted_elsewhere_has_overwritten_is_not_shown(count, save):
    """However many there are: at the end all are asked."""

    class Model(nn.Module):
        def forward(self, x):
            made = x * 1.0
            self.made = made  # alive, and nobody looks at it again
            data = [made.data for _ in range(count)]
            result = torch.stack(data)
            out_of_sight(made)
            return result

    history = lens.trace(Model(), torch.ones(2, 2), save=save)
    for op in history.graph.ops[1:-1]:
        with pytest.raises(lens.errors.StaleValueError):
            history.payloads.read(op.results[0])


def test_what_leaves_memory_in_which_writes_are_counted_apart_has_its_own_count_again():
    class Model(nn.Module):
        def forward(self, x):
            made = x * 1.0
            made.data  # noqa: B018
            made.set_()
            torch.add(x, 1, out=made)
            first = made * 2
            out_of_sight(made)
            return first, made * 2

    with torch.no_grad():
        history = lens.trace(Model(), torch.ones(2, 2), save="none")  # which would keep the other
    first, second = (history[f"output_{number}"].parent_layers[0] for number in (1, 2))
    assert history[first].parent_layers == ["add_1_4"]
    assert history[second].parent_layers == ["external_1"]


def test_what_was_overwritten_out_of_sight_at_the_end_is_not_shown():
    class Model(nn.Module):
        def forward(self, x):
            made = x * 1.0
            made[0].add_(1)
            result = made * 2
            out_of_sight(made)
            return result

    with torch.no_grad():
        history = lens.trace(Model(), torch.ones(2, 2), save="all")
    read, made = history.graph.ops[-1].operands[0], history.graph.ops[-1].results[0]
    assert torch.equal(history.payloads.read(made), torch.tensor([[4.0, 4.0], [2.0, 2.0]]))
    with pytest.raises(lens.errors.StaleValueError):
        history.payloads.read(read)


def test_rows_that_numpy_reads_are_watched_once():
    def read(x):
        made = x * 2
        rows = list(made)
        for row in rows:
            row.numpy()
        return made

    few, many = (calls(lambda n=n: lens.trace(read, torch.ones(n, 4), save="none")) / n for n in (100, 400))
    assert many < 1.5 * few


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
@pytest.mark.parametrize("training", [False, True])
def test_saved_statistics_stay_when_a_later_call_updates_them(training, backend):
    model, x = nn.BatchNorm1d(4).train(training), torch.randn(8, 4) + 5
    history = lens.trace(model, x, backend=backend)
    before = [entry.tensor_contents.clone() for entry in history]
    model.train()(x)
    assert all(torch.equal(old, entry.tensor_contents) for old, entry in zip(before, history, strict=True))
    assert check(history).ok


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_what_came_back_from_numpy_is_reached_by_writes_to_the_original(backend):
    def forward(x):
        y = x * 2
        back = torch.from_numpy(y.detach().numpy()).view(-1)
        before = back.sum()
        y.add_(1)
        return before, back

    history = lens.trace(Body(forward), torch.ones(3), backend=backend)
    before, after = (history[label].tensor_contents.tolist() for label in ("output_1", "output_2"))
    assert (before, after) == (6.0, [3.0, 3.0, 3.0])
    (total,) = (entry for entry in history if entry.layer_type == "sum")
    assert history[total.parent_layers[0]].tensor_contents.tolist() == [2.0, 2.0, 2.0]
