"""Replay undoes what a trainer's rounding does to routers, most where few experts are chosen."""

import pytest
import replay_settings
from replay_settings import Config, measure


@pytest.fixture(scope="module")
def effects():
    import torch.distributed as dist

    from compass.distributed import ParallelConfig, init_topology

    topology = init_topology(ParallelConfig(device="cpu"))
    cfg = Config(num_experts=32, num_layers=8, num_completions=12, completion_tokens=32)
    yield {(e.top_k, e.rounding): e for k in (4, 1) for e in measure(cfg, k, topology)}
    dist.destroy_process_group()


@pytest.mark.parametrize("top_k", [4, 1])
@pytest.mark.parametrize("rounding", ["attention", "router logits"])
def test_rounding_flips_choices_and_replay_lowers_the_gap(effects, top_k, rounding):
    exact, rounded = effects[top_k, "nothing"], effects[top_k, rounding]
    assert rounded.flip_rate > exact.flip_rate
    assert rounded.k3_off > exact.k3_off
    assert rounded.gain > 1


@pytest.mark.parametrize("rounding", ["attention", "router logits"])
def test_replay_gains_more_with_one_expert_than_with_four(effects, rounding):
    assert effects[1, rounding].gain > effects[4, rounding].gain


def test_the_table_has_a_row_for_every_setting(effects):
    table = replay_settings.table(Config(), list(effects.values()))
    assert table.row_count == 6
