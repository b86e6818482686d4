"""The training loop: what it learns, what it leaves, and that killing it changes nothing."""

import copy
import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file

from minitron_nas.distillation.loss.intermediate import weighed
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache, write_hidden_cache
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.distillation.signals.top_k_cache import TopKCache, write_top_k_cache
from minitron_nas.distillation.training import objective, trainer, writer
from minitron_nas.distillation.training.lesson import Lesson, Stream
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.errors import CheckpointError, NonFiniteLossError, PlanError, TrainingMemoryError
from minitron_nas.execution.runner import is_out_of_memory
from minitron_nas.testing import tiny_config, tiny_model
from minitron_nas.text.packing import pack
from minitron_nas.text.token_log import TokenStream
from minitron_nas.text.tokens import IGNORE_LABEL

LENGTH = 16
SCHEDULE = Schedule(num_steps=8, batch_sequences=2, sequence_length=LENGTH)
SETTINGS = DistillationSettings(learning_rate=3e-3, num_evaluations=2)

COMPUTING = (
    "distillation.training.arguments",
    "distillation.training.objective",
    "distillation.loss.validation",
    "models.loading",
)
"""Modules that ask for the type to compute in."""


@pytest.fixture(autouse=True)
def dtype(request, monkeypatch):
    """Compute in float32, or in what a test asks for, whatever this machine computes best."""
    chosen = getattr(request, "param", torch.float32)
    for module in COMPUTING:
        monkeypatch.setattr(f"minitron_nas.{module}.compute_dtype", lambda device: chosen)
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
    return student, distill(student, Lesson(*streams, settings, schedule, seed), folder, **options)


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
    return [point.objective for point in result.curve if point.learning_rate is not None]


def dying_at(step):
    def progress(done, total):
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module in COMPUTING:
            patch.setattr(f"minitron_nas.{module}.compute_dtype", lambda device: torch.float32)
        return train(tmp_path_factory.mktemp("uninterrupted"))


def test_positions_in_the_stream_stay_numbers_when_a_batch_goes_to_a_device():
    sequences = trainer._SequenceDataset(TRAIN, SCHEDULE)
    batch = send_to_device(trainer._batch([sequences[1], sequences[2]]), torch.device("meta"))
    assert batch["input_ids"].shape == (2, LENGTH)
    assert batch["input_ids"].is_meta
    assert batch["index"] == (1, 2)


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


def test_without_a_signal_the_loss_is_the_next_token_loss_and_so_are_its_gradients(tmp_path):
    student, plain = a_student(), a_student()
    tokens = pack([np.random.default_rng(0).integers(3, 320, size=LENGTH)], LENGTH)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    expected = []
    for _ in range(3):
        loss = plain(input_ids=tokens.input_ids, labels=tokens.input_ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    streams = Stream(tokens, None), Stream(VALIDATION, None)
    chosen = changed(loss="lm", learning_rate=1e-3, min_learning_rate_fraction=1.0, warmup_fraction=0.0)
    result = distill(student, Lesson(*streams, chosen, Schedule(3, 1, LENGTH), seed=0), tmp_path)
    assert training_losses(result) == pytest.approx(expected, rel=1e-5)
    assert_close(student, plain)
    assert result.final.loss_nats == pytest.approx(validate(student, VALIDATION, None).loss_nats)
    assert math.isnan(result.final.kl_nats)


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
    assert {point.kl_nats == point.objective for point in result.curve if point.learning_rate is not None} == {True}
    assert (result.final.kl_nats, result.final.loss_nats) == (losses.kl_nats, losses.loss_nats)


def test_two_runs_give_the_same_bits(tmp_path, uninterrupted):
    student, result = train(tmp_path)
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd", "mse", "cosine"])
def test_every_distance_brings_a_student_nearer_to_its_teacher(tmp_path, loss):
    student = a_student()
    before = validate(student, VALIDATION, OnlineTeacher(a_teacher())).kl_nats
    tokens = some_tokens(64, seed=3)
    settings = changed(loss=loss, temperature=2.0, micro_batch_sequences=4, num_evaluations=1)
    _, result = train(tmp_path, student, schedule=Schedule(16, 4, LENGTH), tokens=tokens, settings=settings)
    assert result.final.kl_nats < 0.85 * before


def test_the_next_token_loss_alone_is_learned_without_a_teacher(tmp_path):
    student, tokens = a_student(), pack([np.arange(3, 3 + LENGTH)], LENGTH)
    before = validate(student, tokens, None).loss_nats
    streams = Stream(tokens, None), Stream(tokens, OnlineTeacher(a_teacher()))
    result = distill(student, Lesson(*streams, changed(loss="lm"), Schedule(20, 1, LENGTH), 0), tmp_path)
    assert training_losses(result)[0] == pytest.approx(before, rel=1e-5)
    assert result.final.loss_nats < 0.5 * before
    assert {point.kl_nats for point in result.curve if point.learning_rate is not None} == {None}


def uneven_tokens():
    """Four sequences with 15, 15, 7 and no labels: documents of one token have no next one."""
    generator = np.random.default_rng(0)
    lengths = [LENGTH, LENGTH, 8, *[1] * 8, *[1] * LENGTH]
    tokens = pack([generator.integers(3, 320, size=length) for length in lengths], LENGTH)
    assert [(row != IGNORE_LABEL).sum().item() for row in tokens.labels()] == [15, 15, 7, 0]
    return tokens


@pytest.mark.parametrize("settings", [{"loss": "lm"}, {"lm_loss_weight": 2.0}], ids=str)
def test_the_next_token_loss_is_a_mean_over_the_labels_of_the_whole_batch_whatever_its_parts(tmp_path, settings):
    tokens, schedule, curves = uneven_tokens(), Schedule(2, 4, LENGTH), {}
    first = validate(a_student(), tokens, OnlineTeacher(a_teacher()))
    for size in (4, 2, 1):
        parts = changed(**settings, micro_batch_sequences=size)
        _, result = train(tmp_path / str(size), settings=parts, schedule=schedule, tokens=tokens)
        curves[size] = training_losses(result)
    kl = 0 if "loss" in settings else first.kl_nats
    assert curves[4][0] == pytest.approx(kl + settings.get("lm_loss_weight", 1.0) * first.loss_nats, rel=1e-5)
    assert curves[2] == pytest.approx(curves[4], rel=1e-5)
    assert curves[1] == pytest.approx(curves[4], rel=1e-5)


MATCHING = changed(intermediate="always", teacher_signal="online", intermediate_layers=((-3, -1),))


def a_narrow_student():
    return tiny_model(tiny_config("llama", num_hidden_layers=2, hidden_size=36))


def test_matching_hidden_states_doubles_the_loss_and_brings_them_nearer(tmp_path):
    student, teacher, schedule = a_narrow_student(), a_teacher(), Schedule(60, 2, LENGTH)
    plain = training_losses(train(tmp_path / "plain", a_narrow_student(), schedule=SCHEDULE)[1])
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "weighed", lambda loss, distance: seen.append(loss.item()) or weighed(loss, distance))
        _, result = train(tmp_path / "on", student, teacher=teacher, schedule=schedule, settings=MATCHING)
    assert training_losses(result)[0] == pytest.approx(2 * plain[0], rel=1e-5)  # alpha L_is is as large as L_logits
    assert len(seen) == 120
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])
    assert sorted(student.state_dict()) == sorted(a_narrow_student().state_dict())


def test_the_linear_map_goes_on_from_a_checkpoint_with_its_student(tmp_path):
    whole, expected = train(tmp_path / "whole", a_narrow_student(), settings=MATCHING)
    train(tmp_path / "parts", a_narrow_student(), settings=MATCHING, stop_step=4)
    (checkpoint,) = (tmp_path / "parts").glob("checkpoint-*")
    assert "intermediate.lift.weight" in load_file(checkpoint / "model.safetensors")
    again, _ = train(tmp_path / "parts", a_narrow_student(), settings=MATCHING, stop_step=4, progress=dying_at(1))
    student, result = train(tmp_path / "parts", a_narrow_student(), settings=MATCHING)
    assert result == expected
    assert_same_bits(student, whole)
    assert sorted(again.state_dict()) == sorted(whole.state_dict())


def test_states_of_a_cache_cannot_be_matched(tmp_path):
    streams = []
    for name, tokens in (("train", TRAIN), ("validation", VALIDATION)):
        place = SignalPlace(tmp_path / name, "teacher", tokens)
        write_hidden_cache(a_teacher(), place)
        streams.append(Stream(tokens, HiddenCache(place)))
    with pytest.raises(PlanError, match="needs hidden states inside the teacher"):
        distill(a_student(), Lesson(*streams, MATCHING, SCHEDULE, 0), tmp_path / "run")


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


@pytest.fixture
def beside(monkeypatch):
    """Even the smallest checkpoint is written while training goes on."""
    monkeypatch.setattr(writer, "SMALL_BYTES", 0)


@pytest.mark.usefixtures("beside")
def test_a_run_that_ends_while_a_checkpoint_is_written_goes_on_from_it_to_the_bit(tmp_path, uninterrupted):
    settings, seen = changed(checkpoint_minutes=0.0), []
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings=settings, progress=dying_at(6))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    student, result = train(tmp_path, settings=settings, progress=lambda done, total: seen.append(done))
    assert seen == [6, 7, 8]
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]  # nothing is half written when it returns


@pytest.mark.usefixtures("beside")
def test_not_a_number_names_the_checkpoint_that_was_being_written(tmp_path):
    settings = changed(checkpoint_minutes=0.0, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(NonFiniteLossError, match=r"at step 2 .*the last good checkpoint is .*checkpoint-1$"):
        train(tmp_path, settings=settings)


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


@pytest.mark.parametrize("name", ["trainer_state.json", "complete", "model.checksums.json"])
def test_a_checkpoint_with_another_curve_or_mark_counts_as_none(tmp_path, uninterrupted, name):
    train(tmp_path, stop_step=4)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content.replace(b"1", b"2") if name == "trainer_state.json" else content[:-5])
    student, result = train(tmp_path)
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


@pytest.mark.parametrize("stop_step", [4, None])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_with_another_tensor_is_named(tmp_path, name, stop_step):
    train(tmp_path, stop_step=4)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    content = bytearray((checkpoint / name).read_bytes())
    content[-3] ^= 64
    (checkpoint / name).write_bytes(content)
    if (name, stop_step) == ("optimizer.safetensors", 4):
        train(tmp_path, stop_step=4)  # nothing is left to train, and no moment is read
        return
    with pytest.raises(CheckpointError, match=rf"checkpoint-4/{name} cannot be used: its tensor .* is not what was"):
        train(tmp_path, stop_step=stop_step)


@pytest.mark.parametrize(
    "other",
    [
        {"settings": changed(learning_rate=1e-3)},
        {"settings": changed(lm_loss_weight=0.1)},
        {"settings": changed(temperature=2.0)},
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


def test_an_earlier_part_is_told_as_it_was_though_training_has_gone_on(tmp_path):
    _, expected = train(tmp_path, stop_step=2)
    train(tmp_path, stop_step=4)
    _, result = train(tmp_path, stop_step=2, progress=dying_at(1))
    assert result == expected


def test_a_finished_run_leaves_no_checkpoint(tmp_path):
    train(tmp_path)
    assert list(tmp_path.glob("checkpoint-*")) == []


HARMING = changed(learning_rate=1.0, warmup_fraction=0.0, num_evaluations=4)
"""Steps so large that no validation is better than the one before training."""


def test_a_training_that_harms_exports_the_student_as_it_was_and_says_so(tmp_path):
    start, student = a_student(), a_student()
    _, result = train(tmp_path, student, settings=HARMING, trained=tmp_path / "out.safetensors")
    assert_exported(tmp_path / "out.safetensors", start)
    assert not torch.equal(student.lm_head.weight, start.lm_head.weight)
    assert (result.curve[0].tokens, result.best) == (0, result.curve[0])
    assert result.harm.startswith(f"training made it worse: validation KL {result.curve[0].kl_nats:.3f} nats before")


def test_a_training_that_helps_exports_its_last_weights_and_keeps_no_others(tmp_path):
    student, result = train(tmp_path / "run", trained=tmp_path / "out.safetensors")
    assert result.best == result.final
    assert result.harm is None
    assert_exported(tmp_path / "out.safetensors", student)
    _, same = train(tmp_path / "again", trained=tmp_path / "same.safetensors", settings=changed(num_evaluations=1))
    assert same.final == result.final
    assert (tmp_path / "same.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


@pytest.mark.parametrize("small_bytes", [writer.SMALL_BYTES, 0])
def test_the_best_weights_on_the_way_are_the_same_bytes_though_the_run_is_killed_after_them(
    tmp_path, monkeypatch, small_bytes
):
    monkeypatch.setattr(writer, "SMALL_BYTES", small_bytes)
    steps = {"learning_rate": 0.01, "warmup_fraction": 0.3, "min_learning_rate_fraction": 1.0}
    settings = changed(**steps, num_evaluations=8, checkpoint_minutes=0.0)
    _, expected = train(tmp_path / "whole", settings=settings, trained=tmp_path / "whole.safetensors")
    assert 0 < expected.best.tokens < expected.final.tokens  # else this shows nothing
    for step in (1, 2, 4, 7):
        with pytest.raises(KeyboardInterrupt):
            train(
                tmp_path / "parts", settings=settings, trained=tmp_path / "parts.safetensors", progress=dying_at(step)
            )
    _, result = train(tmp_path / "parts", settings=settings, trained=tmp_path / "parts.safetensors")
    assert result == expected
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def assert_exported(file, student):
    stored = load_file(file)
    assert stored.keys() == {name for name, _ in student.named_parameters()}
    assert [name for name, weight in student.named_parameters() if not torch.equal(stored[name], weight)] == []


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


def long_documents(bos):
    """Eight sequences of two documents; with a BOS, six of them begin inside one."""
    generator = np.random.default_rng(3)
    return pack(TokenStream([np.r_[1, generator.integers(3, 320, size=4 * LENGTH)] for _ in range(2)], bos), LENGTH)


def test_an_added_bos_counts_in_no_part_of_the_loss_however_the_batch_is_cut(tmp_path):
    tokens, schedule = long_documents(bos=1), Schedule(1, 8, LENGTH)
    assert int(tokens.added.sum()) == 7
    settings = {"lm_loss_weight": 0.5, "num_evaluations": 1}
    whole, result = train(
        tmp_path / "whole", tokens=tokens, schedule=schedule, settings=changed(**settings, micro_batch_sequences=8)
    )
    parts, _ = train(
        tmp_path / "parts", tokens=tokens, schedule=schedule, settings=changed(**settings, micro_batch_sequences=1)
    )
    assert_close(whole, parts)
    losses = validate(a_student(), tokens, OnlineTeacher(a_teacher()))
    assert training_losses(result) == pytest.approx([losses.kl_nats + 0.5 * losses.loss_nats], rel=1e-4)


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
        place = SignalPlace(tmp_path / name, "teacher", tokens)
        write_hidden_cache(a_teacher(), place, batch_sequences=size)
        signals.append(Stream(tokens, HiddenCache(place, torch.device("cpu"))))
    student = a_student()
    result = distill(student, Lesson(*signals, SETTINGS, SCHEDULE, 0), tmp_path / "run")
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


def test_states_rounded_to_bfloat16_give_the_curve_within_their_rounding(tmp_path, uninterrupted):
    place = SignalPlace(tmp_path / "train", "teacher", TRAIN)
    write_hidden_cache(a_teacher(), place, 1, torch.bfloat16)
    streams = Stream(TRAIN, HiddenCache(place, torch.device("cpu"))), Stream(VALIDATION, OnlineTeacher(a_teacher()))
    result = distill(a_student(), Lesson(*streams, SETTINGS, SCHEDULE, 0), tmp_path / "run")
    assert training_losses(result) == pytest.approx(training_losses(uninterrupted[1]), rel=2e-3)
    assert training_losses(result) != training_losses(uninterrupted[1])
    assert result.final.kl_nats == pytest.approx(uninterrupted[1].final.kl_nats, rel=2e-3)


def test_a_whole_vocabulary_of_most_probable_tokens_is_the_full_distribution(tmp_path, uninterrupted):
    result = train_on_most_probable(tmp_path, 320)
    assert training_losses(result) == pytest.approx(training_losses(uninterrupted[1]), rel=1e-3)
    assert result.final.kl_nats == pytest.approx(uninterrupted[1].final.kl_nats, rel=1e-3)


def test_fewer_most_probable_tokens_bring_the_student_nearer_too_but_less(tmp_path, uninterrupted):
    before = validate(a_student(), VALIDATION, OnlineTeacher(a_teacher())).kl_nats
    result = train_on_most_probable(tmp_path, 160)
    assert uninterrupted[1].final.kl_nats < result.final.kl_nats < before


def test_a_checkpoint_of_another_k_is_not_continued(tmp_path):
    seen = []
    for k in (160, 161, 161):
        steps = []
        train_on_most_probable(tmp_path, k, stop_step=1, progress=lambda done, total: steps.append(done))  # noqa: B023
        seen.append(steps)
    assert seen == [[1], [1], []]


def train_on_most_probable(folder, k, **options):
    """Distil a student from a top-K cache; it is validated on the whole distribution."""
    place, settings = SignalPlace(folder / f"top-{k}", "teacher", TRAIN), changed(teacher_signal="top_k", top_k=k)
    write_top_k_cache(a_teacher(), place, k, batch_sequences=1)
    streams = Stream(TRAIN, TopKCache(place, torch.device("cpu"))), Stream(VALIDATION, OnlineTeacher(a_teacher()))
    return distill(a_student(), Lesson(*streams, settings, SCHEDULE, 0), folder / "run", **options)


def test_recomputing_activations_gives_the_same_bits(tmp_path, uninterrupted):
    student, result = train(tmp_path, settings=changed(gradient_checkpointing=True))
    assert student.get_decoder().gradient_checkpointing
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


def test_the_first_layers_alone_can_compute_their_activations_again(tmp_path, uninterrupted):
    model, computed = a_student(), Counter()
    for number, layer in enumerate(model.get_decoder().layers):
        layer.mlp.register_forward_pre_hook(lambda *_, n=number: computed.update([n] * torch.is_grad_enabled()))
    student, result = train(tmp_path, model, settings=changed(gradient_checkpointing=0.5))
    assert computed[1] == SCHEDULE.num_steps * SCHEDULE.batch_sequences
    assert computed == {0: 2 * computed[1], 1: computed[1]}
    assert result == uninterrupted[1]
    assert_same_bits(student, uninterrupted[0])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at every tensor's
def test_compiled_layers_give_the_losses_of_written_ones_and_are_gone_after_training(tmp_path, uninterrupted):
    ran = []
    student = a_student()
    layer = student.get_decoder().layers[0]
    layer.register_forward_hook(lambda *_: ran.append(torch.compiler.is_compiling()))
    student, result = train(tmp_path, student, settings=changed(torch_compile=True))
    assert ran[0]
    assert training_losses(result) == pytest.approx(training_losses(uninterrupted[1]), rel=1e-4)
    assert_close(student, uninterrupted[0])
    ran.clear()
    student(TRAIN.input_ids[:1])
    assert ran == [False]


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
        TrainingMemoryError, match=r"about \d+ kB for weights, .*lower distillation.micro_batch"
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


def test_tensorboard_shows_the_curve(tmp_path, uninterrupted, monkeypatch):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    train(tmp_path / "checkpoints", settings=changed(report_to=("tensorboard",), run_name="one"))
    board = event_accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    shown = [event.value for event in board.Scalars("train/loss")]
    assert shown == pytest.approx(training_losses(uninterrupted[1]), rel=1e-5)
    assert [event.step for event in board.Scalars("eval/kl_nats")][-1] == SCHEDULE.num_steps
