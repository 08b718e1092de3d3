"""Every setting, file and command that the pages on launching, recipes and peers name is there."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from compass.config import _leaf_kinds, parse
from compass.machine.shipped import shipped_programs
from compass.rl.config import RlConfig
from recipes.sft import Config as SftConfig

ROOT = Path(__file__).parents[2]
PAGES = ("recipes", "coming_from", "launch")
SETTINGS = {name for cls in (RlConfig, SftConfig) for name, _ in _leaf_kinds(cls)}
TABLES = {name.rpartition(".")[0] for name in SETTINGS} - {""}
REQUIRED = {
    "rl": ["--model=m", "--prompts=p"],
    "sft": ["--model=m", "--data.path=p"],
    "evaluate": ["--model=m", "--data=p", "--output=o"],
}
ASSIGNED = re.compile(r"(?:--)?([a-z_0-9]+(?:\.[a-z_0-9]+)*)(?:\s*[= ]\s*(\S+))?")
PEERS = re.compile(r"(orchestrator|trainer|rollout|actor|algorithm|actor_rollout_ref|ckpt)\.")


def text_of(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text()


def commands(page: str) -> Iterator[list[str]]:
    """Words of each command that stands in a block or between backticks."""
    text = text_of(page).replace("\\\n", " ")
    fenced = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for line in prose.splitlines() if line.startswith("    ")]
    lines += [line for block in fenced for line in block.splitlines() if line[:1] != "#"]
    lines += re.findall(r"`((?:python|compass|torchrun|make) [^`]+)`", prose)
    for line in lines:
        words = shlex.split(line)
        if words and words[0] in ("srun", "torchrun", "python", "compass", "make"):
            yield words[1:] if words[0] == "srun" else words


def check_recipe(name: str, words: list[str]) -> None:
    """Flags of a recipe, each parsed as the recipe parses it."""
    cls = RlConfig if name == "rl" else importlib.import_module(f"recipes.{name}").Config
    words = words.copy()
    if "--config" in words and words[words.index("--config") + 1] == "my.toml":
        del words[words.index("--config") : words.index("--config") + 2]
    parse(cls, [*REQUIRED[name], *words], description="")


def check_ablation(words: list[str]) -> None:
    """What an ablation fixes and varies are settings of RL."""
    for flag, word in itertools.pairwise(words):
        if flag in ("--fix", "--vary"):
            name, _, values = word.partition("=")
            for value in [values] if flag == "--fix" else values.split(","):
                parse(RlConfig, [*REQUIRED["rl"], f"--{name}={value}"], description="")
        if flag in ("--config", "--variants"):
            assert (ROOT / word).is_file(), word


def check(words: list[str]) -> None:
    """A command's program, its own flags and the launcher's."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] == "compass":
        if words[1] == "copy":
            assert words[2] in shipped_programs("recipes")
            return
        words = ["torchrun", *words[2:4], f"recipes/{words[1]}.py", *words[4:]]
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    program = Path(words[at])
    assert (ROOT / program).is_file(), program
    if words[0] == "torchrun":
        launcher = [re.sub(r'"?\$SLURM_NNODES"?', "4", word) for word in words[1:at]]
        get_args_parser().parse_args([*launcher, str(program)])
    if program.parts[0] == "recipes":
        check_recipe(program.stem, words[at + 1 :])
    elif program.stem == "ablate":
        check_ablation(words[at + 1 :])
    elif program.stem == "make_chain":
        parse(importlib.import_module("make_chain").Config, words[at + 1 :], description="")
    elif program.stem == "bench":
        assert (ROOT / "tools" / "benches" / f"{words[at + 1]}.py").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        check(words)


def test_there_are_commands_to_check():
    assert [len(list(commands(page))) > 1 for page in ("recipes", "launch")] == [True, True]


def our_settings(page: str) -> Iterator[tuple[str, str | None]]:
    """(name, value) of each setting between backticks: of a table of peers, its first column."""
    for line in re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL).splitlines():
        if line.startswith("    "):
            continue
        is_row = page == "coming_from" and line.startswith("|")
        for span in re.findall(r"`([^`]+)`", line.split("|")[1] if is_row else line):
            match = ASSIGNED.fullmatch(span)
            is_file = (ROOT / span).exists() or span.endswith(".toml")
            if match is None or is_file or (page == "coming_from" and PEERS.match(span)):
                continue
            name, value = match.groups()
            if is_row or (name in SETTINGS) or "." in name or value is not None:
                yield name, value


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_exists_and_takes_the_value_beside_it(page):
    found = list(our_settings(page))
    assert len(found) >= 3
    for name, value in found:
        if name in ("compass", "python", "make"):
            continue
        assert name in SETTINGS | TABLES, f"{page}: {name}"
        if value is not None and not value.startswith("..."):
            parse(RlConfig, [*REQUIRED["rl"], f"--{name}={value}"], description="")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_or_linked_exists(page):
    text = text_of(page)
    named = re.findall(r"`((?:configs|tools|tests|docs|recipes)/[\w./]+)`", text)
    linked = [f"docs/{link}" for link in re.findall(r"\]\((\w+\.md)", text)]
    for path in [*named, *linked]:
        assert (ROOT / path).exists(), f"{page}: {path}"


def test_the_defaults_on_the_pages_are_the_defaults():
    cfg = parse(RlConfig, REQUIRED["rl"], description="")
    for page in PAGES:
        text = text_of(page)
        for name, value in re.findall(r"`([a-z_.]+)=([a-z0-9_]+)` \(the default\)", text):
            assert str(get(cfg, name)) == value, f"{page}: {name}"
        for name, value in re.findall(r"`([a-z_]+\.[a-z_.]+)`(?: \(|, )(\d+)[:)]", text):
            assert get(cfg, name) == float(value), f"{page}: {name}"


def get(cfg: object, name: str) -> object:
    for part in name.split("."):
        cfg = getattr(cfg, part)
    return cfg
