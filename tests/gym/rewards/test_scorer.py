"""Rewards of the user's own: every style is called as its framework does, every fault is invalid
with its reason, and the examples of docs/gym.md do what the page says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from compass.errors import UserError
from compass.gym.datasets import load_prompts, parse_prompt
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.gym.reward import broken
from compass.gym.rewards.call import WholeGroup, takes_groups
from compass.gym.rewards.config import RewardConfig, named_domains
from compass.gym.rewards.scorer import Scorer, check_rewards
from compass.gym.unjudgeable import unjudgeable
from compass.types import Prompt, Score

PAGE = Path(__file__).parents[3] / "docs" / "gym.md"
ROW = {"data_source": "openai/gsm8k", "extra_info": {"index": 3}, "tests_wanted": 2}


def prompt_of(answer: str | None = "7", **changes) -> Prompt:
    said = ({"role": "user", "content": "3 + 4?"},)
    return Prompt(**{"id": "p", "messages": said, "answer": answer, "extra": ROW} | changes)


@pytest.fixture
def scored(tmp_path):
    """The score of a completion under one function."""

    def score(source: str, completion: str = "\\boxed{7}", prompt=None, **config) -> Score:
        path = tmp_path / "own.py"
        path.write_text(source)
        fn = f"{path}:f"
        rewards = {"own": RewardConfig(fn=fn, **{"replaces": True} | config)}
        check_rewards(rewards)
        scorer = Scorer(rewards=rewards, right_above=0.5)
        alone = scorer(prompt or prompt_of(), completion, True)
        if not takes_groups(fn):
            return alone
        (in_group,) = scorer.of_group(whole_group([completion], prompt or prompt_of()), [alone])
        return in_group

    return score


def whole_group(completions: list[str], prompt: Prompt) -> WholeGroup:
    ids = [[ord(letter) for letter in text] for text in completions]
    return WholeGroup(prompt=prompt, completions=completions, completion_ids=ids, step=12)


VERL = "def f(data_source, solution_str, ground_truth, extra_info):\n"
STYLES = {
    "verl's custom function": VERL
    + "    assert (data_source, extra_info) == ('openai/gsm8k', {'index': 3})\n"
    "    return float(ground_truth in solution_str)\n",
    "verl's own scorer": "def f(solution_str, ground_truth, method='strict'):\n"
    "    return 1.0 if method == 'strict' and ground_truth in solution_str else 0\n",
    "TRL": "def f(completions, answer, **kwargs):\n"
    "    assert kwargs['tests_wanted'] == [2]\n"
    "    return [float(a in c[0]['content']) for c, a in zip(completions, answer)]\n",
    "TRL with prompts": "def f(prompts, completions, answer):\n"
    "    assert prompts[0][0]['content'] == '3 + 4?'\n"
    "    return [float(a in c[-1]['content']) for c, a in zip(completions, answer)]\n",
    "plain": "def f(prompt, completion, answer, tests_wanted):\n"
    "    return prompt[0]['role'] == 'user' and answer in completion and tests_wanted == 2\n",
    "async": "async def f(completion, answer):\n    return answer in completion\n",
    "a dict": "def f(completion, answer):\n"
    "    return {'score': answer in completion, 'length': len(completion), 'note': 'x'}\n",
    "numpy": "from numpy import float32\n"
    "def f(completion, answer):\n    return float32(answer in completion)\n",
}


@pytest.mark.parametrize("source", STYLES.values(), ids=STYLES)
def test_a_function_of_any_style_is_called_as_it_asks(scored, source):
    right, wrong = scored(source), scored(source, "\\boxed{8}")
    assert (right.valid, right.verdict, right.reward, right.reason) == (True, 1.0, 1.0, "")
    assert (wrong.valid, wrong.verdict, wrong.reward) == (True, 0.0, 0.0)
    assert right.breakdown["own"] == 1.0


def test_a_raw_prompt_gives_text_to_functions_that_take_lists(scored):
    source = (
        "def f(prompts, completions):\n"
        "    return [float(p + c == '3 + 4?7') for p, c in zip(prompts, completions)]\n"
    )
    assert scored(source, "7", prompt_of(raw=True)).verdict == 1


FAULTS = {
    "raises": ("def f(completion):\n    return 1 / 0\n", r"ZeroDivisionError: .* \(.*own.py:2\)"),
    "nan": ("def f(completion):\n    return float('nan')\n", r"returned nan, which is no finite"),
    "infinity": ("def f(completion):\n    return -1e999\n", r"returned -inf, which is no finite"),
    "a string": ("def f(completion):\n    return '1'\n", r"returned '1', which is no finite"),
    "another length": ("def f(completions):\n    return [1, 2]\n", r"returned \[1, 2\] for a list"),
    "no list": (
        "def f(completions):\n    return 1.0\n",
        r"returned 1.0 for a list of 1 completion",
    ),
    "no score": ("def f(completion):\n    return {'a': 1}\n", r"a dict without `score`"),
    "a field that is not there": ("def f(completion, nothing):\n    pass\n", r"asks for `nothing`"),
    "too much": (
        "def f(completion):\n    return 1e200\n",
        r"the rewards sum to 1e\+200, above 1e\+38",
    ),
    "does not apply": ("def f(completion):\n    return None\n", r"no reward applies"),
}


@pytest.mark.parametrize(("source", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_invalid_with_its_reason_and_never_a_zero(scored, source, reason):
    score = scored(source)
    assert not score.valid
    assert re.search(reason, score.reason), score.reason


SHORTEST = """
def f(prompts, completions, completion_ids, answer, trainer_state):
    assert trainer_state.global_step == 12 and len(prompts) == len(answer) == len(completions)
    assert [len(ids) for ids in completion_ids] == [len(c[0]["content"]) for c in completions]
    shortest = min(map(len, completion_ids))
    return [None if not ids else float(len(ids) == shortest) for ids in completion_ids]
"""


def group_scores(path: Path, source: str, completions: list[str], **config) -> list[Score]:
    path.write_text(source)
    rewards = {"own": RewardConfig(fn=f"{path}:f", **config)}
    scorer = Scorer(rewards=rewards, right_above=0.5)
    alone = [scorer(prompt_of(), text, True) for text in completions]
    return scorer.of_group(whole_group(completions, prompt_of()), alone)


def test_a_function_that_takes_lists_compares_the_completions_of_a_group(tmp_path):
    texts = ["\\boxed{7}", "so \\boxed{7}", "\\boxed{8}"]
    scores = group_scores(tmp_path / "own.py", SHORTEST, texts, weight=0.5)
    assert [s.reward for s in scores] == [1.5, 1.0, 0.5]
    assert [s.verdict for s in scores] == [1.0, 1.0, 0.0]
    replaced = group_scores(tmp_path / "own.py", SHORTEST, texts, replaces=True)
    assert [(s.verdict, s.reward) for s in replaced] == [(1, 1), (0, 0), (1, 1)]


def test_a_fault_over_a_group_spoils_those_that_were_valid_and_no_reason_is_lost(tmp_path):
    fails = "def f(completions):\n    return [1.0]\n"
    path = tmp_path / "own.py"
    path.write_text(fails)
    scorer = Scorer(rewards={"own": RewardConfig(fn=f"{path}:f")}, right_above=0.5)
    earlier = broken("timeout after 5 s", 5.0)
    alone = [scorer(prompt_of(), "\\boxed{7}", True), earlier]
    first, second = scorer.of_group(whole_group(["\\boxed{7}", "x"], prompt_of()), alone)
    assert (first.valid, second) == (False, earlier)
    assert "reward own: returned [1.0] for a list of 2 completions" in first.reason


def test_where_none_of_a_group_function_applies_to_a_completion_it_is_invalid(tmp_path):
    source = (
        "def f(completions):\n"
        "    return [None if c[0]['content'] == 'x' else 1 for c in completions]\n"
    )
    scores = group_scores(tmp_path / "own.py", source, ["x", "y"], replaces=True)
    assert [(s.valid, s.reason) for s in scores] == [(False, "no reward applies"), (True, "")]


def test_a_ground_truth_that_is_no_text_arrives_as_it_stands(scored):
    truth = {"target": ["Paris", "Lutetia"]}
    prompt = parse_prompt({"id": "p", "prompt": "?", "reward_model": {"ground_truth": truth}})
    source = (
        "def f(solution_str, ground_truth):\n"
        "    return float(any(name in solution_str for name in ground_truth['target']))\n"
    )
    assert [scored(source, text, prompt).verdict for text in ("in Paris", "in Rome")] == [1, 0]


@pytest.mark.parametrize(
    ("row", "parameter"),
    [({"answer": 7.5}, "answer"), ({"reward_model": {"ground_truth": 7.5}}, "ground_truth")],
)
def test_a_number_arrives_as_a_number(scored, row, parameter):
    prompt = parse_prompt({"id": "p", "prompt": "?", **row})
    assert prompt.answer == "7.5"
    text = "solution_str" if parameter == "ground_truth" else "completion"
    source = f"def f({text}, {parameter}):\n    return float({text}) - {parameter}\n"
    assert scored(source, "10", prompt).reward == 2.5


def test_the_reason_of_a_fault_stays_short(scored):
    reason = scored("def f(completion):\n    raise ValueError('x' * 1_000_000)\n").reason
    assert len(reason) < 1000
    assert reason.endswith("own.py:2)")


def test_beside_the_verifier_the_reward_adds_and_the_verdict_stays(scored):
    bonus = "def f(completion):\n    return 5 * ('think' in completion)\n"
    right = scored(bonus, "think \\boxed{7}", replaces=False, weight=0.1)
    assert (right.verdict, right.reward, right.breakdown["own"]) == (1.0, 1.5, 5.0)
    wrong = scored(bonus, "think \\boxed{8}", replaces=False, weight=-2.0)
    assert (wrong.verdict, wrong.reward) == (0.0, -10.0)
    metric = scored(bonus, "think \\boxed{8}", replaces=False, weight=0.0)
    assert (metric.reward, metric.breakdown["own"]) == (0.0, 5.0)
    other = scored(bonus, "think \\boxed{7}", replaces=False, domains=("code",))
    assert (other.reward, dict(other.breakdown)) == (1.0, {})


def test_a_function_that_gives_the_verdict_overrules_the_verifier(scored):
    short = "def f(completion):\n    return 1 / len(completion)\n"
    assert scored(short, "\\boxed{7}", replaces=False, verdict=True).verdict == 0
    assert scored(short, "7", replaces=False, verdict=True).verdict == 1


def test_what_a_function_prints_blocks_nothing(tmp_path):
    (tmp_path / "loud.py").write_text(
        "def f(completion):\n    print('x' * 5_000_000)\n    return 1.0\n"
    )
    config = PoolConfig(
        num_workers=1, rewards={"loud": RewardConfig(fn=f"{tmp_path}/loud.py:f", replaces=True)}
    )
    with VerifierPool(config) as pool:
        for i in range(3):
            pool.submit_text(i, prompt_of(), "7", finished=True)
        assert [score.reward for _, score in pool.drain()] == [1.0] * 3


def test_no_time_limit_pays_for_the_imports_of_a_function(tmp_path):
    (tmp_path / "heavy.py").write_text(
        "import time\ntime.sleep(1.5)\ndef f(completion):\n    return 1.0\n"
    )
    reward = RewardConfig(fn=f"{tmp_path}/heavy.py:f", replaces=True)
    config = PoolConfig(num_workers=1, timeout_seconds=1.0, rewards={"heavy": reward})
    with VerifierPool(config) as pool:
        pool.submit_text(0, prompt_of(), "7", finished=True)
        assert [score.reason for _, score in pool.drain()] == [""]


def test_a_function_that_hangs_costs_its_own_rollout(tmp_path):
    (tmp_path / "slow.py").write_text(
        "def f(completion):\n    while completion == 'hang': pass\n    return 1.0\n"
    )
    reward = RewardConfig(fn=f"{tmp_path}/slow.py:f", replaces=True)
    config = PoolConfig(num_workers=1, timeout_seconds=1.0, rewards={"slow": reward})
    with VerifierPool(config) as pool:
        for i, text in enumerate(["hang", "7"]):
            pool.submit_text(i, prompt_of(), text, finished=True)
        scores = dict(pool.drain())
    assert (scores[0].valid, scores[0].reason[:7], scores[1].reward) == (False, "timeout", 1.0)


# ---- mistakes


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import nothing_of_that_name\n", r"gym.rewards.r: .*own.py:1: ModuleNotFoundError"),
        ("def f(text):\n    pass\n", r"gym.rewards.r: .* takes \(text\), which is no style of"),
        ("def g(completion):\n    pass\n", r"gym.rewards.r: .* has no 'f'; it has g"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_at_the_start(tmp_path, source, complaint):
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(UserError, match=complaint):
        check_rewards({"r": RewardConfig(fn=f"{tmp_path}/own.py:f")})


def test_two_verdicts_for_one_domain_are_refused(tmp_path):
    (tmp_path / "own.py").write_text("def f(completion):\n    return 1.0\n")
    one = RewardConfig(fn=f"{tmp_path}/own.py:f", verdict=True)
    with pytest.raises(UserError, match=r"a and b both give the verdict of 'math'"):
        check_rewards({"a": one, "b": one})


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("math", {}, r"gym.rewards.math is called as a domain is"),
        ("mine", {"domains": ("mine",)}, r"gym.rewards.mine is called as a domain is"),
        ("r", {"weight": 0.0, "domains": ("mine",)}, r"only weigh 0 in 'mine'"),
        ("r", {"weight": 0.0, "replaces": True, "domains": ("math",)}, r"only weigh 0 in 'math'"),
    ],
)
def test_what_would_be_logged_twice_or_always_be_zero_is_refused(
    tmp_path, name, changes, complaint
):
    (tmp_path / "own.py").write_text("def f(completion):\n    return 1.0\n")
    with pytest.raises(UserError, match=complaint):
        check_rewards({name: RewardConfig(fn=f"{tmp_path}/own.py:f", **changes)})


# ---- the page


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gym")
    for name, text in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        assert text.count("\n") < 40
    return folder


def rewards_of_the_page(page: Path) -> dict[str, RewardConfig]:
    tables: dict[str, RewardConfig] = {}
    for text in re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for name, row in tomllib.loads(text).get("gym", {}).get("rewards", {}).items():
            domains = tuple(row["domains"])
            tables[name] = RewardConfig(**row | {"fn": f"{page}/{row['fn']}", "domains": domains})
    return tables


def test_the_rewards_of_the_page_score_as_it_says(page):
    rewards = rewards_of_the_page(page)
    check_rewards(rewards)
    scorer = Scorer(rewards=rewards, right_above=0.5)
    formed = scorer(prompt_of(), "<think>3 + 4</think>\\boxed{7}", True)
    assert (formed.verdict, formed.reward) == (1.0, pytest.approx(1.1))
    assert scorer(prompt_of(), "\\boxed{7}", True).reward == 1.0
    plus_minus = RewardConfig(fn=f"{page}/my/plus_minus.py:plus_minus", replaces=True, verdict=True)
    dapo = Scorer(rewards={"plus_minus": plus_minus}, right_above=0.5)
    ends = [dapo(prompt_of(), f"\\boxed{{{n}}}", True) for n in (7, 8)]
    assert [(score.verdict, score.reward) for score in ends] == [(1.0, 1.0), (0.0, -1.0)]


def test_a_domain_of_ones_own_needs_no_verifier_of_ours(page, tmp_path):
    rewards = rewards_of_the_page(page)
    file = tmp_path / "own.jsonl"
    file.write_text('{"id": 1, "problem": "?", "answer": "level", "domain": "palindrome"}\n')
    (prompt,) = load_prompts(file, own_domains=named_domains(rewards))
    config = PoolConfig(num_workers=1, rewards=rewards)
    assert unjudgeable([prompt], config) == {}
    with VerifierPool(config, domains=["palindrome"]) as pool:
        for i, text in enumerate(["level", "a level a", "levels"]):
            pool.submit_text(i, prompt, text, finished=True)
        scores = dict(pool.drain())
    assert [scores[i].verdict for i in range(3)] == [1.0, 1.0, 0.0]
    with pytest.raises(UserError, match="unknown domain 'palindrome'"):
        load_prompts(file)
