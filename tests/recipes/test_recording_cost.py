"""What keeping every rollout costs on the demo's task and model."""

from __future__ import annotations

import pytest

from compass.gym.domains.chain_data import ChainDataConfig, write_chain_data
from compass.rollouts.reader import list_rollouts
from tests.recipes.rank_processes import ROOT, run_ranks

STEPS = 6


@pytest.mark.long
def test_the_thread_that_writes_rollouts_takes_a_hundredth_of_a_step_at_most(tmp_path):
    """CPU time of the thread against that of its whole process; the first file, for which a
    library is imported, apart."""
    write_chain_data(ChainDataConfig(num_rl_prompts=256), tmp_path / "data", 0)
    ended = run_ranks(
        [
            *("recipes/rl.py", "--config", ROOT / "configs/rl/debug.toml", "--model", "debug"),
            *("--tokenizer", tmp_path / "data/tokenizer", "--prompts", tmp_path / "data/rl.jsonl"),
            *("--run_dir", tmp_path / "run", "--num_steps", str(STEPS)),
        ],
        2,
    )
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr
    for rank in range(2):
        told = [f.told for f in list_rollouts(tmp_path / "run").files if f.rank == rank]
        writing = told[-1]["writer_seconds"] - told[1]["writer_seconds"]
        assert 0 < writing <= 0.01 * sum(of_step["cpu_seconds"] for of_step in told[1:-1])
