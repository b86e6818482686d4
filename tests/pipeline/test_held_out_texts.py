"""A plan that names held-out texts of other kinds."""

import json
import shutil
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.errors import DataError, RunFolderError
from minitron_nas.pipeline.build import build_family
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.family import Family
from minitron_nas.storage.schemas import CORRELATIONS, SAMPLES, TEXTS
from minitron_nas.storage.tables import read_frame
from minitron_nas.text.tokens import PackedTokens


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text unlike that which models are trained on: sums."""
    path = tmp_path_factory.mktemp("far") / "sums.txt"
    path.write_text("\n\n".join(f"{a} + {b} = {a + b}; " * 60 for a in range(10) for b in range(10)))
    return path


@pytest.fixture(scope="module")
def family(made_once: Callable[..., Path], build: Callable[..., Family], far: Path) -> Family:
    overrides = (f"evaluation.texts.sums={far}", "search.max_screened=4", "search.screen_sequences=5", "baselines=true")
    return Family(made_once("far-texts", lambda folder: build(folder, *overrides)))


def test_the_kl_of_a_member_is_the_mean_of_its_kls_on_all_texts(family: Family) -> None:
    rows = read_frame(family.path, TEXTS)
    members = rows[rows["look"] == "member"]
    for model in family.evaluations.itertuples():
        mine = members[members["model"] == model.model].set_index("text")
        assert list(mine.index) == ["data", "sums"]
        assert mine["kl_nats"].mean() == pytest.approx(model.kl_nats, rel=1e-9)
        if model.role != "teacher":
            assert mine.loc["sums", "kl_nats"] != pytest.approx(mine.loc["data", "kl_nats"], rel=1e-3)
    student = members[(members["model"] == "90k") & (members["text"] == "sums")].iloc[0]
    assert exp(student["loss_nats"]) > 1


def test_candidates_are_screened_and_trained_on_as_much_of_each_text(family: Family) -> None:
    rows = read_frame(family.path, TEXTS)
    screened = family.candidates.set_index("candidate")["screen_kl_nats"].dropna()
    means = rows[rows["look"] == "screen"].groupby("model")["kl_nats"].mean()
    assert means[screened.index].tolist() == pytest.approx(screened.tolist(), rel=1e-9)
    trained = family.trials.set_index("candidate")["kl_nats"]
    means = rows[rows["look"] == "rung 1"].groupby("model")["kl_nats"].mean()
    assert means[trained.index].tolist() == pytest.approx(trained.tolist(), rel=1e-9)
    held_out = PackedTokens.load(family.path / "tokens" / "held_out.safetensors")
    own = PackedTokens.load(family.path / "tokens" / "validation.safetensors")
    assert held_out.num_sequences == 2 * own.num_sequences
    assert held_out.input_ids[::2].tolist() == own.input_ids.tolist()


def test_trials_tell_how_long_they_follow_what_the_teacher_writes(family: Family) -> None:
    assert family.trials["agreement_tokens"].between(0, 32).all()


def test_every_member_continues_the_same_beginnings(family: Family) -> None:
    models = family.evaluations.set_index("model")
    assert models.loc["teacher", "agreement_tokens"] == 32
    assert models["agreement_tokens"].between(0, 32).all()
    assert models[["repeated_share", "ended_share"]].stack().between(0, 1).all()
    assert models["written_tokens"].between(0, 32).all()
    samples = read_frame(family.path, SAMPLES)
    assert set(samples["model"]) == set(models.index)
    assert (samples.groupby("prompt")["prompt_text"].nunique() == 1).all()
    assert samples["prompt_text"].nunique() == 4
    page = family.report.read_text()
    assert page.split('id="samples"')[1].split("</section>")[0].count("<dd>") == len(samples)


def test_how_far_the_texts_agree_on_the_order_is_recorded(family: Family) -> None:
    rows = read_frame(family.path, CORRELATIONS).set_index("earlier")
    row = rows.loc["screen on data"]
    assert (row["later"], row["num_candidates"]) == ("screen on sums", 4)
    assert -1 <= row["spearman"] <= 1


def test_the_plan_holds_the_text_from_the_root_on(family: Family, far: Path) -> None:
    assert str(far) in (family.path / "plan.yaml").read_text()
    assert "held-out texts" in [
        json.loads(line)["stage"] for line in (family.path / "ledger.jsonl").read_text().splitlines()
    ]


def test_a_run_does_not_go_on_with_other_held_out_texts(
    family: Family, build: Callable[..., Family], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(family.path, run)
    with pytest.raises(RunFolderError, match=r"evaluation\.texts"):
        build(run, "search.max_screened=4", "search.screen_sequences=5", "baselines=true")


def test_text_that_is_trained_on_is_no_held_out_text(
    trained_teacher: Path, text_file: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    texts = ("evaluation.texts={again: " + str(text_file) + "}",)
    with pytest.raises(DataError, match=r"evaluation\.texts\.again reads .* which is trained on too"):
        build_family(trained_teacher, ["90k"], text_file, tmp_path, overrides=texts, display=Quiet(), **tiny_settings)
    assert not (tmp_path / "tokens").exists()


def test_a_held_out_text_that_is_not_there_is_refused_before_work(build: Callable[..., Family], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file matches .*gone\.txt"):
        build(tmp_path / "run", f"evaluation.texts.gone={tmp_path}/gone.txt")
    assert not (tmp_path / "run").exists()
