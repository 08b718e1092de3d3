"""The wheel has every recipe, tool and configuration, and nothing of the tests."""

from __future__ import annotations

import zipfile

from tests.wheel import ROOT, build_wheel

SHIPPED = ("recipes", "tools", "configs")


def test_the_wheel_has_all_that_can_be_run_and_no_tests(tmp_path):
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        names = set(wheel.namelist())
    for folder in SHIPPED:
        files = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".toml")]
        assert len(files) > 3
        for path in files:
            assert f"compass/{path.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if "test" in name.split("/")[:2]]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"compass", "compass_rl"}
