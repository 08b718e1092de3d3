"""The course that `make gpu` takes on GPUs, on two CPU ranks."""

import pytest
import torch

from tests.recipes.course import take_course


@pytest.mark.long
def test_a_course_on_two_ranks_resumes_to_the_same_weights(guessing_model, tmp_path) -> None:
    whole, resumed = take_course(guessing_model, tmp_path, device="cpu", world_size=2, settings={})
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
