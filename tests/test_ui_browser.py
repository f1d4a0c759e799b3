"""The pages of `ui` in a real browser: they live, stay quiet, ask nobody else, suit a keyboard and a phone.

Not covered: how they look. Open them in light and dark when you touch a template.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.state import StopReason
from agent.trace import Trace
from tests.test_approval import QUESTION, events_of
from tests.test_ui import PAGES, Server, decide, new_run, serving
from tests.test_ui_go_on import answers_of, until, wait
from tests.test_ui_go_on import waiting_run as waiting_run  # a fixture
from tests.test_views import end_run, held, write_job

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: `apt-get install chromium`")
PHONE, DESK = {"width": 390, "height": 800}, {"width": 1280, "height": 900}
CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const light = (colour) => { const [r, g, b] = parts(colour); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return colour !== 'rgba(0, 0, 0, 0)' || !node.parentElement ? colour : behind(node.parentElement);
  };
  return [...document.querySelectorAll('main *')].filter((node) => node.checkVisibility() &&
    [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())).map((node) => {
    const [front, back] = [light(getComputedStyle(node).color), light(behind(node))];
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    return [Math.round(100 * ratio) / 100, node.tagName, node.textContent.trim().slice(0, 40)];
  }).sort((a, b) => a[0] - b[0])[0];
}"""
"""The worst contrast of a text with what is behind it, and where."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("ui") / "runs") as started:
        yield started


@pytest.fixture
def run(server: Server) -> Path:
    return new_run(server)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(server: Server, browser: Any) -> Iterator[Any]:
    """A page that has come in; at the end it must have stayed quiet and on this machine."""
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.address)
    yield page
    context.close()
    assert not complaints
    assert asked and all(url.startswith(server.origin + "/") for url in asked)


def test_pages_load_quietly_and_ask_nobody_else(server: Server, run: Path, page: Any) -> None:
    paths = [f"/runs/{run.name}/{path}" for path in PAGES] + ["/", f"/compare?a=20260102-030405&b={run.name}"]
    for path in paths:
        page.goto(server.origin + path)
        assert page.locator("h1").count() == 1 and page.title().endswith("Autodidact")
        nameless = "select:not(label select), input:not(label input), svg:not([aria-hidden]):not([role=img])"
        assert page.locator(nameless).count() == 0, f"{path}: a control or picture without a name"
    assert "stolen" not in page.title()


def test_the_chart_is_drawn_and_leads_to_the_step(server: Server, run: Path, page: Any) -> None:
    page.goto(f"{server.origin}/runs/{run.name}/")
    page.locator(".chart canvas").wait_for()
    assert page.locator(".chart .u-legend").inner_text().count("search score") == 1


def test_the_chart_of_one_step_shows_its_point(server: Server, run: Path, page: Any) -> None:
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(line for line in lines if '"step":2' not in line))
    page.goto(f"{server.origin}/runs/{run.name}/")
    page.locator(".chart canvas").wait_for()
    ticks, opaque = page.evaluate("""async () => {
      await new Promise((drawn) => setTimeout(drawn, 100));
      const [plot] = charts.values();
      const place = [plot.valToPos(1, "x", true) + 2, plot.valToPos(92, "y", true)].map(Math.round);
      return [plot.axes[0]._values, plot.ctx.getImageData(...place, 1, 1).data[3]];
    }""")
    assert (ticks, opaque) == (["1"], 255)


def test_a_live_run_is_shown_as_it_goes(server: Server, run: Path, page: Any) -> None:
    with held(run / "run.lock"):
        write_job(run, "now", "running", 4)
        page.goto(f"{server.origin}/runs/{run.name}/")
        page.get_by_text("4 of 9").first.wait_for()
        page.evaluate("document.body.dataset.same = 'yes'")
        details = page.locator("#curve-table")
        details.locator("summary").click()
        write_job(run, "now", "running", 7)
        page.get_by_text("7 of 9").first.wait_for()
        decide(Trace(run), 3, "curate_data")
        page.locator("#overview").get_by_role("link", name="Step 3").wait_for()
        assert "step 3, result: dataset" in page.locator("[role=status].hidden").inner_text()
        assert page.evaluate("document.body.dataset.same") == "yes", "the page was not loaded again"
        assert page.locator(".chart canvas").count() == 1, "the chart is kept, and drawn once"
        assert details.get_attribute("open") is not None, "what was opened stays open"
        assert page.locator("h1 .state").inner_text() == "running"
    page.locator("h1 .state.killed").wait_for()


def test_the_keyboard_reaches_the_controls(server: Server, run: Path, page: Any) -> None:
    with held(run / "run.lock"):
        page.goto(f"{server.origin}/runs/{run.name}/")
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "[document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"
            )
            reached.append(focused[0].strip())
            assert focused[1] == "solid", f"{reached[-1]!r} does not show that it has the focus"
        assert reached[0] == "Skip to the content"
        wanted = ["All runs", "Compare", "Overview", "Decisions", "Costs, data, diagnosis", "Follow an id"]
        assert [name for name in reached if name in wanted][:6] == wanted
        assert "Stop after this step" in reached
    page.goto(f"{server.origin}/runs/{run.name}/decisions")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(server: Server, run: Path, page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    for path in ("/", *(f"/runs/{run.name}/{page}" for page in PAGES[:5])):
        page.goto(server.origin + path)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 150) is (scheme == "dark")
        ratio, tag, text = page.evaluate(CONTRAST)
        assert ratio >= 4.5, f"{path}: <{tag}> {text!r} has a contrast of {ratio}"


def test_a_phone_needs_no_sideways_scrolling(server: Server, run: Path, page: Any) -> None:
    page.set_viewport_size(PHONE)
    for path in ("/", f"/compare?a=20260102-030405&b={run.name}", *(f"/runs/{run.name}/{page}" for page in PAGES)):
        page.goto(server.origin + path)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], f"{path} is {width} wide"


def tab_to(page: Any, text: str, within: str = "main") -> None:
    """Press Tab until a control of this label or text has the focus, as who uses no mouse."""
    focused = """(within) => { const found = document.activeElement;
        const name = found.labels?.[0]?.innerText.split("\\n")[0] || found.innerText;
        return found.closest(within) ? name.trim() : ""; }"""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(focused, within).startswith(text):
            return
    raise AssertionError(f"Tab does not reach {text!r}")


def test_a_run_is_answered_with_the_keyboard_alone(waiting_run: Path, browser: Any) -> None:
    def answered(page: Any, *expected: str) -> None:
        page.get_by_role("status").get_by_text("The command was started").wait_for()
        until(lambda: answers_of(waiting_run) == list(expected), waiting_run)
        page.get_by_role("heading", name="be done?").wait_for(timeout=120_000)  # the page follows by itself

    with serving(waiting_run.parent) as begun:
        page = browser.new_context(viewport=PHONE).new_page()
        page.goto(begun.address)
        page.goto(f"{begun.origin}/runs/{waiting_run.name}/")
        tab_to(page, "Reject, because")
        page.keyboard.type("too many items")
        page.keyboard.press("Enter")
        answered(page, "no")
        tab_to(page, "samples_per_item", "form[aria-label=generate_data]")
        page.keyboard.press("End")
        tab_to(page, "Do this instead", "form[aria-label=generate_data]")
        page.keyboard.press("Enter")
        answered(page, "no", "edit")
        tab_to(page, "Approve")
        page.keyboard.press("Enter")
        page.get_by_role("status").get_by_text("The command was started").wait_for()
        until(lambda: answers_of(waiting_run) == ["no", "edit", "yes"], waiting_run)
        page.context.close()
    rejected, edited, _ = events_of(waiting_run, "answered")
    assert rejected["reason"] == "too many items"
    assert edited["edited"]["args"]["samples_per_item"] > rejected["action"]["args"]["samples_per_item"]


def test_resume_tells_what_comes_of_it(server: Server, run: Path, page: Any) -> None:
    end_run(run, StopReason.USER_STOPPED)
    page.goto(f"{server.origin}/runs/{run.name}/")
    tab_to(page, "Resume")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("It did not go on").wait_for(timeout=60_000)  # its base model is made up
    assert page.get_by_role("button", name="Resume").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_forms_of_a_waiting_run_suit_everybody(server: Server, run: Path, page: Any, scheme: str) -> None:
    wait(run, QUESTION)
    page.emulate_media(color_scheme=scheme)
    for size in (PHONE, DESK):
        page.set_viewport_size(size)
        page.goto(f"{server.origin}/runs/{run.name}/")
        ratio, tag, text = page.evaluate(CONTRAST)
        assert ratio >= 4.5, f"<{tag}> {text!r} has a contrast of {ratio}"
        controls = page.locator("section.live").locator("button, select, input:not([type=hidden])")
        assert controls.count() == 7
        panel = page.locator("section.live").bounding_box()
        for control in controls.all():
            box = control.bounding_box()
            assert box["x"] >= panel["x"] and box["x"] + box["width"] <= panel["x"] + panel["width"], "sticks out"
            named = "node => node.tagName === 'BUTTON' ? node.innerText : node.labels[0]?.innerText"
            assert (control.evaluate(named) or "").strip(), "a control without a name"
