"""Every configuration that is shipped fits the machine that it is made for."""

import shlex
from pathlib import Path

import pytest
from examinations import plan

ROOT = Path(__file__).parents[3]
MACHINES = {
    "rl/30b_a3b_8xh100": "--model 30b-a3b --ranks 8 --device_memory_gb 80",
    "rl/235b_a22b_64xh200": "--model 235b-a22b --ranks 64 --device_memory_gb 141",
    "rl/debug": "--model debug --ranks 2 --device_memory_gb 8",
    "rl/debug_gsm8k": "--model debug --ranks 2 --device_memory_gb 8",
    "rl/debug_phase1": "--model debug --ranks 2 --device_memory_gb 8",
    "sft/30b_a3b_8xh100": "--recipe sft --model 30b-a3b --ranks 8 --device_memory_gb 80",
    "sft/debug": "--recipe sft --model debug --ranks 2 --device_memory_gb 8",
    "sft/debug_phase1": "--recipe sft --model debug --ranks 2 --device_memory_gb 8",
}
"""What each is planned with."""


def check(name: str) -> None:
    words = ["--config", str(ROOT / f"configs/{name}.toml"), *shlex.split(MACHINES[name])]
    plan.run(words)


def test_there_is_a_machine_for_every_configuration_that_trains():
    files = [*ROOT.glob("configs/rl/*.toml"), *ROOT.glob("configs/sft/*.toml")]
    assert {f"{file.parent.name}/{file.stem}" for file in files} == MACHINES.keys()


def test_the_configuration_for_eight_h100_fits_them_and_gives_every_seat_room(capsys):
    check("rl/30b_a3b_8xh100")
    printed = capsys.readouterr().out
    assert "it fits" in printed
    words = printed.replace(",", "").split()
    assert int(words[words.index("for") - 1]) >= 2048  # tokens of the KV cache for each seat


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(MACHINES.keys() - {"rl/30b_a3b_8xh100"}))
def test_every_shipped_configuration_fits_its_machine(name, capsys):
    check(name)
    assert "it fits" in capsys.readouterr().out
