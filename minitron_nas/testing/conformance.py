"""The checks that any family table must pass, on tiny random models.

`check_family(layout, config, folder)` runs them all. Each compares the table with what transformers
does, never with what this package does with the table elsewhere, and names the tensor where one can
be named.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from minitron_nas.architecture.costs import count_parameters, kv_cache_bytes_per_token, state_bytes_per_sequence
from minitron_nas.architecture.layout import HIDDEN, KEYS, Axis, Layout, TensorRow
from minitron_nas.architecture.rules import require_attention, require_keys, require_last_kind
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.loss.losses import Counted, distillation_loss, forward_kl
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.errors import InvalidArchitectureError
from minitron_nas.evaluation.clock import cache_of
from minitron_nas.importance.depth_modes import layer_table
from minitron_nas.importance.moments import second_moments
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.layer_model import (
    KeysAndValues,
    LayerOutput,
    embed,
    layer_model,
    part_of_layer,
    run_layer,
    states_of,
)
from minitron_nas.models.stock import model_from_tensors, read_tensor
from minitron_nas.pruning.export import write_student
from minitron_nas.pruning.parts import whole
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.rotation import Rotation, why_not_rotatable
from minitron_nas.pruning.student import build_student, student_config, turned_cuts
from minitron_nas.storage.lineage import Lineage
from minitron_nas.testing.masked import masked, place_in_memory, pruned_axes, with_noise, written_off
from minitron_nas.testing.shapes import conformance_shapes, unit_shapes
from minitron_nas.testing.subject import Subject, plain_experts


def check_family(layout: Layout, config: PreTrainedConfig, folder: Path, seed: int = 0) -> None:
    """Run every check of `CHECKS` on a family table.

    Args:
        layout: The table.
        config: A transformers config of the family with small sizes that all differ, at least three
            layers, and at least two of everything that is to be pruned.
        folder: An empty folder for a few megabytes of checkpoints.
        seed: Of weights, ranking and prompt.

    Raises:
        AssertionError: If the table is wrong; names the tensor where one can be named.
        CheckpointError: If a tensor of the model is not in the table, or has another shape.
    """
    subject = Subject.make(layout, config, folder, seed)
    for check in CHECKS:
        check(subject)


def check_norms(subject: Subject) -> None:
    """The table says of each norm over hidden channels whether it subtracts the mean."""
    assert subject.layout.stream_norms(), (
        "the table names no norm over hidden channels that reads the stream; norms without gains cannot be told"
    )
    modules = dict(subject.model.named_modules())
    inputs = torch.randn(3, subject.architecture.hidden_size, generator=torch.Generator().manual_seed(2))
    for place in subject.layout.tensors(subject.architecture):
        if place.row.is_norm and place.row.dims == (HIDDEN,):
            module = modules[subject.layout.module_of(place.row).format(layer=place.layer)]
            with torch.no_grad():
                shifted = (module(inputs.double() + 1) - module(inputs.double())).abs().max().item()
            subtracts = shifted < 1e-4
            assert subtracts == subject.layout.norm_centres, (
                f"tensor {place.name!r} belongs to a norm that {'subtracts' if subtracts else 'keeps'} the mean, but "
                f"the table says norm={subject.layout.norm!r}"
            )


def check_parameters(subject: Subject) -> None:
    """The table counts as many parameters as the real model has."""
    real = sum(parameter.numel() for parameter in subject.model.parameters())
    counted = count_parameters(subject.architecture, subject.layout)
    assert counted == real, f"the table counts {counted:,} parameters, the model has {real:,}"


def check_offered(subject: Subject) -> None:
    """Every size that the family offers is one that the other checks prune."""
    shapes = conformance_shapes(subject.layout, subject.architecture).values()
    blind = set(subject.layout.shape_fields_of(subject.architecture)) - {name for shape in shapes for name in shape}
    assert not blind, (
        f"{', '.join(sorted(blind))}: tensors of the table run along it, so that users are offered to prune it, but "
        "no shape of this suite does, so that nothing says whether that works"
    )


def check_units(subject: Subject) -> None:
    """What the table says belongs to a unit matters exactly as long as the unit is there.

    For every axis some units are taken out where they write. All entries that any tensor has for
    them must then be without effect, and those for the units that stay must have one.
    """
    for name, shape in unit_shapes(subject.layout, subject.architecture).items():
        _check_units_of(subject, subject.architecture.reshaped(shape), name)


def check_nothing_pruned(subject: Subject) -> None:
    """Pruning nothing gives the teacher's logits to the bit."""
    student = plain_experts(build_student(subject.prepared, subject.architecture, torch.float64))
    assert torch.equal(subject.logits(student), subject.logits(subject.model)), (
        "a student that keeps everything has other logits than the teacher"
    )


def check_masked_teacher(subject: Subject) -> None:
    """A student computes what the teacher does with everything zeroed that leaves."""
    whole = subject.logits(subject.model)
    for name, shape in conformance_shapes(subject.layout, subject.architecture).items():
        target = subject.architecture.reshaped(shape)
        try:
            student = plain_experts(build_student(subject.prepared, target, torch.float64))
        except RuntimeError as error:
            raise AssertionError(f"pruning {name} to {shape}: {_misfit(subject, target) or error}") from error
        with masked(subject, target) as teacher:
            expected = subject.logits(teacher)
        difference = (subject.logits(student) - expected).abs().max().item()
        assert difference <= subject.tolerance, (
            f"pruning {name} to {shape}: the student's logits differ by {difference:.3g} from those of the teacher in "
            "which what leaves is zero"
        )
        changed = (expected - whole).abs().max().item()
        assert changed > 100 * subject.tolerance, f"pruning {name} to {shape} changes nothing; the check is blind"


def check_last_layer(subject: Subject) -> None:
    """Transformers takes the last layer of a student for one of its kind, or the table says that it does not."""
    layout, source, order = subject.layout, subject.architecture, subject.prepared.order
    for count in range(1, source.num_hidden_layers):
        first = range(count)
        shape = source.with_layers(first)
        try:
            require_attention(shape, layout)
            require_keys(shape)
            require_last_kind(shape, layout)
        except InvalidArchitectureError:
            continue
        table = layer_table({count: first}, source.num_hidden_layers)
        try:
            student_config(replace(subject.prepared, order=replace(order, layers=table)), shape)
        except InvalidArchitectureError as error:
            raise AssertionError(f"a student of the first {count} layers is refused, {shape.kinds}: {error}") from error


@torch.no_grad()
def check_states(subject: Subject) -> None:
    """The table counts what the cache of every layer keeps of a sequence, of the teacher's and of a student's.

    It says which layers keep keys and values, too.
    """
    target = subject.architecture.reshaped(conformance_shapes(subject.layout, subject.architecture)["all"])
    student = plain_experts(build_student(subject.prepared, target, torch.float64))
    for model, shape in ((subject.model, subject.architecture), (student, subject.prepared.settled(target))):
        cache = cache_of(model(input_ids=subject.prompt[:1], use_cache=True))
        for layer, (kind, kept) in enumerate(zip(shape.kinds, cache.layers, strict=True)):
            counted = state_bytes_per_sequence(shape.with_layers([layer]), subject.layout, bytes_per_value=1)
            assert counted == _num_values(kept), (
                f"layer {layer} keeps {_num_values(kept):,} values of a sequence beside keys and values, the table "
                f"says {counted:,} (states, of kind {kind!r})"
            )
            told, keeps = kv_cache_bytes_per_token(shape.with_layers([layer]), subject.layout) > 0, _has_keys(kept)
            assert told == keeps, (
                f"layer {layer} keeps {'' if keeps else 'no '}keys and values, the table says that it does"
                f"{'' if told else ' not'} (cached, of kind {kind!r})"
            )


@torch.no_grad()
def check_layer_by_layer(subject: Subject) -> None:
    """Every layer in a model of its own puts out what it does in the whole model, to the bit."""
    model, layout, prepared = subject.model, subject.layout, subject.prepared
    shared: KeysAndValues = {}
    tables = {place.row: subject.tensors[place.name] for place in layout.tensors(subject.architecture)}
    of_layers = layout.embedding_of_layers(subject.architecture)
    positions = subject.text.position_ids
    states = embed(model, layout, subject.prompt, positions)
    for layer in range(subject.architecture.num_hidden_layers):
        outputs: list[LayerOutput] = []
        module = model.get_submodule(layout.layer_module.format(layer=layer))
        with module.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output)):
            subject.logits(model)
        expected = states_of(outputs[0])
        own = []
        if of_layers is not None:
            own = [tables[layout.embedding], part_of_layer(tables[of_layers], of_layers, subject.architecture, layer)]
        alone = layer_model(
            lambda name: read_tensor(prepared.headers[name]),
            prepared.config,
            subject.architecture,
            layout,
            layer,
            torch.float64,
            *own,
        )
        ids = subject.prompt if own else None
        states = run_layer(plain_experts(alone), layout, states, positions, ids, shared)
        assert torch.equal(states, expected), (
            f"layer {layer} in a model of its own puts out something else than in the whole model; it cannot be scored "
            "layer by layer"
        )


def check_rotation(subject: Subject) -> None:
    """A rotated teacher computes what the teacher does, where the table says that it can be rotated."""
    layout, architecture = subject.layout, subject.architecture
    if why_not_rotatable(layout, architecture) is not None:
        return
    moments: dict[str, Tensor] = {}
    second_moments(subject.model, layout, subject.text, moments)
    rotation = Rotation.of(moments, subject.prepared.headers, architecture, layout)
    basis = rotation.at(architecture.hidden_size, architecture.tie_word_embeddings)
    parts = turned_cuts(subject.prepared, architecture, basis, {})
    tensors = {part.name: whole(part) for part in parts}
    rotated = plain_experts(model_from_tensors(dict(subject.prepared.config), tensors, torch.float64))
    rotated.eval()
    difference = (subject.logits(rotated) - subject.logits(subject.model)).abs().max().item()
    assert difference <= subject.tolerance, (
        f"rotating without cutting changes the logits by {difference:.3g}; a norm stands in the wrong place of the "
        "table, or acts on what a layer adds to the residual stream (on_branch)"
    )


def check_loss(subject: Subject) -> None:
    """The chunked loss and its gradients are those of the model's own logits, and KL(p || p) is 0."""
    model, ids = subject.model, subject.prompt
    with torch.no_grad():
        hidden = final_hidden(model, ids, subject.text.position_ids).flatten(0, 1)
        head = OutputHead.of(model).detached()
        own = subject.logits(model).flatten(0, 1)
        difference = (head.logits(hidden) - own).abs().max().item()
        assert difference <= subject.tolerance, (
            f"the output head's logits differ by {difference:.3g} from the model's, which may multiply them by "
            "logits_scaling of the config instead of dividing (multiplies_logits)"
        )
        assert forward_kl(own, own).abs().max() <= 1e-12, "KL(p || p) is not 0"
        teacher = 0.7 * hidden.flip(0)
    labels = ids.flatten().roll(-1)
    gradients = []
    for chunked in (True, False):
        inputs, weight = hidden.clone().requires_grad_(), head.weight.clone().requires_grad_()
        student = replace(head, weight=weight)
        if chunked:
            targets = HiddenTargets(teacher, head)
            settings = DistillationSettings(lm_loss_weight=0.5)
            loss = distillation_loss(inputs, student, Counted(labels), targets, settings).total
        else:
            logits = student.logits(inputs)
            loss = forward_kl(logits, head.logits(teacher)).mean() + 0.5 * nn.functional.cross_entropy(logits, labels)
        loss.backward()
        gradients.append((loss.detach(), inputs.grad, weight.grad))
    for name, one, other in zip(("loss", "hidden gradient", "head gradient"), *gradients, strict=True):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12), f"the chunked {name} is not the plain one"


def check_written(subject: Subject) -> None:
    """A student goes to disk, loads as a stock model with the same logits, keeps its tie and generates.

    So does one that is repaired, and that is rotated and has merged heads where the family allows it.
    """
    teacher = Subject.make(subject.layout, subject.model.config, subject.folder / "float32", dtype=torch.float32)
    target = teacher.architecture.reshaped(conformance_shapes(teacher.layout, teacher.architecture)["all"])
    seen: list[Tensor] = []
    for way, prepared in _ways(teacher, target).items():
        folder = teacher.folder / way
        proof = write_student(prepared, target, folder, Lineage())
        assert proof is None or proof.max_abs_difference <= proof.tolerance
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        stored = sum(parameter.numel() for parameter in model.parameters())
        counted = count_parameters(target, subject.layout)
        assert stored == counted, f"the {way} student has {stored:,} parameters, its shape {counted:,}"
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == target.tie_word_embeddings, f"the {way} student's embeddings are not tied as the teacher's are"
        tokens = model.generate(subject.prompt[:1], max_new_tokens=2, min_new_tokens=2, do_sample=False)
        assert tokens.shape[1] == subject.prompt.shape[1] + 2, f"the {way} student does not generate"
        seen.append(subject.logits(model))
        assert not any(torch.equal(seen[-1], other) for other in seen[:-1]), f"the {way} student is none of its own"


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_parameters,
    check_norms,
    check_offered,
    check_units,
    check_nothing_pruned,
    check_masked_teacher,
    check_last_layer,
    check_states,
    check_layer_by_layer,
    check_rotation,
    check_loss,
    check_written,
)
"""All checks, in the order in which they explain a fault best."""


def _ways(teacher: Subject, target: Architecture) -> dict[str, PreparedTeacher]:
    """Return the teacher prepared in every way that its family allows for a shape, each on top of those before it."""
    layout, prepared = teacher.layout, teacher.prepared
    moments = TensorFolder(teacher.folder / "moments")
    second_moments(teacher.model, layout, teacher.text, moments)
    ways = {"selected": prepared, "repaired": replace(prepared, moments=moments.path)}
    if target.heads_per_group < teacher.architecture.heads_per_group:
        ways["merged"] = replace(ways["repaired"], merge_heads=True)
    if why_not_rotatable(layout, teacher.architecture) is None:
        rotation = Rotation.of(moments, prepared.headers, teacher.architecture, layout)
        ways["rotated"] = replace(ways.get("merged", ways["repaired"]), rotation=rotation)
    return ways


def _has_keys(kept: Any) -> bool:
    """Whether the cache of one layer holds keys and values."""
    keys = getattr(kept, "keys", None)
    return isinstance(keys, Tensor) and keys.numel() > 0


def _num_values(kept: Any) -> int:
    """How many values of states the cache of one layer holds; attention's has none."""
    states = (getattr(kept, name, {}) for name in ("conv_states", "recurrent_states"))
    return sum(state.numel() for each in states for state in each.values() if state is not None)


def _misfit(subject: Subject, target: Architecture) -> str | None:
    """Name a tensor to which the table gives another shape in a student than transformers does."""
    config = AutoConfig.for_model(**student_config(subject.prepared, target))
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(parameter.shape) for name, parameter in shell.named_parameters()}
    for place in subject.layout.tensors(subject.prepared.settled(target)):
        name, shape = place_in_memory(subject, place), place.row.shape(target)
        if wanted.get(name, shape) != shape:
            return (
                f"tensor {place.name!r} gets shape {shape}, transformers makes it {wanted[name]}; a size follows from "
                "others there (head_dim_is_derived), or has another name in the config (config_keys)"
            )
    return None


def _check_units_of(subject: Subject, target: Architecture, name: str) -> None:
    pruned = pruned_axes(subject.architecture, target)
    generator = torch.Generator().manual_seed(1)
    tensors = written_off(subject, target, writers_only=True)
    with masked(subject, target, writers_only=True, tensors=tensors) as model:
        base = subject.logits(model)
        for row in dict.fromkeys(place.row for place in subject.layout.tensors(subject.architecture)):
            if not _reads(subject.layout, row, pruned):
                continue
            for wanted in (False, True):
                noisy = with_noise(subject, target, tensors, row, wanted, generator)
                difference = (_logits_with(subject, target, model, row, noisy) - base).abs().max().item()
                if wanted:
                    assert difference > subject.tolerance or _may_shift_scores(row), (
                        f"tensor {row.name!r}: the entries that the table gives to the {name} that stay have no effect"
                    )
                else:
                    assert difference <= subject.tolerance, (
                        f"tensor {row.name!r}: entries that the table gives to {name} that are cut off still "
                        f"change the logits by {difference:.3g}; its axes or their order are wrong"
                    )


def _may_shift_scores(row: TensorRow) -> bool:
    """Whether a tensor may be a bias on keys, which shifts all scores of a query alike where positions are learned."""
    return row.dims == (KEYS,) and not row.is_norm


@torch.no_grad()
def _logits_with(
    subject: Subject, target: Architecture, model: CausalLM, row: TensorRow, tensors: Mapping[str, Tensor]
) -> Tensor:
    """Logits of a masked teacher with another tensor in every layer; the model is changed and changed back.

    Where it does not hold the tensor as it is stored (experts, what transformers splits as it loads, norms that look at
    some entries), another is built.
    """
    places = [place for place in subject.layout.tensors(subject.architecture) if place.row is row]
    names = [place_in_memory(subject, place) for place in places]
    parameters = dict(model.named_parameters())
    shapes = [parameters[name].shape if name in parameters else None for name in names]
    if shapes != [tensors[place.name].shape for place in places] or any(_is_narrowed(model, name) for name in names):
        with masked(subject, target, writers_only=True, tensors=tensors) as other:
            return subject.logits(other)
    before = [parameters[name].clone() for name in names]
    for place, name in zip(places, names, strict=True):
        parameters[name].copy_(tensors[place.name])
    logits = subject.logits(model)
    for name, values in zip(names, before, strict=True):
        parameters[name].copy_(values)
    return logits


def _is_narrowed(model: CausalLM, name: str) -> bool:
    """Whether a parameter belongs to a norm that `masked` lets look at some entries, of a copy that it keeps."""
    return "forward" in vars(model.get_submodule(name.rpartition(".")[0]))


def _reads(layout: Layout, row: TensorRow, pruned: set[Axis]) -> bool:
    """Whether a tensor has entries for pruned units other than where these write to the residual stream, or latents."""
    axes = {axis for dimension in row.dims for axis in dimension.axes}
    writes = layout.writes_hidden(row) or row in layout.writers()
    if pruned & {Axis.HIDDEN}:
        readers = len(row.dims) == 2 and row.per_layer and layout.input_dim(row) == HIDDEN
        tied = bool(axes & (pruned - {Axis.HIDDEN})) and not writes
        return (row.dims == (HIDDEN,) and row.is_norm) or readers or tied
    if pruned == {Axis.EXPERTS}:
        return row.per_expert
    return bool(axes & pruned) and not writes
