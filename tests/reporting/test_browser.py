"""The report in a real browser: what it draws, sorts, filters and saves; skipped where no Chromium is found."""

import csv
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from minitron_nas.reporting.follow import follow
from minitron_nas.reporting.html import render_report
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.search.pareto import pareto_front
from minitron_nas.storage.atomic import write_json
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import EVALUATIONS
from minitron_nas.storage.tables import read_rows, write_rows

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

EXAMPLE = Path(__file__).resolve().parents[2] / "reports" / "example"
PHONE, DESK = 360, 1280
A4_ACROSS = 1016
"""Of CSS's pixels between the margins."""

MARKS = """(plot) => [...plot.querySelectorAll(
  ".scatterlayer .js-line, .scatterlayer .point, .barlayer .point path, .heatmaplayer image"
)].map((mark) => mark.getBoundingClientRect()).filter(({width, height}) => Math.max(width, height) > 1).length"""
CUT = """(plot) => {
  const frame = plot.getBoundingClientRect();
  const inside = ({left, right, top, bottom}) =>
    left > frame.left - 2 && right < frame.right + 2 && top > frame.top - 2 && bottom < frame.bottom + 2;
  return [...plot.querySelectorAll("text")].filter((text) => !inside(text.getBoundingClientRect()))
    .map((text) => text.textContent);
}"""
TICKS = """(plot) => [...plot.querySelectorAll(".xtick text, .ytick text")].map((text) => {
  const {left, right, top, bottom} = text.getBoundingClientRect();
  return [text.textContent, left, right, top, bottom];
})"""
FOCUS = """() => {
  const at = document.activeElement, part = at.closest("section");
  const name = at.closest("thead") ? "heading" : at.name || at.localName;
  return [part ? part.id : "", name, getComputedStyle(at).outlineStyle];
}"""

HOSTILE = "</script><img src=x onerror=alert(1)>\"'=1+1,<b>&lt;"


@dataclass
class Opened:
    """A page in the browser, with everything that it complained of and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def column(self, table: str, place: int) -> list[str]:
        """The visible texts of a column."""
        rows = self.page.locator(f"{table} tbody tr:visible")
        return [text.strip() for text in rows.locator(f":nth-child({place})").all_inner_texts()]

    def save(self, button: str) -> list[list[str]]:
        """Press a button that saves a CSV file, and read it."""
        with self.page.expect_download() as download:
            self.page.locator(button).click()
        with open(download.value.path(), encoding="utf-8", newline="") as file:
            return list(csv.reader(file))

    def drawn(self, plot: str = "explorer") -> dict[str, dict[str, Any]]:
        """What a figure draws now, by the names of its traces."""
        script = """(id) => document.getElementById(id).data.map(({name, x, y}) => [name, {x: [...x], y: [...y]}])"""
        return dict(self.page.evaluate(script, plot))


Open = Callable[..., Opened]

at_every_width = pytest.mark.parametrize("width", [PHONE, DESK])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a report in a window; whatever it complains of or asks for by the end of the test fails it."""
    contexts, pages = [], list[Opened]()

    def opened(text: str, width: int = 1280, dark: bool = False) -> Opened:
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        scheme = "dark" if dark else "light"
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        found = Opened(contexts[-1].new_page())
        pages.append(found)
        found.page.on(
            "console", lambda said: found.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.complaints.append(dialog.message), dialog.dismiss()))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(path.as_uri())
        return found

    yield opened
    for found in pages:
        assert found.complaints == []
        assert [url for url in found.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


@pytest.fixture(scope="module")
def report(run: RunRecord) -> str:
    return render_report(run)


@pytest.fixture(scope="module")
def example() -> str:
    """The report of a real run, in which there is something of everything."""
    return render_report(read_run(EXAMPLE))


@pytest.mark.parametrize("width", [360, *(pytest.param(width, marks=pytest.mark.slow) for width in (768, 1280))])
def test_no_page_is_wider_than_its_window(open_page: Open, report: str, width: int) -> None:
    page = open_page(report, width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@at_every_width
def test_axes_of_choice_move_the_points_and_draw_their_front_anew(
    open_page: Open, report: str, run: RunRecord, width: int
) -> None:
    opened = open_page(report, width)
    student = run.evaluations[run.evaluations["role"] == "student"]
    assert opened.drawn()["student"]["y"] == pytest.approx(list(student["kl_nats"]))
    opened.page.select_option("#axes [name=x]", "decode_share")
    opened.page.select_option("#axes [name=y]", "tasks")
    drawn = opened.drawn()
    assert drawn["student"]["x"] == pytest.approx(list(1 / student["decode_speedup"]), rel=1e-4)
    models = [
        point
        for name, trace in drawn.items()
        if not name.startswith("front")
        for point in zip(trace["x"], trace["y"], strict=True)
    ]
    on_front = pareto_front([(share, -score) for share, score in models])
    expected = sorted(point for point, on in zip(models, on_front, strict=True) if on)
    assert list(zip(drawn["front, models"]["x"], drawn["front, models"]["y"], strict=True)) == expected
    assert "6 of 29 points have both measures." in opened.page.locator("#axes-told").inner_text()


def test_what_learned_for_fewer_tokens_is_on_a_front_of_its_own(open_page: Open, report: str, run: RunRecord) -> None:
    drawn = open_page(report).drawn()
    models = {*run.evaluations["kl_nats"].round(4)}
    trials = {*run.trials["kl_nats"].dropna().round(4)}
    assert {round(kl, 4) for kl in drawn["front, models"]["y"]} <= models
    assert {round(kl, 4) for kl in drawn["front, trials"]["y"]} <= trials


@at_every_width
def test_members_are_sorted_by_a_click_on_a_heading(open_page: Open, report: str, width: int) -> None:
    opened = open_page(report, width)
    heading = opened.page.locator("table.members thead th").nth(9)
    heading.locator("button").click()
    ascending = [float(text) for text in opened.column("table.members", 10)]
    assert ascending == sorted(ascending)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert [float(text) for text in opened.column("table.members", 10)] == ascending[::-1]


@at_every_width
def test_candidates_are_sorted_filtered_and_saved(open_page: Open, report: str, run: RunRecord, width: int) -> None:
    opened = open_page(report, width)
    opened.page.select_option("#candidates [name=size]", "94M")
    opened.page.locator("table.candidates thead button", has_text="parameters").click()
    opened.page.fill("#candidates [name=text]", "not among")
    assert opened.page.locator("#candidates output").inner_text() == "4 of 24"
    mine = run.candidates[(run.candidates["size"] == "94M") & (run.candidates["outcome"] == "screened_out")]
    expected = [f"{number:,}" for number in sorted(mine["num_parameters"])]
    assert opened.column("table.candidates", 5) == expected
    header, *rows = opened.save("#candidates form button")
    assert header[:5] == ["size", "outcome", "candidate", "reason", "num_parameters"]
    assert [row[4] for row in rows] == [str(number) for number in sorted(mine["num_parameters"])]


@at_every_width
def test_a_saved_table_holds_the_exact_numbers_of_the_rows_that_are_shown(
    open_page: Open, report: str, run: RunRecord, width: int
) -> None:
    opened = open_page(report, width)
    header, *rows = opened.save("#members .tools button")
    saved = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert saved["model"][:2] == ("teacher", "110M")
    assert [float(value) for value in saved["perplexity"]] == list(run.evaluations["perplexity"])


def test_every_figure_draws_its_data_or_says_why_there_is_none(open_page: Open, report: str, example: str) -> None:
    for text, notes in ((example, 0), (report, 4)):
        page = open_page(text).page
        marks = {plot.get_attribute("id"): plot.evaluate(MARKS) for plot in page.locator(".plot").all()}
        assert [name for name, number in marks.items() if not number] == []
        assert {"explorer", "plot-speed", "plot-timeline", "plot-importance-teacher-heads", "plot-times-94M"} <= {
            *marks
        }
        assert page.locator("p.none", has_text="Nothing to draw: ").count() == notes


def test_every_bar_and_point_of_the_data_is_drawn(open_page: Open, example: str) -> None:
    page = open_page(example).page
    for name, marks in (("plot-timeline", ".barlayer .point"), ("plot-axes-94M", ".barlayer .point")):
        data = page.evaluate("(id) => document.getElementById(id).data.reduce((sum, {x}) => sum + x.length, 0)", name)
        assert page.locator(f"#{name} {marks}").count() == data > 1
    assert page.locator("#plot-importance-teacher-heads .heatmaplayer image").count() == 1


@at_every_width
@pytest.mark.parametrize("which", ["example", "report"])
def test_no_word_of_a_figure_is_cut_and_no_tick_lies_on_another(
    open_page: Open, request: pytest.FixtureRequest, width: int, which: str
) -> None:
    for plot in open_page(request.getfixturevalue(which), width).page.locator(".plot").all():
        name = plot.get_attribute("id")
        assert plot.evaluate(CUT) == [], name
        lying = [
            (told, other)
            for (told, left, right, top, bottom), (other, left_2, right_2, top_2, bottom_2) in combinations(
                plot.evaluate(TICKS), 2
            )
            if min(right, right_2) - max(left, left_2) > 1 and min(bottom, bottom_2) - max(top, top_2) > 3
        ]
        assert lying == [], name


def test_a_table_that_is_cut_says_so_until_its_end_is_reached(open_page: Open, report: str) -> None:
    page = open_page(report, PHONE).page
    hint = page.locator("#members .hint")
    assert hint.is_visible()
    page.locator("#members .scroll").evaluate("(frame) => frame.scrollTo(frame.scrollWidth, 0)")
    hint.wait_for(state="hidden")
    assert not open_page(report, 1400).page.locator("#members .hint").is_visible()


def test_on_paper_all_is_open_and_nothing_is_cut(open_page: Open, example: str) -> None:
    page = open_page(example, A4_ACROSS).page
    folded, plot = page.locator("details:not([open])"), page.locator("#plot-timeline .main-svg").first
    num_folded = folded.count()
    assert num_folded
    page.emulate_media(media="print")
    sync_api.expect(folded).to_have_count(0)
    sync_api.expect(plot).to_have_css("width", "900px")
    assert page.evaluate("document.documentElement.scrollWidth") <= A4_ACROSS
    beyond = "(frame) => [frame.scrollWidth - frame.clientWidth, frame.scrollHeight - frame.clientHeight]"
    for frame in page.locator(".scroll, figure").all():
        assert frame.evaluate(beyond) == [0, 0]
    assert not page.locator("nav, .filters, .tools, .hint, .more").locator("visible=true").count()
    page.emulate_media(media="screen")
    sync_api.expect(folded).to_have_count(num_folded)


def test_a_keyboard_reaches_every_control_and_sorts(open_page: Open, example: str) -> None:
    page = open_page(example).page
    reached = list[list[str]]()
    while ["provenance", "summary"] not in [each[:2] for each in reached]:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUS))
        assert len(reached) < 400
        if reached[-1][:2] == ["members", "heading"] and reached[-2][:2] != ["members", "heading"]:
            page.keyboard.press("Enter")
            assert page.locator("table.members th").first.get_attribute("aria-sort") == "ascending"
    assert "none" not in {style for _, _, style in reached}
    controls = {("pareto", "x"), ("pareto", "y"), ("", "a"), ("members", "button"), ("members", "heading")}
    controls |= {("candidates", name) for name in ("text", "size", "outcome", "button", "heading")}
    assert controls | {("cost", "input"), ("samples", "summary")} <= {(section, name) for section, name, _ in reached}


def test_hostile_names_neither_run_nor_break_the_page(open_page: Open, run: RunRecord) -> None:
    frames = {name: getattr(run, name).copy() for name in ("candidates", "trials", "evaluations", "samples")}
    frames["candidates"]["candidate"] += HOSTILE
    frames["candidates"]["reason"] = HOSTILE
    frames["trials"]["candidate"] += HOSTILE
    frames["trials"]["error"] = HOSTILE
    frames["evaluations"]["model"] = [f"{name}{HOSTILE}" for name in run.evaluations["model"]]
    opened = open_page(render_report(replace(run, name=HOSTILE, plan_text=HOSTILE, **frames)))
    opened.page.fill("#candidates [name=text]", "onerror")
    assert opened.page.locator("#candidates output").inner_text() == "24 of 24"
    assert opened.page.locator("img").count() == 0
    rows = opened.save("#candidates form button")
    assert rows[1][3] == HOSTILE


def test_a_text_that_a_spreadsheet_would_compute_is_quoted_in_the_file(open_page: Open, run: RunRecord) -> None:
    formula = run.candidates.assign(reason='=HYPERLINK("x")')
    rows = open_page(render_report(replace(run, candidates=formula))).save("#candidates form button")
    assert rows[1][3] == '\'=HYPERLINK("x")'


@pytest.mark.parametrize(
    "which", ["no numbers", *(pytest.param(which, marks=pytest.mark.slow) for which in ("empty", "one trial"))]
)
def test_a_run_with_little_in_it_draws_without_complaint(
    open_page: Open, run: RunRecord, new_run: Path, which: str
) -> None:
    if which == "empty":
        run = read_run(new_run)
    elif which == "no numbers":
        unknown = ("kl_nats", "loss_nats", "screen_kl_nats", "perplexity")
        frames = {name: getattr(run, name) for name in ("candidates", "trials", "evaluations", "curves")}
        lost = {
            name: frame.assign(**{column: float("nan") for column in unknown if column in frame})
            for name, frame in frames.items()
        }
        run = replace(run, **lost)
    else:
        run = replace(run, trials=run.trials.head(1), candidates=run.candidates.head(1))
    opened = open_page(render_report(run))
    assert opened.page.locator("h1").is_visible()


def test_a_live_page_shows_what_was_written_and_keeps_what_was_chosen(
    browser: Any, finished_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    address = Queue[str]()
    threading.Thread(target=follow, args=([folder], address.put), daemon=True).start()
    page = browser.new_page()
    page.goto(address.get(timeout=60))
    page.select_option("#axes [name=y]", "loss_nats")
    page.fill("#candidates [name=text]", "l28")
    rows = [row for row in read_rows(folder, EVALUATIONS) if row["size"] != "94M"]
    write_rows(folder, EVALUATIONS, rows)
    page.get_by_text("no evaluation of 94M").wait_for(timeout=60_000)
    page.wait_for_function("document.getElementById('explorer').layout?.yaxis.title.text.includes('loss')")
    assert page.input_value("#candidates [name=text]") == "l28"
    assert page.locator("#live").inner_text() == "live"
    assert page.locator("#now").inner_text() == ""
    now = {"stage": "94M tournament", "title": "in rungs", "fraction": 0.25, "standing": "rung 1: 1 of 4 done"}
    write_json(RunFolder(folder).now, now | {"seconds_left": 600.0, "began": time.time() - 60, "at": time.time()})
    page.get_by_text("94M tournament: in rungs, for 60 s; 25 %; rung 1: 1 of 4 done; about 10 min left").wait_for()
    assert page.locator("#now progress").evaluate("(bar) => bar.value") == 0.25
    page.close()


def test_two_runs_on_a_page_have_tables_and_figures_of_their_own(open_page: Open, run: RunRecord) -> None:
    opened = open_page(render_report(run, replace(run, name="other", candidates=run.candidates.head(3))))
    assert [opened.page.locator(f"#r{at}-candidates output").inner_text() for at in (1, 2)] == ["24 of 24", "3 of 3"]
    assert {"smollm2 student", "other student"} <= set(opened.drawn())
    assert opened.drawn("plot-r2-speed")["student"]["x"]


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.slow), True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault(open_page: Open, report: str, dark: bool) -> None:
    found = axe.Axe().run(open_page(report, dark=dark).page)
    serious = [
        (each["id"], each["nodes"][0]["html"][:200])
        for each in found.response["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []
