"""Speed and memory, measured in turns with the teacher, each model in a process of its own."""

from itertools import count

import pytest
from safetensors.torch import load_file

from minitron_nas.errors import MinitronNasError
from minitron_nas.evaluation import speed
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.speed import measure_speed
from minitron_nas.evaluation.turns import MOST_REPEATS, WIDE_SPREAD
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.placement import whole_model_bytes
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.testing.tiny import rewrite_tensors

SETTINGS = EvaluationSettings(prompt_tokens=8, decode_tokens=2, repeats=1)
EMBEDDING = "model.embed_tokens.weight"
FIVE = EvaluationSettings(prompt_tokens=512, decode_tokens=32, repeats=5)


@pytest.fixture
def timed_as(monkeypatch):
    """Models take known seconds of prefill and decode, and some calls, by number, longer by a factor."""

    def patch(seconds, slow=(), spread=()):
        slow, calls = dict(slow), count()

        class Worker:
            def __init__(self, path, settings):
                self.path = path

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def take(self):
                factor = slow.get(next(calls), 1.0)
                return [factor * each for each in seconds[self.path]]

            def end(self):
                return 1000

        monkeypatch.setattr(speed, "_worker", Worker)
        monkeypatch.setattr(speed, "_fit_together", lambda models: True)
        monkeypatch.setattr(speed, "is_larger_than_device", lambda path: path in spread)
        return calls

    return patch


def test_speeds_are_tokens_over_median_times_and_the_teachers_times_over_them(timed_as):
    timed_as({"student": (0.5, 1.0), "teacher": (1.0, 1.5)})
    found = measure_speed("student", FIVE, "teacher")
    assert (found.prefill_tokens_per_second, found.decode_tokens_per_second) == (1024, 32)
    assert (found.prefill_speedup, found.decode_speedup) == (2.0, 1.5)
    assert (found.prefill_spread, found.decode_spread, found.peak_memory_bytes) == (0.0, 0.0, 1000)


def test_the_teacher_is_its_own_measure_and_spreads_by_its_own_times(timed_as):
    timed_as({"teacher": (1.0, 1.5)}, {call: 1 + 0.01 * call for call in (1, 2, 3, 4, 5)})
    found = measure_speed("teacher", FIVE)
    assert (found.prefill_speedup, found.decode_speedup) == (1.0, 1.0)
    # Rounds take 1.01 to 1.05 seconds, whose quartiles are 1.02 and 1.04.
    assert found.prefill_spread == pytest.approx(0.02 / 1.03)


@pytest.mark.parametrize(
    "slow",
    [
        pytest.param(range(4, 5), id="one measurement of the student"),
        pytest.param(range(3, 8), id="two and a half rounds"),
        pytest.param(range(2, 200), id="all rounds"),
        pytest.param((4, 6, 8), id="three of five of the student's alone"),
    ],
)
def test_a_machine_that_hiccups_does_not_move_the_speedup(timed_as, slow):
    timed_as({"student": (0.5, 1.0), "teacher": (1.0, 1.5)}, dict.fromkeys(slow, 16.0))
    found = measure_speed("student", FIVE, "teacher")
    assert (found.prefill_speedup, found.decode_speedup) == pytest.approx((2.0, 1.5))


def test_a_speed_that_stays_unsteady_says_so_after_three_times_the_rounds(timed_as):
    calls = timed_as({"student": (0.5, 1.0), "teacher": (1.0, 1.5)}, {call: 1 + call % 7 for call in range(200)})
    found = measure_speed("student", FIVE, "teacher")
    assert found.decode_spread > WIDE_SPREAD
    assert next(calls) == 2 * (1 + MOST_REPEATS * 5)


def test_a_model_that_is_larger_than_the_device_is_not_timed(timed_as):
    calls = timed_as({}, spread=["student"])
    assert measure_speed("student", FIVE, "teacher") == speed.Speed()
    assert next(calls) == 0


def test_beside_a_teacher_that_is_larger_than_the_device_a_model_is_timed_alone(timed_as):
    timed_as({"student": (0.5, 1.0)}, spread=["teacher"])
    found = measure_speed("student", FIVE, "teacher")
    assert found == speed.Speed(1024, 32, 1000, None, None, 0.0, 0.0)


def test_models_that_do_not_fit_into_memory_together_take_turns_one_process_at_a_time(timed_as, monkeypatch):
    calls = timed_as({"student": (0.5, 1.0), "teacher": (1.0, 1.5)}, {0: 16.0, 2: 16.0})
    monkeypatch.setattr(speed, "_fit_together", lambda models: False)
    found = measure_speed("student", FIVE, "teacher")
    assert (found.prefill_speedup, found.decode_speedup, found.peak_memory_bytes) == (2.0, 1.5, 1000)
    # Twice for each of two models in six rounds, and once more for the memory.
    assert next(calls) == 2 * 2 * 6 + 1


@pytest.mark.parametrize(("missing", "together"), [(0, True), (1, False)])
def test_models_fit_together_if_they_run_beside_each_other(tmp_path, monkeypatch, missing, together):
    path = tiny_checkpoint(tmp_path, "llama", tied=True)
    needed, embedding = whole_model_bytes(open_checkpoint(path)), load_file(path / "model.safetensors")[EMBEDDING]
    rewrite_tensors(path, {"lm_head.weight": embedding.clone()})  # a copy, which is dropped as it is loaded
    monkeypatch.setattr(speed, "available_bytes", lambda device: 2 * needed - missing)
    assert speed._fit_together([path, path]) is together
    assert speed._fit_together([path])


def test_a_tiny_model_has_a_speed_and_needs_more_memory_than_its_weights(tmp_path):
    path = tiny_checkpoint(tmp_path, "llama")
    found = measure_speed(path, SETTINGS, path)
    assert found.prefill_tokens_per_second > 0
    assert found.decode_tokens_per_second > 0
    assert found.prefill_speedup > 0
    assert (path / "model.safetensors").stat().st_size < found.peak_memory_bytes < 8e9


@pytest.mark.slow
def test_a_folder_that_cannot_be_loaded_is_an_error_of_one_line(tmp_path):
    with pytest.raises(MinitronNasError, match=rf"measuring the speed of {tmp_path} failed: \S") as caught:
        measure_speed(tmp_path, SETTINGS)
    assert "\n" not in str(caught.value)
