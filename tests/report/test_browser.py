"""The page in a headless Chromium: it opens, filters, opens rollouts and colours them without a
word on the console; text of rollouts stays text."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compass.report.page import PROGRAM
from tests.report.damaged_runs import HOSTILE, write_metrics, write_rollouts
from tests.rollouts.steps import tokenizer_in

ROOT = Path(__file__).parents[2]
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium for the report's page: apt-get install chromium"
)


class Page:
    """An open page, and everything that was said on its console or asked of the network."""

    def __init__(self, page) -> None:
        self.page = page
        self.said: list[str] = []
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.said.append(request.url))

    def wait_until(self, condition: str) -> None:
        """A JavaScript expression; the page's own policy forbids Playwright's way of waiting."""
        deadline = time.monotonic() + 30
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.page.wait_for_timeout(20)

    def open(self, path: Path, place: str = "") -> float:
        """Seconds until it can be used."""
        url = f"{path.as_uri()}{place}"
        started = time.perf_counter()
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready=true]")
        seconds = time.perf_counter() - started
        self.said.remove(path.as_uri())
        return seconds


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    yield Page(page)
    page.close()


def report(output: Path, *words: object) -> Path:
    command = [sys.executable, "tools/report.py", *map(str, words), "--output", str(output)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return output


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run_dir = folder / "<img src=x onerror=hacked=1>"
    curves = {"reward/mean": [0.1, 0.5, 0.4], HOSTILE[0]: [1.0, 2.0, 3.0]}
    write_metrics(run_dir, curves)
    write_rollouts(
        run_dir, tokenizer_in(folder / "tokenizer"), num_groups=12, group_size=3, num_tokens=60
    )
    return report(folder / "report.html", run_dir)


def test_it_filters_opens_a_rollout_and_colours_it_with_mouse_and_keys(page, hostile):
    page.open(hostile)
    of = page.page
    assert of.inner_text("#shown") == "36 groups shown"
    of.select_option("#f-step", "2")
    assert of.inner_text("#shown") == "12 groups shown"
    of.click("#list .row >> nth=3")
    of.wait_for_selector(".tokens")
    colours = set()
    of.click(".siblings button >> nth=1")
    of.wait_for_selector(".siblings button:nth-child(2)[aria-pressed=true]")
    of.click(".siblings button >> nth=0")  # this one was trained
    of.wait_for_selector(".siblings button:nth-child(1)[aria-pressed=true]")
    for name in of.locator("#colour option").all_inner_texts():
        of.select_option("#colour", name)
        colours.add(
            of.eval_on_selector_all(
                ".tokens span", "all => all.map(t => t.style.backgroundColor + t.className).join()"
            )
        )
    assert len(colours) >= 5
    place = of.evaluate("location.hash")
    assert place.startswith("#rollout=0.2.3.0&colour=")
    of.focus("#list")
    of.keyboard.press("ArrowDown")
    of.keyboard.press("Enter")
    page.wait_until("location.hash.startsWith('#rollout=0.2.4.')")
    of.keyboard.press("]")
    page.wait_until("location.hash.startsWith('#rollout=0.2.4.1')")
    assert page.said == []


def test_a_link_opens_at_its_rollout(page, hostile):
    page.open(hostile, "#rollout=0.3.7.2&colour=gap")
    page.page.wait_for_selector(".tokens")
    assert page.page.input_value("#colour") == "gap"
    assert page.page.get_attribute(".siblings button:nth-child(3)", "aria-pressed") == "true"


def test_nothing_in_a_rollout_runs_or_is_loaded(page, hostile):
    page.open(hostile)
    for group in range(6):
        page.page.click(f"#list .row >> nth={group}")
        page.wait_until(f"location.hash.startsWith('#rollout=0.1.{group}.')")
        for member in range(3):
            page.page.click(f".siblings button >> nth={member}")
    page.page.focus("#f-text")
    page.wait_until("document.querySelector('#shown').textContent.includes('shown')")
    page.page.fill("#f-text", "<script>")
    for section in ("stages", "router", "lengths", "time", "curves"):
        page.page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        page.page.wait_for_timeout(200)
    assert page.page.evaluate("window.hacked") is None
    assert page.page.locator("img, main style, main script").count() == 0
    assert page.said == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1300])
def test_it_fits_a_phone_and_a_desk_in_light_and_dark(theme, width, browser, hostile):
    of = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
    Page(of).open(hostile)
    assert of.evaluate("document.documentElement.dataset.theme") == theme
    assert of.evaluate("document.documentElement.scrollWidth") <= width
    of.close()


def test_a_run_without_a_step_opens_and_says_what_is_missing(page, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    page.open(report(tmp_path / "report.html", tmp_path / "run"))
    text = page.page.inner_text("main")
    assert "metrics.jsonl has no step yet" in text
    assert "No rollouts on disk" in text
    assert page.said == []


def test_no_part_of_the_page_is_left_out():
    parts = {path.name for path in (ROOT / "compass/report/page").glob("*.js")}
    assert parts == set(PROGRAM)
