"""What people do with a family, tried on a tiny random model: score, choose layers, prune, distil.

`check_use(layout, config, folder)` takes the public steps one after the other, each with an oracle that
does not come from the step itself. The checks of `conformance.py` say that a table is right; these say
that nothing which reads it stumbles over the family.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.activations import ACT2FN

from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.kinds import gives
from minitron_nas.architecture.layout import NEURON_AXES, Axis, Layout, axis_sizes
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.teacher import OnlineTeacher, final_hidden
from minitron_nas.distillation.training.lesson import Lesson, Stream
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.errors import MinitronNasError
from minitron_nas.families.catalog import with_layout
from minitron_nas.importance.baselines import magnitude_scores
from minitron_nas.importance.depth import WholeModel, kl_to_whole, logit_error, make_criterion, next_token_loss
from minitron_nas.importance.depth_modes import layer_table
from minitron_nas.importance.experts import expert_neurons, expert_outputs, sent_to
from minitron_nas.importance.layer_removal import without_layers
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import DepthSettings, ImportanceSettings
from minitron_nas.models.causal_lm import decoder_of
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.pruning.export import export_student, write_student
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.student import build_student
from minitron_nas.space.axes import SearchSpace, SpaceAxes
from minitron_nas.storage.lineage import Lineage
from minitron_nas.storage.weights import read_headers
from minitron_nas.testing.masked import masked, written_off
from minitron_nas.testing.shapes import conformance_shapes
from minitron_nas.testing.subject import Subject, plain_experts

_NOTHING = 1e-6
"""Of a score that has to be 0, and of logits in float64 with norms and rotary positions in float32, tenfold."""
_EXACTLY, _ROUNDED = 1e-9, 1e-6
_SCHEDULE = Schedule(num_steps=4, batch_sequences=2, sequence_length=12)
_LEARNING_RATE = 1e-3


def check_use(layout: Layout, config: PreTrainedConfig, folder: Path, seed: int = 0) -> None:
    """Run every check of `USES` on a family table.

    Args:
        layout: The table.
        config: As `check_family` takes it.
        folder: An empty folder for a few megabytes of checkpoints.
        seed: Of weights, ranking and prompt.

    Raises:
        AssertionError: If a step does something else than it should; names the tensor where one can be named.
        CheckpointError: If a tensor of the model is not in the table, or has another shape.
    """
    subject = Subject.make(layout, config, folder, seed)
    for check in USES:
        check(subject)


def check_scores(subject: Subject) -> None:
    """Activations and weights score what the teacher lacks with 0, and what it has higher.

    The teacher is the one in which all that a student lacks is zero.
    """
    source, layout = subject.architecture, subject.layout
    target = source.reshaped(conformance_shapes(layout, source)["all"])
    tensors = written_off(subject, target)
    with masked(subject, target, tensors=tensors) as teacher:
        active = score_importance(teacher, source, layout, subject.text, ImportanceSettings())
    folder = subject.folder / "masked"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    heavy = magnitude_scores(read_headers(folder), source, layout)
    order = subject.prepared.order
    kept_layers = order.kept_layers(target.num_hidden_layers)
    output, of_nothing = layout.writer(Axis.GROUP_HEADS), 10 * _of_nothing(subject)
    for kind, scores in (("activation", active), ("magnitude", heavy)):
        reads = ", ".join({row.name: None for each in source.kinds for row in layout.readers(each)})
        _check_part(f"{kind} score of channels, read by {reads}", scores.hidden, order.hidden, target.hidden_size)
        for layer in kept_layers:
            groups = f"{kind} score of KV groups, read by {output.name}"
            if output.in_kind(source.kinds[layer]):
                _check_part(groups, scores.kv_groups[layer], order.kv_groups[layer], target.num_key_value_heads)
            else:
                assert scores.kv_groups[layer].isnan().all(), f"{groups}: layer {layer} has none, but has a score"
            for axis in layout.neuron_axes:
                if layout.has_axis(axis, source.kinds[layer]):
                    nothing = of_nothing if kind == "activation" else 0.0
                    _check_neurons(kind, layout, axis, scores, order, layer, target, nothing)
    gone = [layer for layer in range(source.num_hidden_layers) if layer not in kept_layers]
    assert active.layers[gone].abs().max() <= _NOTHING, (
        f"layers {gone} add nothing to the residual stream, but have Block Importance {active.layers[gone].tolist()}; "
        f"{layout.layer_module} puts out something else than its first output"
    )
    if source.num_experts:
        for layer in [layer for layer in kept_layers if layout.has_axis(Axis.EXPERTS, source.kinds[layer])]:
            removed = order.experts[layer][target.num_experts :]
            assert not active.experts[layer][removed].any(), f"layer {layer}: experts without a token have a score"


def check_experts(subject: Subject) -> None:
    """What scoring takes each expert of a layer to put out adds up to what their module puts out."""
    layout = subject.layout
    if not subject.architecture.num_experts:
        return
    down, differences = layout.writer(layout.neuron_axis), []
    name = layout.module_of(down)

    num_experts = subject.architecture.num_experts

    def compare(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        rest = output.clone() if len(args) > 1 else output.unflatten(0, (num_experts, -1)).sum(dim=0)
        for expert in range(num_experts):
            tokens, inputs, weights = sent_to(module, expert, args)
            added = expert_outputs(module, expert, expert_neurons(module, expert, inputs))
            rest[tokens] -= added * weights
        rounded = torch.equal(output, output.float().to(output.dtype))  # what the module adds up in float32
        differences.append(rest.abs().max().item() - (_ROUNDED * output.abs().max().item() if rounded else 0))

    layers = [layer for layer, kind in enumerate(subject.architecture.kinds) if layout.has_axis(Axis.EXPERTS, kind)]
    with ExitStack() as hooks:
        for layer in layers:
            module = subject.model.get_submodule(name.format(layer=layer))
            hooks.enter_context(module.register_forward_hook(compare))
        subject.logits(subject.model)
    assert max(differences) <= _EXACTLY, (
        f"experts of {name} put out something else than is scored: {max(differences):.3g} is left of their sum"
    )


@torch.no_grad()
def check_depth(subject: Subject) -> None:
    """A teacher without a layer computes what a student without it does, and every criterion says the same of both."""
    model, layout, source, text = subject.model, subject.layout, subject.architecture, subject.text
    out = next(layer for layer in range(1, source.num_hidden_layers) if not gives(source.kinds[layer]))
    kept = [layer for layer in range(source.num_hidden_layers) if layer != out]
    order = replace(subject.prepared.order, layers=layer_table({len(kept): kept}, source.num_hidden_layers))
    shape = source.reshaped({"num_hidden_layers": len(kept)})
    student = plain_experts(build_student(replace(subject.prepared, order=order), shape, torch.float64)).eval()
    with without_layers(model, layout, [out]):
        logits = subject.logits(model)
    assert torch.equal(logits, subject.logits(student)), (
        f"{layout.layer_module.format(layer=out)} is skipped otherwise than cut; a layer has to take hidden states "
        "first and put them out first"
    )
    whole = WholeModel.of(model, text)
    expected = {
        "loss": next_token_loss(student, text),
        "kl": kl_to_whole(student, text, whole),
        "logit_mse": logit_error(student, text, whole),
    }
    states = subject.model(input_ids=text.input_ids, use_cache=False, output_hidden_states=True).hidden_states
    ends = states[out].float(), states[out + 1].float()
    turned = 1 - nn.functional.cosine_similarity(*ends, dim=-1).double().mean().item()
    for name in ("block_importance", *expected):
        settings = DepthSettings.model_validate({"criterion": name})
        (score,) = make_criterion(model, layout, settings, text, subject.prepared.path, 0)(
            frozenset(), [range(out, out + 1)]
        )
        assert 0 < score < float("inf"), f"criterion {name} scores a layer with {score}"
        if name in expected:
            assert score == expected[name], f"criterion {name} is {score}, of the student {expected[name]}"
        else:
            assert abs(score - turned) < _NOTHING, f"criterion {name} is {score}, by the model's states {turned}"


@torch.no_grad()
def check_packing(subject: Subject) -> None:
    """Documents that are packed into one sequence do not see each other, unless the table says that a state goes on."""
    ids, border = subject.prompt[:1], subject.prompt.shape[1] // 3
    positions = torch.cat([torch.arange(border), torch.arange(ids.shape[1] - border)])[None]
    with with_layout(subject.layout):
        packed = subject.model.get_output_embeddings()(final_hidden(subject.model, ids, positions))
    decoder = decoder_of(subject.model)
    parts = (ids[:, :border], ids[:, border:])
    alone = [decoder(input_ids=part, use_cache=False).last_hidden_state for part in parts]
    difference = (packed - subject.model.get_output_embeddings()(torch.cat(alone, dim=1))).abs().max().item()
    if subject.layout.hands_on_state:
        assert difference > 10 * _NOTHING, (
            "packed documents do not see each other; the table says that a state goes on (states)"
        )
    else:
        assert difference <= 10 * _NOTHING, (
            f"packed documents change each other by {difference:.3g}; a state goes on from one to the next "
            "(states), or transformers does not look for their borders in the positions (finds_borders)"
        )


def check_steps(subject: Subject) -> None:
    """`prune` takes every axis to a size, repaired, in a stock folder; cutting nothing gives the teacher.

    The step's own proof compares the logits of what stock transformers reloads with those of the student in memory.
    """
    layout = subject.layout
    teacher = Subject.make(layout, subject.model.config, subject.folder / "steps", dtype=torch.float32)
    source, path, scores = teacher.architecture, teacher.prepared.path, teacher.folder / "scores"
    active = score_importance(teacher.model, source, layout, teacher.text, ImportanceSettings())
    target = source.reshaped(conformance_shapes(layout, source)["all"])
    sizes = {name: (getattr(target, name), getattr(source, name)) for name in layout.shape_fields_of(source)}
    axes = SpaceAxes.model_validate({name: {"values": both} for name, both in sizes.items()})
    space, size = SearchSpace(axes=axes, tolerance=_EXACTLY), count_parameters(target, layout)
    with with_layout(layout):
        active.save(scores, {"source": open_checkpoint(path).fingerprint}, teacher.text)
        pruned = prune(path, teacher.folder / "pruned", size=size, scores=scores, space=space, display=Quiet())
    assert pruned.architecture == target, f"of size {size:,} it has shape {pruned.architecture.id}, not {target.id}"
    student: Any = AutoModelForCausalLM.from_pretrained(pruned.path, trust_remote_code=False)
    tied = student.get_input_embeddings().weight is student.get_output_embeddings().weight
    assert tied == source.tie_word_embeddings, "the student's embeddings are not tied as the teacher's are"
    tokens = student.generate(subject.prompt[:1], max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert tokens.shape[1] == subject.prompt.shape[1] + 2, "the student does not generate"
    write_student(teacher.prepared, source, teacher.folder / "nothing", Lineage())
    whole: Any = AutoModelForCausalLM.from_pretrained(teacher.folder / "nothing", trust_remote_code=False)
    assert torch.equal(teacher.logits(plain_experts(whole)), teacher.logits(teacher.model)), (
        "a student that keeps everything has other logits than the teacher when stock transformers has reloaded it"
    )


def check_axes(subject: Subject) -> None:
    """`prune` takes each axis alone, repaired and rotated where that can be, and all by weights and at random."""
    layout = subject.layout
    teacher = Subject.make(layout, subject.model.config, subject.folder / "axes", dtype=torch.float32)
    shapes, scores = conformance_shapes(layout, teacher.architecture), teacher.folder / "scores"
    active = score_importance(teacher.model, teacher.architecture, layout, teacher.text, ImportanceSettings())
    with with_layout(layout):
        active.save(scores, {"source": open_checkpoint(teacher.prepared.path).fingerprint}, teacher.text)
        for name, shape in shapes.items():
            _prune_to(teacher, shape, scores, name)
        for kind in ("magnitude", "random"):
            _prune_to(teacher, shapes["all"], kind, f"all by {kind}")


def check_distils(subject: Subject) -> None:
    """A few steps of distillation bring a student nearer to its teacher on that text; it is exported and reloads."""
    source, layout = subject.architecture, subject.layout
    target = source.reshaped(conformance_shapes(layout, source)["all"])
    student = build_student(subject.prepared, target, torch.float32)
    teacher = copy.deepcopy(subject.model)
    module: nn.Module = teacher
    module.float()
    text = subject.text
    stream = Stream(text, OnlineTeacher(teacher))
    settings = DistillationSettings(learning_rate=_LEARNING_RATE, num_evaluations=1)
    before = validate(student, text, stream.signal, 2).kl_nats
    with with_layout(layout):
        distill(student, Lesson(stream, stream, settings, _SCHEDULE, seed=0), subject.folder / "training")
    after = validate(student, text, stream.signal, 2).kl_nats
    assert after < 0.98 * before, f"distillation took KL to the teacher from {before:.4f} to {after:.4f} nats"
    export_student(
        student, subject.prepared.path, subject.folder / "distilled", torch.float32, subject.prompt[:1], Lineage()
    )


USES: tuple[Callable[[Subject], None], ...] = (
    check_scores, check_experts, check_depth, check_packing, check_steps, check_axes, check_distils,
)  # fmt: skip
"""All checks, in the order of a run."""


def _prune_to(teacher: Subject, shape: dict[str, int], scores: str | Path, name: str) -> None:
    folder = teacher.folder / name.replace(" ", "_")
    target = teacher.architecture.reshaped(shape)
    try:
        pruned = prune(teacher.prepared.path, folder, shape, scores=scores, display=Quiet())
    except (MinitronNasError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise AssertionError(f"pruning {name} to {shape}, scored by {scores}: {error!r}") from error
    assert pruned.architecture == target, f"pruned to {shape} it has shape {pruned.architecture.id}, not {target.id}"


def _check_part(part: str, scores: Tensor, ranking: Tensor, num_kept: int, of_nothing: float = 0.0) -> None:
    kept, removed = scores[ranking[:num_kept]], scores[ranking[num_kept:]]
    assert (removed <= of_nothing).all(), f"{part}: {removed.max():.3g} where the teacher has nothing"
    assert (kept > 0).double().mean() > 0.5, f"{part}: 0 where the teacher has something"  # a ReLU may never open


def _of_nothing(subject: Subject) -> float:
    """What the activation of a model's neurons makes of nothing; 0, but for xIELU."""
    name = getattr(subject.model.config, "hidden_act", None)
    return ACT2FN[name](torch.zeros(1)).abs().item() if name in ACT2FN else 0.0


def _check_neurons(
    kind: str,
    layout: Layout,
    axis: Axis,
    scores: ImportanceScores,
    order: PruningOrder,
    layer: int,
    target: Architecture,
    of_nothing: float,
) -> None:
    part = f"{kind} score of neurons, read by {layout.writer(axis).name}"
    found, ranking = getattr(scores, NEURON_AXES[axis])[layer], getattr(order, NEURON_AXES[axis])[layer]
    num_kept = axis_sizes(target)[axis]
    if not layout.in_experts(axis):
        _check_part(part, found, ranking, num_kept, of_nothing)
        return
    for expert in order.kept_experts(layer, target.num_experts):
        removed = found[expert][ranking[expert][num_kept:]]
        assert not removed.any(), f"{part}: {removed.max():.3g} where expert {expert} has nothing"
