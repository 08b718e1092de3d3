"""Every example of docs/extending.md works, and the losses there equal loops from their papers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from compass.config import parse
from compass.errors import UserError
from compass.own import load_function
from compass.rl.advantage import AdvantageConfig
from compass.rl.config import RlConfig
from compass.rl.own_functions import open_advantages, open_metrics
from compass.train.loss import LossInputs
from compass.train.own_loss import open_own_loss
from compass.train.policy_loss import PolicyLossConfig
from tests.rl.batches import make_group, make_rollout, make_score

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page shows."""
    folder = tmp_path_factory.mktemp("extending")
    for name, text in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        assert text.count("\n") < 40
    return folder


def inputs(seed: int) -> LossInputs:
    """Three rollouts of 4, 1 and 3 tokens with ratios far from 1."""
    random = torch.Generator().manual_seed(seed)
    old_R = -torch.rand(8, generator=random) * 3
    moved_R = old_R + torch.randn(8, generator=random) * 0.5
    ids_R = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2])
    return LossInputs(
        logprobs_R=moved_R.requires_grad_(),
        old_logprobs_R=old_R,
        entropy_R=torch.rand(8, generator=random),
        old_entropy_R=torch.rand(8, generator=random),
        advantages_R=torch.tensor([1.5, -0.7, 0.4])[ids_R],
        correction_R=torch.rand(8, generator=random) + 0.5,
        sequence_ids_R=ids_R,
        weights_B=torch.tensor([1.0, 0.5, 2.0]),
        num_sequences=3,
        num_rollouts=5.0,
        num_tokens=11.0,
        vocab_size=16,
    )


def rollouts(x: LossInputs):
    """(advantage, weight, [(new, old, correction) of each token]) of each rollout."""
    for b in range(x.num_sequences):
        of_b = [t for t in range(len(x.logprobs_R)) if int(x.sequence_ids_R[t]) == b]
        tokens = [(x.logprobs_R[t], x.old_logprobs_R[t], float(x.correction_R[t])) for t in of_b]
        yield float(x.advantages_R[of_b[0]]), float(x.weights_B[b]), tokens


def gmpo_by_loop(x: LossInputs, clip: float) -> torch.Tensor:
    """arXiv 2507.20673, eq. 4: the geometric mean over tokens of min(r^sign, clip(r)^sign)^sign."""
    total = torch.zeros(())
    for advantage, weight, tokens in rollouts(x):
        product = torch.ones(())
        for new, old, _ in tokens:
            ratio = torch.exp(new - old)
            clipped = ratio.clamp(math.exp(-clip), math.exp(clip))
            kept = torch.minimum(ratio, clipped) if advantage > 0 else torch.maximum(ratio, clipped)
            product = product * kept
        mean = product ** (1 / len(tokens))
        correction = sum(c for _, _, c in tokens) / len(tokens)
        total = total - advantage * mean * weight * correction / x.num_rollouts
    return total


def sapo_by_loop(x: LossInputs, tau_pos: float, tau_neg: float) -> torch.Tensor:
    """arXiv 2511.20347, eq. 5-6."""
    total = torch.zeros(())
    for advantage, weight, tokens in rollouts(x):
        tau = tau_pos if advantage > 0 else tau_neg
        for new, old, correction in tokens:
            gate = 4 / tau / (1 + torch.exp(-tau * (torch.exp(new - old) - 1)))
            total = total - gate * advantage * weight * correction / len(tokens) / x.num_rollouts
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("name", "values", "by_loop"),
    [
        ("my/gmpo.py:gmpo", {"clip": 0.3}, lambda x: gmpo_by_loop(x, 0.3)),
        (
            "my/sapo.py:sapo",
            {"tau_pos": 2.0, "tau_neg": 3},
            lambda x: sapo_by_loop(x, 2.0, 3.0),
        ),
    ],
)
def test_an_own_loss_equals_a_loop_from_its_paper(examples, name, values, by_loop, seed):
    x = inputs(seed)
    loss, means = open_own_loss(str(examples / name), values)(x)
    expected = by_loop(x)
    torch.testing.assert_close(loss, expected)
    (got,) = torch.autograd.grad(loss, x.logprobs_R)
    (wanted,) = torch.autograd.grad(expected, x.logprobs_R)
    torch.testing.assert_close(got, wanted)
    assert {"actor/pg_loss", "actor/entropy", "actor/ppo_kl"} <= set(means._sums)


def test_the_own_advantage_is_each_reward_against_the_others(examples, alone):
    cfg = AdvantageConfig(fn=str(examples / "my/leave_one_out.py:leave_one_out"), own={"scale": 2})
    group = make_group("g", [make_rollout(f"g/{i}") for i in range(4)])
    flat = make_group("h", [make_rollout("h/0")])
    advantages = open_advantages(cfg, alone)([group, flat], [[1.0, 0.0, None, 0.5], [1.0]])
    assert advantages == [[1.5, -1.5, 0.0, 0.0], [0.0]]


def test_the_own_metric_sees_every_group(examples, alone):
    metrics = open_metrics([str(examples / "my/solved.py:solved")], alone)
    groups = [
        make_group("a", [make_rollout("a/0", 2, 7), make_rollout("a/1", score=make_score(0.0))]),
        make_group("b", [make_rollout("b/0", 2, 5, score=make_score(0.0))]),
    ]
    assert metrics(groups) == {"own/solved": 0.5, "own/right_tokens": 7.0}


def test_the_recipe_takes_the_lines_that_the_page_adds(examples):
    recipe = (PAGE.parents[1] / "recipes" / "rl.py").read_text()
    line = "            metrics |= parts.metrics(groups)\n"
    assert recipe.count(line) == 1
    edited = recipe.replace(line, line + (examples / "my_rl.py").read_text())
    assert len(edited.splitlines()) < 300
    compile(edited, "my_rl.py", "exec")


def test_a_run_takes_an_own_loss_by_its_flag(examples):
    flags = ["--model=m", "--prompts=p", f"--loss={examples / 'my/sapo.py:sapo'}"]
    cfg = parse(RlConfig, [*flags, "--losses.own", "tau_neg", "1.2"], description="")
    assert cfg.losses.own == {"tau_neg": 1.2}
    bind = cfg.losses.choose(cfg.loss, max_completion_tokens=8)
    x = inputs(0)
    torch.testing.assert_close(bind([], None)(x)[0], sapo_by_loop(x, 1.0, 1.2))  # type: ignore[arg-type]


# ---- mistakes


def test_values_for_an_own_loss_beside_one_of_ours_are_refused():
    flags = ["--model=m", "--prompts=p", "--loss=grpo", "--losses.own", "tau", "1.2"]
    with pytest.raises(UserError, match=r"\[losses.own\] is for a loss of one's own, but loss='gr"):
        parse(RlConfig, flags, description="")


BROKEN = {
    "syntax": ("def f(:\n", r"broken.py:1: SyntaxError"),
    "import": ("\nimport nothing_of_that_name\n", r"broken.py:2: ModuleNotFoundError"),
    "absent": ("def g(inputs): pass\n", r"has no 'f'; it has g"),
    "not a function": ("f = 3\n", r"f is 3; it must be a function"),
    "signature": ("def f(a, b): pass\n", r"is called as \(inputs\) but takes \(a, b\)"),
    "raises": ("def f(inputs):\n    return 1 / 0\n", r"broken.py:2: ZeroDivisionError"),
    "no scalar": ("def f(inputs):\n    return inputs.logprobs_R, {}\n", r"returns \(6,\); it must"),
    "nan": (
        "def f(i):\n    return (i.logprobs_R * float('nan')).sum(), {}\n",
        r"is nan on ordinary",
    ),
    "no gradient": ("def f(i):\n    return i.old_logprobs_R.sum(), {}\n", r"has no gradient"),
    "no dict": ("def f(i):\n    return i.logprobs_R.sum(), 3\n", r"returns 3 beside the loss"),
    "no pair": ("def f(i):\n    return i.logprobs_R.sum()\n", r"must return \(loss, dict of"),
    "exits": ("import sys\nsys.exit(3)\n", r"broken.py:2: SystemExit: 3"),
    "none": ("def f(i):\n    return i.logprobs_R.sum(), {'a': None}\n", r"logs a=None"),
    "metric": ("def f(i):\n    return i.logprobs_R.sum(), {'a': 'b'}\n", r"logs a='b'"),
}


@pytest.mark.parametrize(("source", "complaint"), BROKEN.values(), ids=BROKEN)
def test_a_broken_loss_is_refused_in_one_line_before_the_run(tmp_path, source, complaint):
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(UserError, match=complaint) as refused:
        PolicyLossConfig().choose(f"{tmp_path}/broken.py:f", max_completion_tokens=8)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ({"tau": 1.0}, r"got an unexpected keyword argument 'tau'"),
        ({"tau_pos": "high"}, r"losses.own.tau_pos='high' must be a float"),
    ],
)
def test_a_value_that_the_loss_does_not_take_is_refused(examples, own, complaint):
    with pytest.raises(UserError, match=complaint):
        open_own_loss(str(examples / "my/sapo.py:sapo"), own)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(i, *, a: tuple = ()): pass\n", r"losses.own.a=1 is for a parameter of .*tuple"),
        (
            "from __future__ import annotations\ndef f(i, *, a: Missing = 1): pass\n",
            r"broken.py:f: name 'Missing' is not defined in its annotations",
        ),
        ("import functools\nf = functools.partial(print)\nf = 3\n", r"it must be a function"),
    ],
)
def test_an_annotation_that_no_value_can_have_is_one_line(tmp_path, source, complaint):
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(UserError, match=complaint):
        open_own_loss(f"{tmp_path}/broken.py:f", {"a": 1})


def test_a_loss_may_be_any_callable(tmp_path):
    (tmp_path / "fine.py").write_text(
        "from functools import partial\n"
        "def g(x, scale: float): return x.logprobs_R.sum() * scale, {}\n"
        "f = partial(g, scale=2.0)\n"
    )
    value, _ = open_own_loss(f"{tmp_path}/fine.py:f", {})(inputs(0))
    assert value == 2 * inputs(0).logprobs_R.sum()


def test_no_such_file_and_no_such_loss_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"loss='gpro' must be one of espo, .*, or path/file.py:"):
        parse(RlConfig, ["--model=m", "--prompts=p", "--loss=gpro"], description="")
    with pytest.raises(UserError, match=r"none.py does not exist"):
        load_function(str(tmp_path / "none.py:f"))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(group, rewards):\n    return [1.0]\n", r"returns \[1.0\] for 2 rewards"),
        ("def f(group, rewards):\n    return [1.0, float('inf')]\n", r"returns inf among"),
        ("def f(group, rewards):\n    raise KeyError('x')\n", r"broken.py:2: KeyError"),
    ],
)
def test_an_advantage_that_goes_wrong_ends_the_run_with_its_line(
    tmp_path, alone, source, complaint
):
    (tmp_path / "broken.py").write_text(source)
    advantages = open_advantages(AdvantageConfig(fn=f"{tmp_path}/broken.py:f"), alone)
    group = make_group("g", [make_rollout("g/0"), make_rollout("g/1")])
    with pytest.raises(UserError, match=complaint):
        advantages([group], [[1.0, 0.0]])


def test_a_metric_that_is_no_number_is_named(tmp_path, alone):
    (tmp_path / "broken.py").write_text("def f(groups):\n    return {'a': None}\n")
    with pytest.raises(UserError, match=r"broken.py:f returns None among its values"):
        open_metrics([f"{tmp_path}/broken.py:f"], alone)([])
