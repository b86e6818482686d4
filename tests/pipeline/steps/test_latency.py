"""A latency model of a teacher, from its config alone."""

import json
import sys

import pytest

from minitron_nas.cli import app
from minitron_nas.errors import LatencyError, TeacherNotFoundError
from minitron_nas.evaluation import latency_bench
from minitron_nas.evaluation.latency import LatencyModel
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.latency import measure_latency
from minitron_nas.testing.tiny import tiny_config

SPACE = """
axes:
  num_hidden_layers: {min_fraction: 0.5, step_fraction: 0.1}
  hidden_size: {values: [24, 36, 48]}
  intermediate_size: {values: [32, 64, 96]}
"""


@pytest.fixture
def teacher(tmp_path):
    """A folder with nothing but a config.json."""
    folder = tmp_path / "teacher"
    tiny_config("llama", num_hidden_layers=10).save_pretrained(folder)
    return folder


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    return str(file)


@pytest.fixture
def _known_times(monkeypatch):
    """A layer takes a constant and what its matrices of the FFN take, a model a constant besides."""

    def player(model, lengths):
        config = model.config
        layer = 1e-3 + 2e-6 * config.hidden_size * config.intermediate_size
        seconds = 0.01 + 1e-4 * config.hidden_size + config.num_hidden_layers * layer
        return lambda: (lengths.prompt_tokens * seconds, seconds)

    monkeypatch.setattr(latency_bench, "_player", player)


@pytest.mark.usefixtures("_known_times")
def test_the_command_writes_a_model_that_predicts_the_known_times(teacher, space, tmp_path, monkeypatch, capsys):
    out = tmp_path / "latency.json"
    arguments = ["latency", teacher, "--space", space, "--prompt-tokens", 7, "--out", out, "--json"]
    monkeypatch.setattr(sys, "argv", ["minitron-nas", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert not stop.value.code
    told = json.loads(capsys.readouterr().out)
    # Nine shapes of layers, each as two stacks.
    assert (told["num_measurements"], told["setting"]["prompt_tokens"]) == (18, 7)
    assert told["decode"]["whole_model_errors"] == pytest.approx([0] * 4, abs=1e-6)
    shape = {
        "num_hidden_layers": [8],
        "hidden_size": [36],
        "intermediate_size": [80],
        "num_attention_heads": [6],
        "num_key_value_heads": [2],
    }
    seconds = 0.01 + 1e-4 * 36 + 8 * (1e-3 + 2e-6 * 36 * 80)
    found = LatencyModel.load(out).predict(shape)
    assert found["decode_seconds"] == pytest.approx([seconds])
    assert found["prefill_seconds"] == pytest.approx([7 * seconds])


def test_a_file_that_is_there_is_not_written_over(teacher, space, tmp_path):
    out = tmp_path / "latency.json"
    out.write_text("mine")
    with pytest.raises(LatencyError, match=r"latency.json exists; remove it or name another file"):
        measure_latency(teacher, out, space, display=Quiet())
    assert out.read_text() == "mine"


def test_a_teacher_that_is_nowhere_is_refused(space, tmp_path):
    with pytest.raises(TeacherNotFoundError, match="there is no teacher at 'nowhere'"):
        measure_latency("nowhere", tmp_path / "latency.json", space, display=Quiet())


@pytest.mark.slow
def test_a_tiny_family_is_measured_for_real(teacher, space, tmp_path):
    model = measure_latency(teacher, tmp_path / "latency.json", space, 1, 16, 16, Quiet())
    assert model == LatencyModel.load(tmp_path / "latency.json")
    assert len(model.held_out) == 4
    assert all(each.decode_seconds > 0 for each in model.held_out)
