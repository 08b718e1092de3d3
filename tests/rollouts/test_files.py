"""Rollout files: every column is what was recorded, files are whole or absent whatever happens, and
what is missing is named."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from compass.errors import UserError
from compass.rollouts.reader import list_rollouts
from compass.rollouts.schema import FOLDER, SCHEMA, file_name
from compass.rollouts.table import TableMaker
from compass.rollouts.writer import RolloutFiles
from compass.text.tokenizer import Tokenizer
from tests.recipes.small_disk import small_disk
from tests.rollouts.steps import NUM_EXPERTS, random_step, tokenizer_in


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return tokenizer_in(tmp_path / "tokenizer")


def files_in(run_dir: Path, tokenizer: Tokenizer, **changes: int) -> RolloutFiles:
    settings = {"keep_steps": 5, "last_step": 0} | changes
    return RolloutFiles(run_dir / FOLDER, tokenizer, is_main=True, **settings)


def write(run_dir: Path, tokenizer: Tokenizer, steps: list[int], **changes: int) -> None:
    files = files_in(run_dir, tokenizer, **changes)
    for step in steps:
        files.put(random_step(step))
    files.drain()
    files.close()


def test_every_column_is_what_was_recorded(tmp_path, tokenizer):
    record = random_step(3, num_groups=4, group_size=3)
    files = files_in(tmp_path, tokenizer)
    files.put(record)
    files.drain()
    files.close()
    (file,) = list_rollouts(tmp_path).files
    table = file.table()
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [(row["group"], row["sample"]) for row in rows] == [
        (group, sample) for group in range(4) for sample in range(3)
    ]
    of = {(j.group, j.rollout.sample): j for j in record.judged}
    for row in rows:
        judged = of[row["group"], row["sample"]]
        score, slot = judged.rollout.score, judged.rollout.slot
        tokens, mask = record.tokens[slot], record.tokens[slot].loss_mask
        assert row["prompt_ids"] == tokens.token_ids[~mask].tolist()
        assert row["completion_ids"] == tokens.token_ids[mask].tolist()
        assert row["rollout_logprobs"] == tokens.rollout_logprobs[mask].tolist()
        assert row["completion"] == tokenizer.decode(row["completion_ids"])
        assert b"".join(row["pieces"]).decode(errors="replace") == row["completion"]
        assert row["verdict"] == (score.verdict if score.valid else None)
        assert dict(row["breakdown"]) == score.breakdown
        assert row["reason"] == score.reason.replace("\ud800", "?")
        assert row["advantage"] == judged.advantage
        trained = record.trained.get(slot)
        assert row["minibatch"] == (None if trained is None else trained.minibatch)
        for column, name in (
            ("trainer_logprobs", "logprobs"),
            ("entropies", "entropies"),
            ("advantages", "advantages"),
            ("flips", "flips"),
        ):
            expected = None if trained is None else getattr(trained, name).tolist()
            assert row[column] == expected


def test_expert_load_counts_every_recorded_choice(tmp_path, tokenizer):
    record = random_step(1)
    expected = np.zeros((2, NUM_EXPERTS), int)
    for tokens in record.tokens:
        for choices_LK in tokens.routed_experts.tolist():
            for layer, experts in enumerate(choices_LK):
                for expert in experts:
                    expected[layer, expert] += 1
    table = TableMaker(tokenizer).table(record, writer_seconds=0.0)
    path = tmp_path / FOLDER / file_name(1, 0)
    path.parent.mkdir()
    pq.write_table(table, path)
    (file,) = list_rollouts(tmp_path).files
    assert file.told["expert_load"] == expected.tolist()


def test_a_rank_without_rollouts_writes_a_file_without_rows(tmp_path, tokenizer):
    files = files_in(tmp_path, tokenizer)
    files.put(random_step(1, num_groups=0))
    files.drain()
    files.close()
    (file,) = list_rollouts(tmp_path).files
    assert file.num_rows == len(file.table()) == 0


def test_the_newest_steps_stay_of_all_ranks(tmp_path, tokenizer):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / file_name(1, 7)).write_bytes(b"")
    (folder / "step_notes.parquet").write_bytes(b"")
    write(tmp_path, tokenizer, [1, 2, 3, 4], keep_steps=2, last_step=9)
    assert sorted(path.name for path in folder.iterdir()) == [
        file_name(3, 0),
        file_name(4, 0),
        "step_notes.parquet",
    ]


def test_what_comes_after_the_checkpoint_is_deleted_with_what_a_crash_left(tmp_path, tokenizer):
    write(tmp_path, tokenizer, [1, 2, 3])
    (tmp_path / FOLDER / f".{file_name(4, 0)}.partial").write_bytes(b"PAR1")
    files_in(tmp_path, tokenizer, last_step=2).close()
    assert sorted(os.listdir(tmp_path / FOLDER)) == [file_name(1, 0), file_name(2, 0)]


def test_a_full_disk_is_told_at_the_next_step_and_leaves_what_was_there(tmp_path, tokenizer):
    with small_disk(tmp_path / "disk") as disk:
        files = files_in(disk.folder, tokenizer)
        files.put(random_step(1))
        files.drain()
        with disk.filled(leave=0):
            files.put(random_step(2, num_groups=100, num_tokens=300))
            with pytest.raises(UserError, match=rf"{disk.complaint}.*keep_steps"):
                files.put(random_step(3))
            files.close()
        left = list_rollouts(disk.folder)
        assert left.steps == [1]
        assert left.missing == ()
        assert left.files[0].table().num_rows == 6


def test_a_mistake_of_ours_in_the_thread_is_raised_as_it_is(tmp_path, tokenizer):
    record = random_step(1)
    files = files_in(tmp_path, tokenizer)
    files.put(random_step(2))
    files.put(type(record)(**{**vars(record), "tokens": []}))
    with pytest.raises(IndexError):
        files.drain()
    files.close()


def test_damaged_and_absent_files_are_named_and_the_others_are_read(tmp_path, tokenizer):
    write(tmp_path, tokenizer, [1, 2, 3, 4])
    folder = tmp_path / FOLDER
    cut = (folder / file_name(2, 0)).read_bytes()
    (folder / file_name(2, 0)).write_bytes(cut[: len(cut) // 2])
    (folder / file_name(3, 0)).write_bytes(b"")
    files = RolloutFiles(folder, tokenizer, keep_steps=9, last_step=9, is_main=True)
    files.put(random_step(5, rank=1, world_size=3))
    files.drain()
    files.close()
    found = list_rollouts(tmp_path)
    assert found.steps == [1, 4, 5]
    assert [line.split(":")[0] for line in found.missing] == [
        "step_000002.rank_0000.parquet cannot be read",
        "step_000003.rank_0000.parquet cannot be read",
        "step 5 lacks the rollouts of rank 0, 2",
    ]


def test_damage_behind_a_footer_is_one_line(tmp_path, tokenizer):
    write(tmp_path, tokenizer, [1])
    path = tmp_path / FOLDER / file_name(1, 0)
    content = bytearray(path.read_bytes())
    content[4:300] = bytes(296)
    path.write_bytes(content)
    (file,) = list_rollouts(tmp_path).files
    with pytest.raises(UserError, match=r"step_000001.rank_0000.parquet is damaged"):
        file.table()


def _write_for_ever(run_dir: Path, tokenizer_dir: Path) -> None:
    files = files_in(run_dir, Tokenizer.from_dir(tokenizer_dir), keep_steps=10**6)
    for step in range(1, 10**6):
        files.put(random_step(step, num_groups=8, num_tokens=60))
        (run_dir / "handed_over").write_text(str(step))


def test_killed_at_any_moment_all_but_the_step_in_flight_are_whole(tmp_path, tokenizer):
    context = multiprocessing.get_context("spawn")
    draw = random.Random(0)
    for attempt in range(3):
        run_dir = tmp_path / f"run_{attempt}"
        run_dir.mkdir()
        process = context.Process(target=_write_for_ever, args=(run_dir, tmp_path / "tokenizer"))
        process.start()
        while not (run_dir / "handed_over").exists():
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.3))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        handed_over = (run_dir / "handed_over").read_text()
        found = list_rollouts(run_dir)
        assert found.missing == ()
        assert found.steps == list(range(1, len(found.steps) + 1))
        if handed_over:  # it is cut where the file was being written
            assert len(found.steps) >= int(handed_over) - 1
        assert all(file.table().num_rows == 16 for file in found.files)
