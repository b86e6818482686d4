"""Criteria against models that `build_student` cut, and against sums written out."""

import functools
from math import inf
from pathlib import Path

import datasets
import pytest
import torch
from lm_eval.tasks import TaskManager

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.kinds import gives
from minitron_nas.distillation.loss import chunks
from minitron_nas.errors import PlanError
from minitron_nas.evaluation import lm_eval
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.families.catalog import layout_of, layouts
from minitron_nas.importance import depth as module
from minitron_nas.importance.depth import (
    WholeModel,
    block_importance,
    kl_to_whole,
    logit_error,
    make_criterion,
    next_token_loss,
)
from minitron_nas.importance.depth_modes import best_blocks, greedy_layers, layer_table, layers_alone
from minitron_nas.importance.layer_removal import BATCH_SEQUENCES, without_layers
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.models.layer_model import kinds_of
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.student import build_student
from minitron_nas.testing import Subject, tiny_checkpoint, tiny_config, tiny_model
from minitron_nas.testing.tiny import TINY_E2B
from minitron_nas.text.packing import pack

TASKS = Path(__file__).parents[1] / "evaluation" / "tasks"
LLAMA = layout_of("llama")


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    monkeypatch.setattr("minitron_nas.distillation.loss.validation.compute_dtype", lambda device: torch.float32)


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config("llama"))


@pytest.fixture(scope="module")
def text():
    """Five sequences of twelve tokens; documents end inside two of them."""
    ids = torch.randint(0, 320, (60,), generator=torch.Generator().manual_seed(0)).numpy()
    return pack([ids[:7], ids[7:36], ids[36:40], ids[40:]], 12)


@torch.no_grad()
def logits_of(model, text):
    return model(input_ids=text.input_ids, position_ids=text.position_ids, use_cache=False).logits


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mixtral"])  # the conformance suite tries every family
def test_a_model_without_layers_has_the_logits_of_the_student_that_is_cut_without_them(model_type, tmp_path):
    layout = layouts()[model_type]
    subject = Subject.make(layout, tiny_config(model_type, num_hidden_layers=4), tmp_path)
    prepared, source = subject.prepared, subject.architecture
    whole = subject.logits(subject.model)
    for removed in ({0}, {1, 2}, {1, 3}):
        kept = sorted(set(range(4)) - removed)
        order = PruningOrder(
            **{
                name: layer_table({len(kept): kept}, 4) if name == "layers" else getattr(prepared.order, name)
                for name in PruningOrder.__dataclass_fields__
            }
        )
        write_prepared(tmp_path / "prepared", order)
        opened = PreparedTeacher.open(prepared.path, tmp_path / "prepared")
        student = build_student(opened, source.reshaped({"num_hidden_layers": len(kept)}), torch.float64)
        if hasattr(student, "set_experts_implementation"):
            student.set_experts_implementation("eager")
        with without_layers(subject.model, layout, removed):
            logits = subject.logits(subject.model)
        assert torch.equal(logits, subject.logits(student))
        assert not torch.equal(logits, whole)
    assert torch.equal(subject.logits(subject.model), whole)


def test_layers_are_back_after_an_error(model, text):
    whole = logits_of(model, text)
    with pytest.raises(ZeroDivisionError), without_layers(model, LLAMA, [1]):
        raise ZeroDivisionError
    assert torch.equal(logits_of(model, text), whole)


@torch.no_grad()
def test_block_importance_is_one_minus_the_mean_cosine_of_what_goes_in_and_what_comes_out(model, text):
    output = model(input_ids=text.input_ids, position_ids=text.position_ids, use_cache=False, output_hidden_states=True)
    scores = block_importance(model, LLAMA, text, [range(1, 3), range(3)])
    for score, (first, last) in zip(scores, ((1, 3), (0, 3)), strict=True):
        cosine = torch.nn.functional.cosine_similarity(
            output.hidden_states[first], output.hidden_states[last], dim=-1
        ).mean()
        assert score == pytest.approx(1 - cosine.item(), abs=1e-6)


def test_block_importance_of_one_layer_is_that_of_the_scoring_pass(model, text):
    shape = architecture_of(model.config.to_dict(), LLAMA)
    scored = score_importance(model, shape, LLAMA, text, ImportanceSettings()).layers.tolist()
    runs = [range(layer, layer + 1) for layer in range(4)]
    assert block_importance(model, LLAMA, text, runs) == pytest.approx(scored, abs=1e-6)


def test_loss_kl_and_logit_error_are_those_of_the_logits(model, text):
    whole, full = WholeModel.of(model, text), logits_of(model, text)
    assert kl_to_whole(model, text, whole) == pytest.approx(0, abs=1e-7)
    assert logit_error(model, text, whole) == 0
    with without_layers(model, LLAMA, [1, 2]):
        logits = logits_of(model, text)
        loss, kl, error = next_token_loss(model, text), kl_to_whole(model, text, whole), logit_error(model, text, whole)
    log_p, log_q = full.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    assert kl == pytest.approx((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item(), rel=1e-5)
    assert error == pytest.approx(((full - logits) ** 2).sum().item() / (full**2).sum().item(), rel=1e-5)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text.labels().flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_the_logit_error_does_not_depend_on_how_tokens_are_chunked(model, text, monkeypatch):
    whole = WholeModel.of(model, text)
    with without_layers(model, LLAMA, [0]):
        before = logit_error(model, text, whole)
        monkeypatch.setattr(chunks, "_CHUNK_TOKENS", 7)
        assert logit_error(model, text, whole) == pytest.approx(before, rel=1e-6)


def test_a_score_that_is_not_finite_is_the_worst(model, text, monkeypatch):
    monkeypatch.setattr(module, "next_token_loss", lambda *_: float("nan"))
    criterion = make_criterion(model, LLAMA, DepthSettings(criterion="loss"), text, Path(), 0)
    assert list(criterion(frozenset(), [range(1, 2)])) == [inf]


@pytest.mark.parametrize("criterion", ["loss", "kl", "logit_mse", "block_importance"])
def test_layers_are_taken_out_behind_those_whose_keys_they_read_and_before_these(text, criterion):
    layout, model = layouts()["gemma4_text"], tiny_model(tiny_config("gemma4_text", **TINY_E2B))
    kinds = kinds_of(model, layout)
    measured = make_criterion(model, layout, DepthSettings(criterion=criterion), text, Path(), 0)
    runs = [range(layer, layer + 1) for layer, kind in enumerate(kinds) if not gives(kind)]
    function = {"loss": next_token_loss, "kl": kl_to_whole, "logit_mse": logit_error}.get(criterion)
    whole = [WholeModel.of(model, text)] if criterion in ("kl", "logit_mse") else []
    for run, score in zip(runs, measured(frozenset(), runs), strict=True):
        with without_layers(model, layout, run):
            assert function is None or score == function(model, text, *whole)
    for table in (
        layers_alone(measured, 7, {0, 6}, kinds=kinds),
        greedy_layers(measured, 7, {0, 6}, 4, kinds=kinds),
        best_blocks(measured, 7, {0, 6}, [6, 5], kinds=kinds),
    ):
        assert table[:, 2:4][table.any(dim=1)][-2:].all()  # whose keys layers 4, 5 and 6 read


@pytest.mark.parametrize("model_type", layouts())
def test_a_run_is_scored_the_same_from_what_the_layers_before_it_put_out(model_type, text):
    layout, model = layouts()[model_type], tiny_model(tiny_config(model_type, num_hidden_layers=5))
    criterion = make_criterion(model, layout, DepthSettings(criterion="loss"), text, Path(), 0)
    runs = [range(start, start + length) for length in (1, 2) for start in range(6 - length)]
    for removed in (frozenset(), frozenset({0, 2})):
        for run, score in zip(runs, criterion(removed, runs), strict=True):
            with without_layers(model, layout, removed.union(run)):
                assert score == next_token_loss(model, text)


def test_the_layers_before_a_run_run_once_over_the_text(model, text):
    passes = []
    criterion = make_criterion(model, LLAMA, DepthSettings(criterion="loss"), text, Path(), 0)
    num_batches = len(list(text.batches(BATCH_SEQUENCES)))
    with model.model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(1)):
        list(criterion(frozenset(), [range(layer, layer + 1) for layer in range(1, 4)]))
    assert len(passes) == num_batches > 1


@pytest.mark.parametrize("criterion", ["loss", "kl", "logit_mse"])
def test_greedy_is_brute_force_on_models_that_lack_the_layers(model, text, criterion):
    measured = make_criterion(model, LLAMA, DepthSettings(criterion=criterion), text, Path(), 0)
    whole = WholeModel.of(model, text)
    function = {
        "loss": lambda: next_token_loss(model, text),
        "kl": lambda: kl_to_whole(model, text, whole),
        "logit_mse": lambda: logit_error(model, text, whole),
    }[criterion]

    def cost(layers):
        with without_layers(model, LLAMA, layers):
            return function()

    table, removed = greedy_layers(measured, 4, {0}, 1), set()
    for count in (3, 2, 1):
        removed |= {min({1, 2, 3} - removed, key=lambda layer: cost(removed | {layer}))}
        assert table[count - 1].nonzero().flatten().tolist() == sorted(set(range(4)) - removed)
    blocks = best_blocks(measured, 4, (), [2])
    best = min(([start, start + 1] for start in range(3)), key=cost)
    assert blocks[1].nonzero().flatten().tolist() == sorted(set(range(4)) - set(best))


def test_greedy_block_importance_is_measured_on_the_model_without_what_has_left(model, text):
    criterion = make_criterion(model, LLAMA, DepthSettings(mode="greedy"), text, Path(), 0)
    found = list(criterion(frozenset({1}), [range(2, 3), range(3, 4)]))
    with without_layers(model, LLAMA, {1}):
        expected = block_importance(model, LLAMA, text, [range(2, 3), range(3, 4)])
    assert found == expected
    assert found != block_importance(model, LLAMA, text, [range(2, 3), range(3, 4)])


@pytest.fixture
def _local_task(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lm_eval, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.chdir(TASKS)  # the task names its data relative to here


@pytest.mark.usefixtures("_local_task")
def test_the_task_gives_the_wrong_answers_of_the_student_that_is_cut_without_the_layers(tmp_path):
    path = tiny_checkpoint(tmp_path / "model", "llama", seed=1)
    settings = DepthSettings(criterion="task", task="tiny_sums", include_path=str(TASKS))
    model = tiny_model(tiny_config("llama"), 1)
    criterion = make_criterion(model, LLAMA, settings, None, path, 0)
    runs = [range(1, 3), range(3, 4)]
    found = list(criterion(frozenset({0}), runs))
    benchmarks = lm_eval.Benchmarks(EvaluationSettings(tasks=("tiny_sums",), include_path=str(TASKS)))
    for run, error in zip(runs, found, strict=True):
        kept = [layer for layer in (1, 2, 3) if layer not in run]
        student = tiny_model(tiny_config("llama", num_hidden_layers=len(kept)))
        student.model.load_state_dict(model.model.state_dict(), strict=False)
        student.lm_head.load_state_dict(model.lm_head.state_dict())
        for place, layer in enumerate(kept):
            student.model.layers[place].load_state_dict(model.model.layers[layer].state_dict())
        rows = benchmarks.run(student, path, 0).rows
        assert error == pytest.approx(1 - lm_eval.accuracy(rows, "tiny_sums"))


@pytest.mark.usefixtures("_local_task")
def test_an_unknown_task_is_refused_by_the_name_of_its_setting(model, tmp_path):
    message = r"importance\.depth\.task: lm-eval knows no task sums; .* folder of your own with importance\.depth\.incl"
    with pytest.raises(PlanError, match=message):
        make_criterion(model, LLAMA, DepthSettings(criterion="task", task="sums"), None, tmp_path, 0)
