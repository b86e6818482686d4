"""The training loop: what it learns, what it leaves, and that killing it changes nothing."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch

from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals import HiddenCache, OnlineTeacher, write_hidden_cache
from minitron_nas.distillation.tokens import pack
from minitron_nas.distillation.trainer import Stream, distill
from minitron_nas.distillation.validation import validate
from minitron_nas.errors import NonFiniteLossError, TrainingMemoryError
from minitron_nas.execution.runner import is_out_of_memory
from minitron_nas.testing import tiny_config, tiny_model

LENGTH = 16
SCHEDULE = Schedule(num_steps=8, batch_sequences=2, sequence_length=LENGTH)
SETTINGS = DistillationSettings(learning_rate=3e-3, num_evaluations=2)


@pytest.fixture(autouse=True)
def dtype(request, monkeypatch):
    """Compute in float32, or in what a test asks for, whatever this machine computes best."""
    chosen = getattr(request, "param", torch.float32)
    for module in ("arguments", "validation", "signals"):
        monkeypatch.setattr(f"minitron_nas.distillation.{module}.compute_dtype", lambda device: chosen)
    return chosen


bfloat16 = pytest.mark.parametrize("dtype", [torch.bfloat16], indirect=True)


def some_tokens(num_sequences, seed=7):
    generator = np.random.default_rng(seed)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(2 * num_sequences + 4)]
    return pack(pieces, LENGTH).first(num_sequences)


TRAIN, VALIDATION = some_tokens(16, seed=1), some_tokens(4, seed=2)


def a_teacher(model_type="llama", **changes):
    return tiny_model(tiny_config(model_type, **changes), seed=1)


def a_student(**changes):
    """The teacher without its last two layers."""
    teacher, student = a_teacher(**changes), tiny_model(tiny_config("llama", num_hidden_layers=2, **changes))
    student.load_state_dict(teacher.state_dict(), strict=False)
    return student


def train(folder, student=None, *, settings=SETTINGS, schedule=SCHEDULE, teacher=None, tokens=TRAIN, seed=0, **options):
    """Distil a student online and return it with the result."""
    student, signal = student or a_student(), OnlineTeacher(teacher or a_teacher())
    streams = Stream(tokens, signal), Stream(VALIDATION, signal)
    return student, distill(student, *streams, settings, schedule, folder, seed, **options)


def changed(**values):
    return SETTINGS.model_copy(update=values)


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(model, other):
    first, second = weights_of(model), weights_of(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_close(model, other):
    torch.testing.assert_close(weights_of(model), weights_of(other), rtol=1e-4, atol=1e-5)


def training_losses(result):
    return [point.kl_nats for point in result.curve if point.learning_rate is not None]


def dying_at(step):
    def progress(done, total):
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module in ("arguments", "validation", "signals"):
            patch.setattr(f"minitron_nas.distillation.{module}.compute_dtype", lambda device: torch.float32)
        return train(tmp_path_factory.mktemp("uninterrupted"))


def test_training_brings_a_pruned_student_nearer_to_its_teacher(tmp_path):
    student = a_student()
    before = validate(student, VALIDATION, OnlineTeacher(a_teacher())).kl_nats
    tokens = some_tokens(64, seed=3)
    _, result = train(tmp_path, student, schedule=Schedule(40, 4, LENGTH), tokens=tokens)
    assert result.final.kl_nats < 0.75 * before


@bfloat16
def test_training_in_bfloat16_keeps_float32_weights_and_lowers_the_kl(tmp_path):
    student = a_student()
    before = validate(student, VALIDATION, OnlineTeacher(a_teacher().bfloat16())).kl_nats
    schedule = Schedule(20, 4, LENGTH)
    _, result = train(tmp_path, student, schedule=schedule, teacher=a_teacher().bfloat16())
    assert result.final.kl_nats < 0.9 * before
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron", "qwen2"])
def test_a_copy_of_the_teacher_has_nothing_to_learn(tmp_path, model_type):
    student = a_teacher(model_type)
    _, result = train(tmp_path, student, teacher=a_teacher(model_type), schedule=Schedule(1, 2, LENGTH))
    assert training_losses(result) == pytest.approx([0.0], abs=1e-6)


def test_sequences_are_seen_in_their_order_and_repeated_for_a_longer_schedule(tmp_path):
    student, tokens = a_student(), some_tokens(3)
    each = [validate(student, batch, OnlineTeacher(a_teacher())).kl_nats for _, batch in tokens.batches(1)]
    _, result = train(
        tmp_path, student, tokens=tokens, schedule=Schedule(5, 1, LENGTH), settings=changed(learning_rate=1e-12)
    )
    assert training_losses(result) == pytest.approx([*each, *each[:2]], rel=1e-5)


def test_the_next_token_loss_is_added_with_its_weight(tmp_path):
    student = a_student()
    tokens = pack([np.random.default_rng(0).integers(3, 320, size=LENGTH)], LENGTH)
    losses = validate(student, tokens, OnlineTeacher(a_teacher()))
    _, result = train(
        tmp_path, student, tokens=tokens, schedule=Schedule(1, 1, LENGTH), settings=changed(lm_loss_weight=0.5)
    )
    assert training_losses(result) == pytest.approx([losses.kl_nats + 0.5 * losses.loss_nats], rel=1e-5)


def test_the_curve_holds_every_step_and_the_validations_at_even_distances(uninterrupted):
    student, result = uninterrupted
    per_step = 2 * LENGTH
    trained = [(point.tokens, point.learning_rate) for point in result.curve if point.learning_rate is not None]
    factors = [SCHEDULE.learning_rate_factor(step, SETTINGS) for step in range(8)]
    assert [tokens for tokens, _ in trained] == [step * per_step for step in range(1, 9)]
    assert [rate for _, rate in trained] == pytest.approx([SETTINGS.learning_rate * factor for factor in factors])
    validated = [point for point in result.curve if point.learning_rate is None]
    assert [point.tokens for point in validated] == [4 * per_step, 8 * per_step]
    losses = validate(student, VALIDATION, OnlineTeacher(a_teacher()))
    assert result.final == validated[-1]
    assert (result.final.kl_nats, result.final.loss_nats) == (losses.kl_nats, losses.loss_nats)


def test_two_runs_give_the_same_bits(tmp_path, uninterrupted):
    student, result = train(tmp_path)
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"attention_dropout": 0.2}])
def test_a_run_that_is_stopped_and_continued_equals_an_uninterrupted_one_to_the_bit(tmp_path, changes):
    whole, expected = train(tmp_path / "whole", a_student(**changes))
    _, half = train(tmp_path / "parts", a_student(**changes), stop_step=4)
    student, result = train(tmp_path / "parts", a_student(**changes))
    assert half.curve == expected.curve[: len(half.curve)]
    assert half.final.tokens == 4 * 2 * LENGTH
    assert result == expected
    assert_same_bits(student, whole)


def test_a_run_that_is_killed_after_a_checkpoint_and_repeated_equals_an_uninterrupted_one(tmp_path, uninterrupted):
    settings, seen = changed(checkpoint_minutes=0.0), []
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings=settings, progress=dying_at(6))
    student, result = train(tmp_path, settings=settings, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 8), (7, 8), (8, 8)]  # the checkpoint of step 5 was used
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


def test_a_half_written_checkpoint_is_ignored(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings=changed(checkpoint_minutes=0.0), progress=dying_at(6))
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    later = shutil.copytree(checkpoint, tmp_path / "checkpoint-7")
    (later / "complete").unlink()
    (later / "model.safetensors").write_bytes(b"half")
    student, result = train(tmp_path)
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


@pytest.mark.parametrize(
    "other",
    [
        {"settings": changed(learning_rate=1e-3)},
        {"settings": changed(lm_loss_weight=0.1)},
        {"schedule": Schedule(4, 2, LENGTH)},
        {"tokens": some_tokens(16, seed=5)},
        {"seed": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_checkpoint_of_something_else_is_not_continued(tmp_path, other):
    train(tmp_path, stop_step=1)
    seen = []
    train(tmp_path, **other, stop_step=2, progress=lambda done, total: seen.append(done))
    assert seen == [1, 2]


def test_a_killed_run_may_go_on_with_smaller_micro_batches_and_checkpointed_gradients(tmp_path, uninterrupted):
    train(tmp_path, settings=changed(micro_batch_sequences=2), stop_step=4)
    seen = []
    student, _ = train(
        tmp_path, settings=changed(gradient_checkpointing=True), progress=lambda done, total: seen.append(done)
    )
    assert seen == [5, 6, 7, 8]
    assert_close(student, uninterrupted[0])


@pytest.mark.parametrize("tied", [False, True])
def test_repeating_a_finished_part_only_loads_it(tmp_path, tied):
    trained, expected = train(tmp_path, a_student(tied=tied), stop_step=4)
    student, result = train(tmp_path, a_student(tied=tied), stop_step=4, progress=dying_at(1))
    assert result == expected
    assert_same_bits(student, trained)


def test_a_finished_run_leaves_no_checkpoint(tmp_path):
    train(tmp_path)
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_a_checkpoint_replaces_the_one_before(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings=changed(checkpoint_minutes=0.0), progress=dying_at(4))
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-3"
    assert len(json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]) == 3


def test_a_batch_in_four_parts_gives_the_gradient_of_the_whole(tmp_path):
    schedule = Schedule(4, 4, LENGTH)
    whole, expected = train(tmp_path / "whole", schedule=schedule, settings=changed(micro_batch_sequences=4))
    parts, result = train(tmp_path / "parts", schedule=schedule, settings=changed(micro_batch_sequences=1))
    assert training_losses(result) == pytest.approx(training_losses(expected), rel=1e-5)
    assert_close(parts, whole)


def test_a_micro_batch_is_at_most_the_batch(tmp_path):
    schedule = Schedule(2, 2, LENGTH)
    student, result = train(tmp_path / "large", schedule=schedule, settings=changed(micro_batch_sequences=64))
    same, expected = train(tmp_path / "equal", schedule=schedule, settings=changed(micro_batch_sequences=2))
    assert result == expected
    assert_same_bits(student, same)


def test_a_cached_and_an_online_signal_give_the_same_bits(tmp_path, uninterrupted):
    signals = []
    for name, tokens in (("train", TRAIN), ("validation", VALIDATION)):
        size = 1 if name == "train" else 4  # as the online teacher's batches; other shapes round differently
        write_hidden_cache(a_teacher(), tokens, tmp_path / name, batch_sequences=size)
        signals.append(Stream(tokens, HiddenCache(tmp_path / name, torch.device("cpu"))))
    student = a_student()
    result = distill(student, *signals, SETTINGS, SCHEDULE, tmp_path / "run", 0)
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


def test_recomputing_activations_gives_the_same_bits(tmp_path, uninterrupted):
    student, result = train(tmp_path, settings=changed(gradient_checkpointing=True))
    assert student.get_decoder().gradient_checkpointing
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


def test_gradients_are_clipped_to_their_norm(tmp_path, uninterrupted):
    # Adam's steps do not depend on the scale of all gradients but on their changes from step to step.
    _, result = train(tmp_path, settings=changed(max_grad_norm=1e-3))
    assert training_losses(result)[0] == training_losses(uninterrupted[1])[0]
    assert result.final != uninterrupted[1].final


def test_weight_decay_reaches_the_optimizer(tmp_path, uninterrupted):
    decayed, _ = train(tmp_path, settings=changed(weight_decay=10.0))
    norms = [model.get_output_embeddings().weight.norm() for model in (decayed, uninterrupted[0])]
    assert norms[0] < 0.95 * norms[1]


@bfloat16
def test_a_trained_student_computes_as_a_fresh_model_with_its_weights_and_config(tmp_path):
    student = a_student()
    config = copy.deepcopy(student.config.to_dict())
    train(tmp_path, student, teacher=a_teacher().bfloat16())
    fresh = a_student()
    fresh.load_state_dict(student.state_dict())
    inputs = VALIDATION.input_ids
    assert torch.equal(student.eval()(inputs).logits, fresh(inputs).logits)
    assert student.config.to_dict() == config
    assert set(vars(student)) == set(vars(fresh))


@bfloat16
def test_a_student_can_be_trained_again_in_the_same_way(tmp_path):
    teacher, schedule = a_teacher().bfloat16(), Schedule(2, 2, LENGTH)
    again, copied = a_student(), a_student()
    train(tmp_path / "first", again, teacher=teacher, schedule=schedule)
    copied.load_state_dict(again.state_dict())
    _, result = train(tmp_path / "again", again, teacher=teacher, schedule=schedule)
    _, expected = train(tmp_path / "copied", copied, teacher=teacher, schedule=schedule)
    assert result == expected
    assert_same_bits(again, copied)


def test_a_loss_that_is_no_number_stops_the_run_with_its_step_and_keeps_the_last_good_checkpoint(tmp_path):
    settings = changed(learning_rate=1e30, checkpoint_minutes=0.0)
    with pytest.raises(
        NonFiniteLossError,
        match=r"the distillation loss is nan at step 2 \(learning rate .*e\+30\); lower distillation.learning_rate and",
    ):
        train(tmp_path, settings=settings)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_the_error_of_a_loss_that_is_no_number_names_the_last_good_checkpoint(tmp_path):
    settings = changed(learning_rate=1e30, checkpoint_minutes=0.0)
    with pytest.raises(NonFiniteLossError, match=r"the last good checkpoint is .*checkpoint-1$"):
        train(tmp_path / "one", settings=settings)
    with pytest.raises(NonFiniteLossError, match="there is no checkpoint from before$"):
        train(tmp_path / "none", settings=changed(learning_rate=1e30))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        MemoryError(),
    ],
    ids=["device", "cpu", "python"],
)
def test_too_little_memory_is_told_with_numbers_and_is_no_failure_of_a_trial(tmp_path, error):
    def full(gradient):
        raise error

    student = a_student()
    student.get_output_embeddings().weight.register_hook(full)
    with pytest.raises(
        TrainingMemoryError, match=r"about 0\.000\d+ GB for weights, .*lower distillation.micro_batch"
    ) as caught:
        train(tmp_path, student, settings=changed(micro_batch_sequences=2))
    assert is_out_of_memory(caught.value)
    assert caught.value.__cause__ is error


def test_another_error_stays_what_it_is(tmp_path):
    def broken(gradient):
        raise RuntimeError("a defect")

    student = a_student()
    student.get_output_embeddings().weight.register_hook(broken)
    with pytest.raises(RuntimeError, match="a defect"):
        train(tmp_path, student)


def test_a_gradient_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path):
    student = a_student()
    student.get_output_embeddings().weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match="the norm of the gradient is (nan|inf) at step 1"):
        train(tmp_path, student, settings=changed(checkpoint_minutes=0.0))
    assert list(tmp_path.glob("checkpoint-*")) == []
