"""lm-eval's own command on the same exported model, and on tasks whose data lies on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minitron_nas.evaluation import lm_eval
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.testing import tiny_checkpoint

FOLDER, MODEL = "MINITRON_NAS_TASKS", "MINITRON_NAS_TASKS_MODEL"
TASKS = ("copa_local", "winogrande_local@2", "lambada_openai_local")
LIMIT = 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER not in os.environ, reason=f"{FOLDER} names no folder of lm-eval tasks with local data"),
]


def by_the_command(model: Path, task: str, out: Path) -> dict[str, float]:
    """Return what `lm_eval run` writes of a task: values and standard errors by metric."""
    name, _, num_fewshot = task.partition("@")
    device = pick_device()
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", name]
    command += ["--model_args", f"pretrained={model},dtype={dtype}", "--device", str(device), "--batch_size", "8"]
    command += ["--include_path", os.environ[FOLDER], "--limit", str(LIMIT), "--seed", "0", "--output_path", str(out)]
    command += ["--num_fewshot", num_fewshot] if num_fewshot else []
    subprocess.run(command, check=True, env={**os.environ, "DISABLE_MULTIPROC": "1"}, capture_output=True)
    (written,) = out.rglob("results_*.json")
    found: dict[str, float] = json.loads(written.read_text(encoding="utf-8"))["results"][name]
    return found


def test_rows_are_those_of_the_command_on_the_same_model(tmp_path: Path) -> None:
    named = os.environ.get(MODEL)
    model = Path(named) if named else tiny_checkpoint(tmp_path / "model", "llama", max_position_embeddings=2048)
    settings = EvaluationSettings(tasks=TASKS, include_path=os.environ[FOLDER], limit=LIMIT)
    rows = lm_eval.run_benchmarks(model, settings, seed=0).rows
    assert len(rows) >= len(TASKS)
    for task in TASKS:
        told = by_the_command(model, task, tmp_path / task)
        mine = {row["metric"]: row for row in rows if row["task"] == task.partition("@")[0]}
        values = {metric for metric in told if "," in metric and "_stderr" not in metric}
        assert set(mine) == values
        for metric, row in mine.items():
            assert row["value"] == pytest.approx(told[metric], rel=1e-9)
            if metric.startswith("acc"):  # the error of perplexity is drawn, here from fewer draws
                assert row["standard_error"] == pytest.approx(told[metric.replace(",", "_stderr,")])
            assert row["num_documents"] == told["sample_len"] == LIMIT
