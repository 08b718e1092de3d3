"""Defaults < TOML < command line through one type check; every mistake is one line with a remedy;
every TOML of the project parses with its recipe."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.config import parse, to_dict, to_toml, write_resolved
from compass.errors import UserError

ROOT = Path(__file__).parent.parent
TOMLS = sorted(ROOT.glob("configs/*/*.toml"))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """A nested table."""

    lr: float = 1e-3
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's."""

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise UserError(f"optimizer.lr={self.lr} must not be negative")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A table in which another is nested."""

    num_steps: int = 10
    """Steps."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=0.5))
    """The default here differs from the class's own."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every kind of field that configs use."""

    model: str
    """Required."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Nested."""
    output: Path = Path("runs")
    """A path."""
    loss: Literal["grpo", "espo"] = "espo"
    """A choice."""
    raw: bool = False
    """A switch."""
    limit: int | None = None
    """Optional."""
    pass_band: tuple[float, float] | None = (0.3, 0.9)
    """An optional pair."""
    name: str | None = None
    """An optional string."""
    ladder: Literal["off"] | int = "off"
    """A union of a word and a number."""
    files: tuple[Path, ...] = ()
    """A list."""
    bands: tuple[tuple[float, float], ...] = ()
    """A list of pairs."""
    weights: dict[str, float] = field(default_factory=dict)
    """A table of numbers."""


def parsed(*argv: str) -> Config:
    return parse(Config, argv, description="A test.")


def write(folder: Path, text: str) -> str:
    path = folder / "test.toml"
    path.write_text(text)
    return str(path)


def test_command_line_overrides_toml_overrides_defaults(tmp_path):
    toml = write(tmp_path, 'model = "m"\n[train]\nnum_steps = 5\n[train.optimizer]\nlr = 1')
    cfg = parsed("--config", toml, "--train.num-steps", "7")
    assert cfg.train == TrainConfig(num_steps=7, optimizer=OptimizerConfig(lr=1.0))
    assert type(cfg.train.optimizer.lr) is float
    assert cfg.output == Path("runs")
    assert parsed("--model", "m", "--train.optimizer.betas", "0", "0").train.optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("--raw", {"raw": True}),
        ("--raw false", {"raw": False}),
        ("--raw=True", {"raw": True}),
        ("--limit -3", {"limit": -3}),
        ("--limit None", {"limit": None}),
        ("--pass-band None", {"pass_band": None}),
        ("--pass_band 0.1 1e-3", {"pass_band": (0.1, 0.001)}),
        ("--name=--odd", {"name": "--odd"}),
        ("--ladder 3", {"ladder": 3}),
        ("--ladder off", {"ladder": "off"}),
        ("--files a b --raw", {"files": (Path("a"), Path("b")), "raw": True}),
        ("--files", {"files": ()}),
        ("--bands 0 0.5 0.5 1", {"bands": ((0.0, 0.5), (0.5, 1.0))}),
        ("--weights math 1 code 0.5", {"weights": {"math": 1.0, "code": 0.5}}),
        ("--loss espo --loss grpo", {"loss": "grpo"}),
        ("--files a --raw --files=b c", {"files": tuple(map(Path, "abc")), "raw": True}),
        ("--bands 0 0.5 --bands 0.5 1", {"bands": ((0.0, 0.5), (0.5, 1.0))}),
        ("--weights math 1 --weights code 0.5", {"weights": {"math": 1.0, "code": 0.5}}),
        ("--pass_band 0 1 --pass_band 0.1 1", {"pass_band": (0.1, 1.0)}),
    ],
)
def test_every_kind_of_field_is_read_from_the_command_line(words, changes):
    assert parsed("--model", "m", *words.split()) == replace(Config(model="m"), **changes)


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("raw = true", {"raw": True}),
        ("limit = 3", {"limit": 3}),
        ('pass_band = "None"', {"pass_band": None}),
        ("pass_band = [0, 1]", {"pass_band": (0.0, 1.0)}),
        ('name = "--odd"', {"name": "--odd"}),
        ("ladder = 3", {"ladder": 3}),
        ('files = ["-a", "--b"]', {"files": (Path("-a"), Path("--b"))}),
        ("bands = [[0, 0.5], [0.5, 1]]", {"bands": ((0.0, 0.5), (0.5, 1.0))}),
        ('[weights]\n"a b" = 1', {"weights": {"a b": 1.0}}),
    ],
)
def test_every_kind_of_field_is_read_from_toml(tmp_path, line, changes):
    toml = write(tmp_path, f'model = "m"\n{line}')
    assert parsed("--config", toml) == replace(Config(model="m"), **changes)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("modle = 1", "unknown key modle; did you mean model?"),
        ("lr = 1", "unknown key lr; did you mean train.optimizer.lr?"),
        ("[train]\nnum_step = 1", "unknown key train.num_step; did you mean train.num_steps?"),
        ("zzz = 1", "unknown key zzz; --help lists all of them"),
        ("train = 3", "train=3, but train is a table; write [train]"),
        ("model = true", "model=True must be a string"),
        ("model = {a = 1}", "model={'a': 1} must be a string"),
        ("raw = 1", "raw=1 must be a bool (true or false)"),
        ('raw = "true"', "raw='true' must be a bool (true or false)"),
        ("limit = 1.5", "limit=1.5 must be an integer or None"),
        ("limit = true", "limit=True must be an integer or None"),
        ('loss = "ppo"', "loss='ppo' must be one of 'grpo', 'espo'"),
        ("files = 'a'", "files='a' must be a list whose items are each a path"),
        ("files = [1]", "files=[1] must be a list whose items are each a path"),
        ("pass_band = [1]", "pass_band=[1] must be a list of a float, a float or None"),
        ("weights = {a = 'b'}", "weights={'a': 'b'} must be a table whose values are each a float"),
        ("[train.optimizer]\nlr = '1'", "train.optimizer.lr='1' must be a float"),
        ("output = 2020-01-01", "output=datetime.date(2020, 1, 1) must be a path"),
        ("x = = 1", "is not valid TOML"),
    ],
)
def test_a_mistake_in_toml_is_one_line_naming_file_key_value_and_remedy(tmp_path, line, error):
    toml = write(tmp_path, line)
    with pytest.raises(UserError) as caught:
        parsed("--config", toml)
    assert toml in str(caught.value)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("", "--model is required (a string); --help explains it"),
        ("--modle m", "unknown flag --modle; did you mean --model?"),
        ("--num-steps 1", "unknown flag --num-steps; did you mean --train.num_steps?"),
        ("--no-raw", "unknown flag --no-raw; did you mean --raw?"),
        ("m", "unexpected argument 'm'; options are given as --name value"),
        ("--model", "--model (no value given) must be a string"),
        ("--model a b", "--model='a b' must be a string"),
        ("--limit 1.0", "--limit='1.0' must be an integer or None"),
        ("--raw maybe", "--raw='maybe' must be a bool (true or false)"),
        ("--loss ppo", "--loss='ppo' must be one of 'grpo', 'espo'"),
        ("--bands 1 2 3", "--bands='1 2 3' must be a list whose items are each a list of a float"),
        ("--weights a", "--weights='a' must be a table whose values are each a float"),
        ("--train 3", "unknown flag --train"),
        ("--config", "--config takes one TOML file, got 'none'"),
        ("--config no.toml", "--config no.toml: No such file or directory"),
        ("--model m --train.optimizer.lr -1", "optimizer.lr=-1.0 must not be negative"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_naming_flag_value_and_remedy(words, error):
    with pytest.raises(UserError) as caught:
        parsed(*words.split())
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_explains_every_field_and_exits_with_zero():
    code = "import tests.test_config as t; t.parsed('--help')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    for expected in ("A test.", "--config", "--train.optimizer.lr", "Learning rate.", "A switch."):
        assert expected in run.stdout


finite = st.floats(allow_nan=False)
printable = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text != "None")
configs = st.builds(
    Config,
    model=printable,
    train=st.builds(
        TrainConfig,
        num_steps=st.integers(),
        optimizer=st.builds(OptimizerConfig, lr=st.floats(0, 1), betas=st.tuples(finite, finite)),
    ),
    loss=st.sampled_from(["grpo", "espo"]),
    raw=st.booleans(),
    limit=st.none() | st.integers(),
    name=st.none() | printable,
    ladder=st.just("off") | st.integers(),
    files=st.lists(st.builds(Path, printable.filter(lambda t: "\0" not in t))).map(tuple),
    bands=st.lists(st.tuples(finite, finite)).map(tuple),
    weights=st.dictionaries(printable, finite),
)


@given(cfg=configs)
def test_the_resolved_config_reads_back_to_an_equal_one(tmp_path_factory, cfg):
    run_dir = tmp_path_factory.getbasetemp() / "resolved"
    write_resolved(cfg, run_dir)
    assert parsed("--config", str(run_dir / "config.toml")) == cfg


def test_the_run_folder_says_what_ran(tmp_path):
    write_resolved(Config(model="m"), tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["command"] == sys.argv
    assert environment["versions"].keys() >= {"compass-rl", "torch", "torchtitan", "python"}
    assert "git_commit" in environment


def test_a_run_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder"):
        write_resolved(Config(model="m"), tmp_path / "file")


def test_to_dict_holds_only_json_values():
    cfg = Config(model="m", files=(Path("a"),), bands=((0.0, 1.0),))
    assert json.loads(json.dumps(to_dict(cfg))) == to_dict(cfg)
    assert to_dict(cfg)["files"] == ["a"]
    assert to_dict(cfg)["train"]["optimizer"]["lr"] == 0.5


@pytest.mark.parametrize("toml", TOMLS, ids=[str(path.relative_to(ROOT)) for path in TOMLS])
def test_the_launch_command_in_the_first_line_of_a_toml_parses(toml, monkeypatch):
    """The first line is `# torchrun ... recipes/<recipe>.py --config <this file> ...`."""
    monkeypatch.chdir(ROOT)
    recipe = toml.parent.name
    first_line = toml.read_text().splitlines()[0]
    launcher, script, flags = first_line.partition(f"recipes/{recipe}.py ")
    assert launcher.startswith("# torchrun "), first_line
    assert script, f"{toml} does not launch recipes/{recipe}.py"
    assert f"--config {toml.relative_to(ROOT)}" in flags
    config_cls = importlib.import_module(f"recipes.{recipe}").Config
    parse(config_cls, shlex.split(flags), description="")


@dataclass(frozen=True, kw_only=True)
class SeededConfig:
    """Numbers of any size."""

    seed: int = 0
    """Any."""
    share: float = 0.5
    """Any."""


@pytest.mark.parametrize("seed", [2**64, -(2**200), 10**1000 - 1])
def test_an_integer_of_any_size_is_read_and_written_back(seed, tmp_path):
    cfg = parse(SeededConfig, [f"--seed={seed}"], description="")
    assert cfg.seed == seed
    write_resolved(cfg, tmp_path)
    words = ["--config", str(tmp_path / "config.toml")]
    assert parse(SeededConfig, words, description="") == cfg


@pytest.mark.parametrize(
    ("words", "toml", "message"),
    [
        (["--seed", "9" * 1001], "", "must be an integer of at most 1000 digits"),
        (["--seed", "-" + "9" * 5000], "", "must be an integer of at most 1000 digits"),
        (["--share", "9" * 400], "", None),
        (["--seed", "x" * 5000], "", "xx[.]{3} must be an integer"),
        (["--seed=\udce9"], "", "is not UTF-8; rename the file, or type it anew"),
        ([], f"seed = {'9' * 1001}", "must be an integer of at most 1000 digits"),
        ([], f"seed = {'9' * 5000}", "is not valid TOML"),
        ([], f"seed = {'[' * 100_000}", "is not valid TOML"),
        ([], f"share = {'9' * 400}", "must be a float, of which the largest is 1.8e308"),
    ],
)
def test_numbers_that_python_cannot_hold_are_one_line(words, toml, message, tmp_path):
    (tmp_path / "c.toml").write_text(toml)
    words = ["--config", str(tmp_path / "c.toml"), *words]
    if message is None:
        assert parse(SeededConfig, words, description="").share == float("inf")
        return
    with pytest.raises(UserError, match=message) as raised:
        parse(SeededConfig, words, description="")
    assert len(str(raised.value)) < 600


# ---- tables of the user's own names


@dataclass(frozen=True, kw_only=True)
class Source:
    path: Path
    weight: float = 1.0
    domain: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mixed:
    prompts: Path | dict[str, Source]


def mixed(*argv: str) -> Mixed:
    return parse(Mixed, argv, description="")


def test_tables_of_own_names_come_from_toml_and_flags_alike(tmp_path):
    file = tmp_path / "mixed.toml"
    file.write_text("[prompts.a]\npath = 'a.jsonl'\nweight = 2\n[prompts.b]\npath = 'b.jsonl'\n")
    a, b = Source(path=Path("a.jsonl"), weight=2.0), Source(path=Path("b.jsonl"))
    assert mixed("--config", str(file)).prompts == {"a": a, "b": b}
    changed = mixed(
        "--config",
        str(file),
        "--prompts.b.weight",
        "3",
        "--prompts.c.path=c",
        "--prompts.c.domain=x",
    )
    assert changed.prompts == {
        "a": a,
        "b": replace(b, weight=3.0),
        "c": Source(path=Path("c"), domain="x"),
    }
    written = tmp_path / "written.toml"
    written.write_text(to_toml(changed))
    assert mixed("--config", str(written)) == changed
    assert mixed("--prompts=plain.jsonl").prompts == Path("plain.jsonl")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--prompts.a.weight=1"], "of which path is required|must be a path or a table"),
        (["--prompts.a.wieght=1"], "unknown flag --prompts.a.wieght"),
        (["--prompts.a.path=x", "--prompts.a.weight=heavy"], "weight='heavy' must be a float"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(words, complaint):
    with pytest.raises(UserError, match=complaint):
        mixed(*words)
