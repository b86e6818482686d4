"""The verbs that measure: what a gate in a script sees of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from minitron_nas.testing import tiny_checkpoint

SHORT = ("--set", "text.sequence_length=32")


@pytest.fixture
def compared(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model, its copy and a text."""
    model = tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1)
    (tmp_path / "text.txt").write_text("A fox and a dog. " * 20, encoding="utf-8")
    return model, Path(shutil.copytree(model, tmp_path / "copy")), tmp_path / "text.txt"


def test_the_same_model_leaves_with_0(
    run: Callable[..., tuple[int, str, str]], compared: tuple[Path, Path, Path]
) -> None:
    base, other, text = compared
    code, out, _ = run("compare", base, other, "--text", text, *SHORT)
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == {"pass"}
    code, out, _ = run("compare", base, other, "--text", text, *SHORT, "--json")
    assert (code, json.loads(out)["passes"]) == (0, True)


def test_a_limit_that_is_not_kept_to_leaves_with_1_and_the_table(
    run: Callable[..., tuple[int, str, str]], compared: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, other, text = compared
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    code, out, err = run("compare", base, other, "--text", text, *SHORT, "--out", tmp_path / "out")
    assert code == 1
    assert [line.split()[1] for line in out.splitlines() if line.startswith("FAIL")] == ["chat_template"]
    assert "Traceback" not in err
    frame = pd.read_parquet(tmp_path / "out" / "comparison.parquet")
    assert frame[~frame["passes"]]["measure"].tolist() == ["chat_template"]
    assert run("compare", base, other, "--text", text, *SHORT, "--limit", "differing_settings=null")[0] == 0


def test_a_model_that_is_broken_leaves_with_1_and_the_table(
    run: Callable[..., tuple[int, str, str]], compared: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, other, text = compared
    (other / "model.safetensors").unlink()
    code, out, _ = run("compare", base, other, "--text", text, *SHORT, "--out", tmp_path / "out")
    assert code == 1
    assert out.startswith("FAIL  checkpoint")
    assert pd.read_parquet(tmp_path / "out" / "comparison.parquet")["passes"].tolist() == [False]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"--limit": "kl=1"}, "unknown key 'kl'"),
        ({"--text": "gone.txt"}, "no file matches gone.txt"),
        ({"other": "gone"}, "gone"),
    ],
)
def test_what_cannot_be_used_leaves_with_2_and_one_line(
    run: Callable[..., tuple[int, str, str]], compared: tuple[Path, Path, Path], changed: dict[str, str], told: str
) -> None:
    base, other, text = compared
    given: dict[str, Any] = {"other": other, "--text": text, "--limit": "kl_nats=1", **changed}
    code, out, err = run("compare", base, given.pop("other"), *(word for pair in given.items() for word in pair))
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err
