"""The report as a reader's browser gets it: whole, offline, escaped and true to the tables."""

import json
import re
import shutil
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.errors import RunFolderError
from minitron_nas.reporting import html, numerals, sections
from minitron_nas.reporting.html import render_report, write_report
from minitron_nas.reporting.model_card import render_model_card
from minitron_nas.reporting.run_record import RunRecord, plain_rows, read_run
from minitron_nas.storage.schemas import CANDIDATES, EVALUATIONS
from minitron_nas.storage.tables import read_rows, write_rows

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background"}
SHOWN = (
    "num_parameters",
    "num_hidden_layers",
    "tokens_trained",
    "exported_tokens",
    "untrained_kl_nats",
    "kl_nats",
    "loss_nats",
    "perplexity",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "peak_memory_bytes",
)


@dataclass
class Page(HTMLParser):
    """What a test asks of a page: its elements, visible text, scripts, and the numbers of each member."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    scripts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, dict[str, tuple[float, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._open, self._member, self._number = "", "", ("", 0.0)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        self._open = tag
        self._script = values.get("id") or f"script {len(self.scripts)}"
        if tag == "tr":
            self._member = values.get("data-model") or ""
        if tag == "data":
            self._number = (values.get("data-column") or "", float(values["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[self._script] = data
        elif self._open == "data":
            column, value = self._number
            self.numbers.setdefault(self._member, {})[column] = (value, data)
        elif self._open != "style":
            self.text += data


def parse(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


@pytest.fixture(scope="module")
def report(run: RunRecord) -> str:
    return render_report(run)


@pytest.fixture(scope="module")
def page(report: str) -> Page:
    return parse(report)


@pytest.fixture
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plotly's five megabytes out, where a test reads the page only."""
    monkeypatch.setattr(html.figures, "plotly_script", str)


def test_the_report_is_one_file_of_a_few_megabytes(finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    path = write_report(folder)
    assert path == folder / "report.html"
    assert 4e6 < path.stat().st_size < 6e6
    assert not list(folder.glob("*.partial"))


def test_the_same_run_gives_the_same_bytes(finished_run: Path, report: str) -> None:
    assert render_report(read_run(finished_run)) == report


def test_no_element_loads_anything_and_the_policy_forbids_it(page: Page) -> None:
    loaded = [
        (tag, name, value)
        for tag, values in page.elements
        for name, value in values.items()
        if name in LOADING and not (value or "").startswith("#")
    ]
    assert loaded == []
    policies = [values["content"] for _, values in page.elements if "http-equiv" in values]
    assert policies == [
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    ]


def test_the_style_loads_nothing(report: str) -> None:
    style = report.partition("<style>")[2].partition("</style>")[0]
    assert re.findall(r"url\(|@import|https?:", style) == []


def test_the_headline_is_the_family_in_one_sentence(page: Page) -> None:
    sentence = (
        "HuggingFaceTB/SmolLM2-135M-Instruct (134.5M parameters, perplexity 18.21) → "
        "110M (108.9M parameters, KL 0.214 nats, perplexity 21.74, decodes 1.20\N{MULTIPLICATION SIGN} as fast) and "
        "94M (91.65M parameters, KL 0.334 nats, perplexity 24.02, decodes 1.37\N{MULTIPLICATION SIGN} as fast)."
    )
    assert sentence in " ".join(page.text.split())


def test_the_report_says_how_far_the_baselines_are(page: Page) -> None:
    assert (
        "KL 0.214 is 28\N{NO-BREAK SPACE}% lower than the depth-only baseline's 0.298 and "
        "61\N{NO-BREAK SPACE}% lower than the random-weights baseline's 0.541."
    ) in page.text


def test_a_script_in_a_reason_stays_text(finished_run: Path, tmp_path: Path, without_plotly: None) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    rows = read_rows(folder, CANDIDATES)
    rows[0]["reason"] = "</script><script>alert(1)</script>"
    write_rows(folder, CANDIDATES, rows)
    text = render_report(read_run(folder))
    assert "<script>alert" not in text
    page = parse(text)
    assert "</script><script>alert(1)</script>" in page.text
    assert json.loads(page.scripts["candidate-data"])["rows"][0][3] == rows[0]["reason"]


def test_a_script_in_a_shape_id_cannot_end_a_figure(run: RunRecord, without_plotly: None) -> None:
    hostile = "</script><script>alert(1)</script>"
    frames = {name: getattr(run, name) for name in ("candidates", "trials")}
    changed = {name: frame.assign(candidate=frame["candidate"] + hostile) for name, frame in frames.items()}
    page = parse(render_report(replace(run, **changed)))
    figure = json.loads(page.scripts["figure-rungs-110M"])
    assert "&lt;/script&gt;" in figure["data"][0]["hovertext"][0]
    assert not any("alert" in page.scripts[name] for name in page.scripts if name.startswith("script "))


def test_a_script_in_the_plan_or_teacher_stays_text(new_run: Path, without_plotly: None) -> None:
    plan = new_run / "plan.yaml"
    hostile = "<script>alert(1)</script>"
    plan.write_text(plan.read_text().replace("HuggingFaceTB/SmolLM2-135M-Instruct", hostile))
    assert hostile not in render_report(read_run(new_run))


def test_an_empty_run_says_what_is_missing(new_run: Path, without_plotly: None) -> None:
    text = " ".join(parse(render_report(read_run(new_run))).text.split())
    assert "has no students yet" in text
    assert "This run is not complete." in text
    for sentence in (
        "no candidates: the search space was not enumerated yet",
        "no trials: no candidate was trained yet",
        "no distillation curves: no student was distilled yet",
        "no evaluations: quality, speed and memory were not measured yet",
    ):
        assert sentence in text


def test_what_failed_stands_before_the_sections(run: RunRecord, without_plotly: None) -> None:
    told = render_report(run).split("<nav")[0]
    assert "Candidates failed" in told
    (sentence,) = sections.failures(run)
    assert re.fullmatch(r"94M: 1 of 12 candidates \(l\d+-.*: out of memory in rung 1: .*\)", sentence)
    assert all(sentence in told for sentence in sections.failures(run))


def test_a_speed_that_stayed_unsteady_stands_before_the_sections(run: RunRecord, without_plotly: None) -> None:
    assert "Speeds that stayed unsteady" not in render_report(run)
    evaluations = run.evaluations.assign(decode_spread=[0.05] * 6 + [0.4])
    told, _, _ = render_report(replace(run, evaluations=evaluations)).partition("<nav")
    assert "94M random-weights baseline: decode speed spreads by 40\N{NO-BREAK SPACE}% of its median" in told


def test_where_nothing_failed_nothing_is_said_of_it(run: RunRecord, without_plotly: None) -> None:
    well = run.candidates[run.candidates["outcome"] != "failed"]
    assert "Candidates failed" not in render_report(replace(run, candidates=well))


def test_what_training_harmed_stands_on_the_first_screen_and_in_the_card(run: RunRecord, without_plotly: None) -> None:
    curves = run.curves.copy()
    curves.loc[(curves["model"] == "110M") & (curves["tokens"] == 20_000_000), "kl_nats"] = 2.5
    worse = replace(run, curves=curves)
    sentence = "training made it worse: validation KL 1.914 nats before it, 2.500 after 20,000,000 tokens"
    assert f"110M: {sentence}" in render_report(worse).split("<nav")[0]
    assert sentence in render_model_card(worse, "110M")
    assert sentence not in render_model_card(worse, "94M")
    assert "made it worse" not in render_report(run)


def test_a_complete_run_misses_nothing(page: Page) -> None:
    assert "not complete" not in page.text


def test_a_run_without_benchmarks_has_no_such_section(run: RunRecord, without_plotly: None) -> None:
    page = parse(render_report(replace(run, benchmarks=run.benchmarks.iloc[:0])))
    assert "Benchmarks" not in page.text


def test_tasks_stand_with_their_differences_to_the_teacher_and_to_the_baselines(
    run: RunRecord, without_plotly: None
) -> None:
    page = render_report(run)
    assert "0.650 <small>± 0.014</small> <small>\N{MINUS SIGN}0.024 ± 0.012, no different</small>" in page
    assert "<small>\N{MINUS SIGN}0.033 ± 0.012</small>" in page
    assert "<h3>110M against its baselines</h3>" in page
    assert '<td class="number">+0.0093 ± 0.0041</td><td class="number">+0.036 ± 0.0041</td>' in page
    alone = render_report(replace(run, differences=run.differences.iloc[:0]))
    assert "against its baselines" not in alone
    assert ", no different" not in alone


def test_a_student_without_evaluation_is_told_from_its_lineage(run: RunRecord, without_plotly: None) -> None:
    page = parse(render_report(replace(run, evaluations=run.evaluations.iloc[:0])))
    assert page.numbers["110M"] == {
        "num_parameters": (108_855_360, "108.9M"),
        "num_hidden_layers": (28, "28"),
        "hidden_size": (576, "576"),
        "intermediate_size": (1152, "1,152"),
        "tokens_trained": (20_000_000, "20M"),
        "exported_tokens": (20_000_000, "20M"),
    }


def test_the_table_holds_every_candidate_and_its_reason(page: Page) -> None:
    content = json.loads(page.scripts["candidate-data"])
    names = [name for name, _, _ in content["columns"]]
    rows = [dict(zip(names, row, strict=True)) for row in content["rows"]]
    assert len(rows) == 24
    assert [row["outcome"] for row in rows[:4]] == ["chosen", "stopped", "stopped", "stopped"]
    assert rows[4]["reason"] == "its untrained KL was not among the 4 lowest"
    assert rows[0]["trained_kl_nats"] == pytest.approx(0.402)


def test_learning_rates_that_were_tried_are_told_with_what_became_of_them(page: Page) -> None:
    told = " ".join(page.text.split())
    assert "1e-4500k0.3880.302completed 3e-4500k0.3880.271chosen" in told
    assert f"0.001500k0.388{numerals.MISSING}diverged: its KL is nan" in told


def test_every_figure_has_a_place_to_be_drawn_in(page: Page) -> None:
    places = {values.get("id") for _, values in page.elements}
    drawn = {name for name in page.scripts if name.startswith("figure-")}
    kinds = ("curves", "rungs", "times", "parallel")
    of_sizes = {f"figure-{kind}-{size}" for kind in kinds for size in ("110M", "94M")}
    maps = {f"figure-importance-teacher-{axis}" for axis in ("layers", "heads", "kv_groups", "neurons", "hidden")}
    assert drawn == {"figure-speed", "figure-timeline"} | of_sizes | maps
    assert {name.replace("figure-", "plot-") for name in drawn} <= places


def test_what_cannot_be_drawn_says_why_in_words(page: Page) -> None:
    assert page.text.count("Nothing to draw: 8 screened shapes are too few to tell which axes matter.") == 2
    assert page.text.count("Nothing to draw: the screening had fewer than two rounds.") == 2


def test_a_missing_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"there is no run folder .*nowhere; give the folder"):
        write_report(tmp_path / "nowhere")


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no plan\.yaml, so it is no run folder"):
        write_report(tmp_path)


positive = st.floats(1e-3, 1e5)


@settings(max_examples=10)
@given(st.lists(st.tuples(positive, positive, positive), min_size=7, max_size=7))
def test_the_numbers_of_the_members_table_are_those_of_the_evaluations(
    run: RunRecord, measured: list[tuple[float, float, float]]
) -> None:
    columns = ["kl_nats", "perplexity", "decode_tokens_per_second"]
    evaluations = run.evaluations.copy()
    evaluations[columns] = pd.DataFrame(measured, columns=columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html.figures, "plotly_script", str)
        page = parse(render_report(replace(run, evaluations=evaluations)))
    for row in plain_rows(evaluations):
        numbers = page.numbers[row["model"]]
        assert {name: numbers.get(name, (None,))[0] for name in SHOWN} == {name: row[name] for name in SHOWN}
        for name in columns:
            value, text = numbers[name]
            assert float(text.replace(",", "")) == pytest.approx(value, rel=0.05, abs=0.005)


@pytest.fixture
def two_runs(finished_run: Path, tmp_path: Path) -> list[Path]:
    """Two runs of one name in different folders; the second has not evaluated one of its students."""
    first = shutil.copytree(finished_run, tmp_path / "a" / "run")
    second = shutil.copytree(finished_run, tmp_path / "b" / "run")
    rows = [row for row in read_rows(second, EVALUATIONS) if row["size"] != "94M"]
    write_rows(second, EVALUATIONS, rows)
    return [first, second]


def test_several_runs_are_one_page_whose_members_are_told_apart(two_runs: list[Path], without_plotly: None) -> None:
    path = write_report(*two_runs)
    assert path == two_runs[0].parents[1] / "report.html"
    page = parse(path.read_text(encoding="utf-8"))
    cells = re.findall(
        r'<th scope="row">(\w+)</th><td class="number">([ab]/run)</td>', path.read_text(encoding="utf-8")
    )
    assert cells == [(model, run) for run in ("a/run", "b/run") for model in ("teacher", "110M", "94M")]
    names = [values["id"] for _, values in page.elements if values.get("id")]
    assert len(names) == len(set(names))
    links = [(values.get("href") or "").removeprefix("#") for tag, values in page.elements if tag == "a"]
    assert set(links) <= set(names)
    sections = {values["id"] for tag, values in page.elements if tag == "section" and "-" in (values.get("id") or "")}
    assert len(sections) > 10
    assert sections <= set(links), "a section of a run that no heading leads to"


def test_the_same_runs_give_the_same_page_wherever_it_lies(
    two_runs: list[Path], tmp_path: Path, without_plotly: None
) -> None:
    path = write_report(*two_runs, out=tmp_path / "elsewhere" / "both.html")
    assert path.read_bytes() == write_report(*two_runs).read_bytes()


def test_a_run_that_is_given_twice_is_told_once(finished_run: Path, tmp_path: Path, without_plotly: None) -> None:
    path = write_report(finished_run, finished_run, out=tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render_report(read_run(finished_run))


def test_runs_that_do_not_measure_the_same_say_so(run: RunRecord, without_plotly: None) -> None:
    other = replace(run, name="other", text="another", teacher={**run.teacher, "fingerprint": "another"})
    told = " ".join(parse(render_report(run, other)).text.split())
    assert "Mind that the teachers differ, and every KL is to a run's own." in told
    assert "Mind that the texts differ" in told
    assert "Mind that" not in parse(render_report(run, replace(run, name="other"))).text


def test_a_page_of_several_runs_does_not_take_the_place_of_a_runs_own(finished_run: Path, tmp_path: Path) -> None:
    outer = shutil.copytree(finished_run, tmp_path / "outer")
    inner = [shutil.copytree(finished_run, outer / name) for name in ("one", "two")]
    with pytest.raises(RunFolderError, match="is a run itself, whose report stands there; say where"):
        write_report(*inner)
