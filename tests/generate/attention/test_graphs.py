"""Which steps share a recording, and when recordings are thrown away."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.generate.attention.graphs import DecodeGraphs, GraphShape, use_graphs
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator


def make_graphs(max_rows: int = 100, max_length: int = 5000) -> DecodeGraphs:
    return DecodeGraphs(lambda: lambda forward: forward, max_rows=max_rows, max_length=max_length)


@given(
    rows=st.integers(1, 300),
    length=st.integers(1, 40_960),
    spare_rows=st.integers(0, 300),
    spare_length=st.integers(0, 9000),
)
def test_a_step_fits_its_form_and_wastes_less_than_half(
    rows, length, spare_rows, spare_length
) -> None:
    graphs = make_graphs(rows + spare_rows, length + spare_length)
    shape = graphs.shape_for(rows, length)
    assert rows <= shape.num_rows <= min(2 * rows - 1, rows + spare_rows)
    assert length <= shape.max_length <= min(max(256, 2 * length + 255), length + spare_length)


def test_forms_are_few() -> None:
    graphs = make_graphs(256, 40_960)
    shapes = {
        graphs.shape_for(rows, length) for rows in range(1, 257) for length in range(1, 40_961, 97)
    }
    assert {shape.num_rows for shape in shapes} == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert {shape.max_length for shape in shapes} == {256 << i for i in range(8)} | {40_960}


def test_a_form_is_recorded_when_it_is_first_met() -> None:
    graphs = make_graphs()
    numbers = iter(range(10))
    forward = lambda: torch.tensor(next(numbers))
    small, large = GraphShape(1, 256), GraphShape(2, 256)
    assert [int(graphs.run(shape, forward)) for shape in (small, large, small)] == [0, 1, 2]
    assert graphs.num_recorded == 2


def test_graphs_are_dropped_when_a_weight_moved_and_only_then(topology) -> None:
    model = torch.nn.Linear(2, 2)
    graphs = make_graphs()
    shape, forward = GraphShape(1, 256), lambda: torch.zeros(1)
    graphs.follow(model, topology)
    graphs.run(shape, forward)
    with torch.no_grad():
        model.weight.add_(1)  # a refresh in place
    graphs.follow(model, topology)
    graphs.run(shape, forward)
    assert graphs.num_recorded == 1
    model.weight = torch.nn.Parameter(model.weight.detach().clone())
    graphs.follow(model, topology)
    graphs.run(shape, forward)
    assert graphs.num_recorded == 2
    model.register_buffer("scale", torch.ones(2))
    graphs.follow(model, topology)
    graphs.run(shape, forward)
    assert graphs.num_recorded == 3


def test_graphs_go_with_the_cache_and_are_recorded_anew() -> None:
    graphs = DecodeGraphs(lambda: lambda forward: forward, max_rows=4, max_length=256)
    for num_recorded in (1, 2):
        for _ in range(2):
            graphs.run(GraphShape(1, 256), lambda: torch.zeros(1))
        assert graphs.num_recorded == num_recorded
        graphs.drop()


def test_steps_are_recorded_wherever_they_can_be(policy, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(policy, "compute_dtype", torch.bfloat16)
    place = Place(torch.device("cuda"))
    assert use_graphs(None, policy, "triton", place)
    assert not use_graphs(False, policy, "triton", place)
    assert not use_graphs(None, policy, "gather", Place(torch.device("cpu")))


def test_graphs_on_the_cpu_are_refused_in_one_line(policy, topology) -> None:
    with pytest.raises(UserError, match=r"generator\.cuda_graphs=True on cpu.*set it to False"):
        Generator(policy, GeneratorConfig(cuda_graphs=True), topology)


@dataclass
class Place:
    """What is asked of a topology."""

    device: torch.device
    ep: int = 1


@pytest.mark.parametrize(
    ("attention", "capability", "dtype", "named"),
    [
        ("gather", (9, 0), torch.bfloat16, "attention=gather"),
        ("triton", (8, 0), torch.bfloat16, "capability 8.0 in bfloat16"),
        ("triton", (9, 0), torch.float32, "capability 9.0 in float32"),
    ],
)
def test_what_cannot_be_recorded_on_a_device_is_refused(
    attention, capability, dtype, named, policy, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(policy, "compute_dtype", dtype)
    with pytest.raises(UserError, match=named):
        use_graphs(True, policy, attention, Place(torch.device("cuda")))
    assert not use_graphs(None, policy, attention, Place(torch.device("cuda")))


@pytest.mark.parametrize("ep", [1, 2])
def test_the_setting_it_is_made_for_is_accepted(ep, policy, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(policy, "compute_dtype", torch.bfloat16)
    assert use_graphs(True, policy, "triton", Place(torch.device("cuda"), ep))
