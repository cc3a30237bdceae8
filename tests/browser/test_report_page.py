"""The report of a session in a real browser: `./dev browser` installs Debian's Chromium and runs this."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit")]
from chromium import Browser
from report_sessions import CLOCK, PROJECT, large, ran, record, waited

from pytest_stagegbo.session_report.events import Notice, Room, Usage
from pytest_stagegbo.session_report.page import LONGEST_PAGE, write_report

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser

NASTY = 'tests/test_nasty.py::test_it[</script><img src=x onerror="document.title=1">]'
PATIENCE = 30.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as driver:
        yield driver


class Page:
    """One page that is open."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self.browser = browser
        self.path = path
        self.requests()
        self.complaints()
        browser.ask("POST", "url", {"url": path.as_uri()})
        self.run("if (!document.documentElement.dataset.drawn) throw new Error('the page has not been drawn')")

    def run(self, script: str, *args: Any) -> Any:
        return self.browser.ask("POST", "execute/sync", {"script": script, "args": list(args)})

    def chart(self, script: str) -> Any:
        """The value of an expression in which `chart` is the chart."""
        return self.run(f"const chart = echarts.getInstanceByDom(document.getElementById('chart')); return {script}")

    def drawn(self) -> dict[str, int]:
        """By series, how many marks it was given."""
        found = self.chart("chart.getOption().series.map((one) => [one.id, one.data.length])")
        return {name: count for name, count in found if count}

    def press(self, selector: str) -> None:
        self.browser.ask("POST", f"element/{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self.browser.ask("POST", f"element/{self._element(selector)}/value", {"text": text})

    def _element(self, selector: str) -> str:
        found = self.browser.ask("POST", "element", {"using": "css selector", "value": selector})
        return str(next(iter(found.values())))

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def until(self, condition: str) -> None:
        """Wait for a condition, looking each time that the browser draws."""
        script = f"""
            const done = arguments[arguments.length - 1], end = performance.now() + {PATIENCE * 1000};
            const ended = () => performance.now() > end;
            const look = () => ({condition}) ? done(true) : ended() ? done(false) : requestAnimationFrame(look);
            look();
        """
        assert self.browser.ask("POST", "execute/async", {"script": script, "args": []}), condition

    def place(self, series: str, number: int) -> tuple[int, int]:
        """Where in the window the middle of a mark is."""
        x, y = self.run(
            """
            const holder = document.getElementById("chart"), chart = echarts.getInstanceByDom(holder);
            const [row, from, to] = chart.getOption().series.find((one) => one.id === arguments[0]).data[arguments[1]];
            holder.scrollIntoView({ block: "start" });
            const [x, y] = chart.convertToPixel({ gridIndex: 0 }, [(from + to) / 2, row]);
            const box = holder.getBoundingClientRect();
            return [Math.round(box.x + x), Math.round(box.y + y)];
            """,
            series,
            number,
        )
        return int(x), int(y)

    def hover(self, series: str, number: int) -> str:
        """The text that appears over a mark."""
        x, y = self.place(series, number)
        moves = [{"type": "pointerMove", "x": x + shift, "y": y, "duration": 0} for shift in (-3, 0)]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        self.browser.ask("POST", "actions", {"actions": [mouse]})
        self.until("document.querySelector('.tip') && document.querySelector('.tip').offsetParent !== null")
        return self.text(".tip")

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call, but for the page's own."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.log("performance")]
        urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if url != self.path.as_uri() and not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """What the browser has complained of since the last call."""
        return [entry["message"] for entry in self.browser.log("browser")]


@pytest.fixture
def small(browser: Browser, tmp_path: Path) -> Page:
    failure = ("stage container cache: logged since the test began", "valkey: saved")
    record(
        tmp_path,
        "run",
        "gw0",
        [
            ran("tests/test_a.py::test_keeps", 0, 5, resets=("cache",), asked=("cache",)),
            ran(
                "tests/test_a.py::test_fails",
                5,
                6,
                "failed",
                failure="E  assert 1 == 2",
                sections=(failure,),
                properties=(("stage.capsule", "c-17"),),
            ),
            Room(CLOCK, "pool default", 9 * 2**30, 2**30),
            Room(CLOCK + 9, "pool default", 8 * 2**30, 2**30),
            Usage(CLOCK, PROJECT, {"cache": 2**20}),
            Usage(CLOCK + 9, PROJECT, {"cache": 2**24}),
        ],
        2,
    )
    record(
        tmp_path,
        "run",
        "gw1",
        [
            waited("tests/test_b.py::test_waits", 1, 5, "cache"),
            ran("tests/test_b.py::test_waits", 1, 7),
            ran(NASTY, 7, 8),
            Notice(CLOCK + 8, "killed", "worker gw1 died", "gw1"),
        ],
        2,
    )
    write_report(tmp_path / "report.html", [tmp_path])
    return Page(browser, tmp_path / "report.html")


def test_who_waited_for_whom_is_shown_over_the_wait(small: Page) -> None:
    shown = small.hover("wait", 0)
    assert "waited 4.00 s for cache" in shown
    assert "held by gw0: tests/test_a.py::test_keeps" in shown
    assert "--stage-slots=2" in small.text("#advice")
    assert "tests/test_a.py::test_keeps on gw0" in small.text("#waits")


def test_filters_apply_to_the_picture_and_the_table(small: Page) -> None:
    assert small.drawn()["passed"] == 3
    small.type("#search", "test_b")
    small.until("document.querySelectorAll('#tests tbody tr').length === 1")
    assert (small.drawn()["passed"], small.text("#shown")) == (1, "1 of 4 tests")
    small.press("#everything")
    small.press("#legend [data-key=passed]")
    assert "passed" not in small.drawn()
    assert small.text("#shown") == "1 of 4 tests"
    small.press("#everything")
    small.press("#waited")
    assert small.drawn()["passed"] == 1


def test_keys_lead_to_a_failed_test_and_its_sections(small: Page) -> None:
    small.type("body", "n")
    assert "test_fails" in small.text("#selected")
    start, end = small.chart("[chart.getOption().dataZoom[0].start, chart.getOption().dataZoom[0].end]")
    assert 0 < start < end <= 100
    small.press("#selected a")
    shown = small.text("#failures")
    assert "E  assert 1 == 2" in shown
    assert "c-17" in shown
    assert "valkey: saved" in shown
    small.type("body", "0")
    assert small.chart("chart.getOption().dataZoom[0].end") == 100
    small.type("body", "/")
    assert small.run("return document.activeElement.id") == "search"


def test_light_and_dark_differ_and_the_page_prints(small: Page) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    before, colours = small.run(ground), small.chart("chart.getOption().textStyle.color")
    small.press("#theme")
    assert small.run(ground) != before
    assert small.chart("chart.getOption().textStyle.color") != colours
    printed = base64.b64decode(small.browser.ask("POST", "print", {"background": True}))
    assert printed.startswith(b"%PDF-")
    assert len(printed) > 20_000


def test_names_of_tests_are_texts_and_nothing_is_fetched(small: Page) -> None:
    assert NASTY in small.text("#tests")
    assert small.run("return document.images.length") == 0
    assert small.run("return document.title") == f"Session of {PROJECT}"
    assert (small.requests(), small.complaints()) == ([], [])
    refused = small.run("""
        const script = document.createElement("script");
        script.textContent = "window.intruded = true";
        document.body.append(script);
        return window.intruded === undefined;
    """)
    assert refused


def test_five_thousand_tests_open_at_once(browser: Browser, tmp_path: Path) -> None:
    large(tmp_path, 5000, workers=8)
    write_report(tmp_path / "report.html", [tmp_path])
    assert (tmp_path / "report.html").stat().st_size <= LONGEST_PAGE
    page = Page(browser, tmp_path / "report.html")
    assert sum(count for name, count in page.drawn().items() if name in {"passed", "failed", "skipped"}) == 5000
    assert page.text("#shown") == "5,000 tests"
    assert page.run("return document.querySelectorAll('#tests tbody tr').length") == 200
    assert page.complaints() == []
    print("milliseconds to the picture:", page.run("return document.documentElement.dataset.drawn"))
