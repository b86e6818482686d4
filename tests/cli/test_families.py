"""The verbs for those who add a family."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from minitron_nas.cli import app
from minitron_nas.drafting import draft
from minitron_nas.drafting.rows import Seen
from minitron_nas.families.catalog import layout_of
from minitron_nas.testing import examination
from minitron_nas.testing.conformance import check_norms
from minitron_nas.testing.examination import Verdict

VERDICTS = [
    Verdict("tensors", "The table names every tensor with its shape."),
    Verdict("units", "...", "tensor 'a.weight': wrong", "a.weight", "a.weight", "axes"),
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call `minitron-nas` in this process: exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minitron-nas", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main()
        told = capfd.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return call


def test_a_fault_is_told_with_its_place_and_makes_the_exit_code_1(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "examine_family", lambda model, table: iter(VERDICTS))
    code, out, _ = run("check-family", "llama")
    assert (code, out.splitlines()) == (
        1,
        [
            "ok     tensors         The table names every tensor with its shape.",
            "fault  units           tensor 'a.weight': wrong",
            "                       row: a.weight; tensor: a.weight; concerns: axes",
        ],
    )
    code, out, _ = run("check-family", "llama", "--json")
    found = json.loads(out)
    assert (code, [each["holds"] for each in found]) == (1, [True, False])
    assert found[1]["row"] == "a.weight"


def test_a_family_that_passes_is_a_line_a_check_and_nothing_else(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "CHECKS", (check_norms,))
    monkeypatch.setattr(examination, "USES", ())
    code, out, err = run("check-family", "llama")
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [["ok", "tensors"], ["ok", "norms"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "minitron-nas: nothing: no such folder or file here"),
        (("bloom",), "minitron-nas: model type 'bloom' is no known family"),
        (("llama", "--table", "llama"), "minitron-nas: --table 'llama' is not of the form"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run("check-family", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_folder_needs_no_weights(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(examination, "CHECKS", ())
    monkeypatch.setattr(examination, "USES", ())
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    config = {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run("check-family", tmp_path)[:2] == (0, f"ok     tensors         {VERDICTS[0].about}\n")


def test_a_draft_is_python_on_stdout_and_how_to_try_it_on_stderr(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = replace(layout_of("llama"), model_type="new-type")
    drafted = draft.Draft(layout, (Seen("a.scale", "of shape (7,): dimension 0 is 7, in every probe"),), ("odd",))
    monkeypatch.setattr(draft, "draft_family", lambda model: drafted)
    code, out, err = run("draft-family", "folder")
    assert (code, out) == (0, drafted.to_python())
    assert "        # a.scale: of shape (7,): dimension 0 is 7, in every probe\n" in out
    assert "\n# odd\nLAYOUT = Layout(\n" in out
    assert err == (
        f"{len(layout.rows)} rows, and 1 that the grammar does not explain; save it as new_type.py and try it: "
        "minitron-nas check-family folder --table new_type:LAYOUT\n"
    )
    code, out, _ = run("draft-family", "folder", "--json")
    assert (code, json.loads(out)["unexplained"]) == (0, {"a.scale": drafted.seen[0].told})
