"""The checks that any family table must pass, on tiny random models.

`check_family(layout, config, folder)` runs them all. Each compares the table with what transformers
does, never with what this package does with the table elsewhere, and names the tensor where one can
be named.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.costs import count_parameters
from minitron_nas.architecture.layout import HIDDEN, Axis, Layout, TensorPlace, TensorRow
from minitron_nas.architecture.rules import EXPERT_GRAIN
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.loss.losses import distillation_loss, forward_kl
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.importance.baselines import random_scores
from minitron_nas.importance.moments import second_moments
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.models.checks import check_tensors
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.models.layer_model import embed, layer_model, run_layer
from minitron_nas.models.stock import model_from_tensors, read_tensor
from minitron_nas.pruning.compensate import scaled_constants
from minitron_nas.pruning.export import write_student
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.parts import whole
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.rotation import Rotation, why_not_rotatable
from minitron_nas.pruning.student import build_student, turned_cuts
from minitron_nas.storage.atomic import read_json
from minitron_nas.storage.lineage import Lineage
from minitron_nas.testing.tiny import tiny_model, tiny_tokenizer
from minitron_nas.text.tokens import PackedTokens

_SEQ_LEN = 12
_TOLERANCE = 5e-6
"""Of logits in float64, with norms and rotary positions that compute in float32."""


@dataclass(frozen=True)
class Subject:
    """A tiny teacher of the family, in memory and on disk, ranked at random.

    Attributes:
        layout: The table under test.
        model: The teacher, float64.
        tensors: What it stored, by the names in its file.
        prepared: The teacher on disk.
        prompt: (2, seq_len), token ids.
        folder: Where checks may write.
    """

    layout: Layout
    model: Any
    tensors: dict[str, Tensor]
    prepared: PreparedTeacher
    prompt: Tensor
    folder: Path

    @property
    def architecture(self) -> Architecture:
        """The teacher's shape."""
        return self.prepared.architecture

    @property
    def text(self) -> PackedTokens:
        """The prompt as text to measure on."""
        return PackedTokens(self.prompt, torch.arange(_SEQ_LEN).expand_as(self.prompt))

    @classmethod
    def make(
        cls, layout: Layout, config: PreTrainedConfig, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> "Subject":
        """Build and store a random teacher, norms and biases random too.

        Raises:
            CheckpointError: If the table does not name every tensor with its shape.
            InvalidArchitectureError: If the config is not one that the table describes.
        """
        model = _plain_experts(tiny_model(config, seed, dtype=dtype))
        path = folder / "teacher"
        path.mkdir(parents=True)
        model.save_pretrained(path)
        tiny_tokenizer(config.vocab_size).save_pretrained(path)
        content = read_json(path / "config.json")
        architecture = architecture_of({**config.to_dict(), **content}, layout)
        headers = check_tensors(path, ExpectedTensors.of(architecture, layout))
        order = PruningOrder.from_scores(random_scores(architecture, layout, seed), architecture, (0, -1))
        prepared = PreparedTeacher(path, content, architecture, layout, headers, folder / "prepared", order)
        prompt = torch.randint(0, config.vocab_size, (2, _SEQ_LEN), generator=torch.Generator().manual_seed(seed))
        return cls(layout, model, load_file(path / "model.safetensors"), prepared, prompt, folder)

    @torch.no_grad()
    def logits(self, model: Any) -> Tensor:
        """Run a model on the prompt."""
        logits: Tensor = model(input_ids=self.prompt, use_cache=False).logits
        return logits


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


def conformance_shapes(layout: Layout, source: Architecture) -> dict[str, dict[str, int]]:
    """Return shapes that prune every axis of a family alone, and all of them together, by name."""
    grain = EXPERT_GRAIN if layout.has_experts else 1
    units = _unit_shapes(layout, source)
    fewer = {name: size for shape in (units["neurons"], units.get("experts", {})) for name, size in shape.items()}
    fewer = {name: size // grain * grain if size >= grain else size for name, size in fewer.items()}
    fewer["num_hidden_layers"] = source.num_hidden_layers - 1
    shapes = {name: {name: size} for name, size in fewer.items()}
    groups, heads = _fewer_groups(layout, source), units.get("heads")
    if layout.head_dim_is_derived or (layout.longrope_follows_heads and source.longrope):
        together = {**groups, "hidden_size": groups["num_attention_heads"] * source.head_dim}
        return {**shapes, "heads_and_hidden_size": together, "all": {**fewer, **together}}
    shapes["num_key_value_heads"] = groups
    if heads is not None:
        shapes["num_attention_heads"] = heads
    step = source.num_attention_heads if layout.hidden_multiple_of_heads else grain
    shapes["hidden_size"] = {"hidden_size": _below(source.hidden_size, step)}
    kept = heads or groups
    step = kept["num_attention_heads"] if layout.hidden_multiple_of_heads else grain
    return {**shapes, "all": {**fewer, **kept, "hidden_size": _below(source.hidden_size * 3 // 4, step)}}


def check_norms(subject: Subject) -> None:
    """The table says of each norm over hidden channels whether it subtracts the mean."""
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


def check_units(subject: Subject) -> None:
    """What the table says belongs to a unit matters exactly as long as the unit is there.

    For every axis some units are taken out where they write. All entries that any tensor has for
    them must then be without effect, and those for the units that stay must have one.
    """
    for name, shape in _unit_shapes(subject.layout, subject.architecture).items():
        _check_units_of(subject, subject.architecture.reshaped(shape), name)


def check_nothing_pruned(subject: Subject) -> None:
    """Pruning nothing gives the teacher's logits to the bit."""
    student = _plain_experts(build_student(subject.prepared, subject.architecture, torch.float64))
    assert torch.equal(subject.logits(student), subject.logits(subject.model)), (
        "a student that keeps everything has other logits than the teacher"
    )


def check_masked_teacher(subject: Subject) -> None:
    """A student computes what the teacher does with everything zeroed that leaves."""
    for name, shape in conformance_shapes(subject.layout, subject.architecture).items():
        target = subject.architecture.reshaped(shape)
        student = _plain_experts(build_student(subject.prepared, target, torch.float64))
        with _masked(subject, target) as teacher:
            expected = subject.logits(teacher)
        difference = (subject.logits(student) - expected).abs().max().item()
        assert difference <= _TOLERANCE, (
            f"pruning {name} to {shape}: the student's logits differ by {difference:.3g} from those of the teacher in "
            "which what leaves is zero"
        )
        changed = (expected - subject.logits(subject.model)).abs().max().item()
        assert changed > 100 * _TOLERANCE, f"pruning {name} to {shape} changes nothing; the check is blind"


@torch.no_grad()
def check_layer_by_layer(subject: Subject) -> None:
    """Every layer in a model of its own puts out what it does in the whole model, to the bit."""
    model, layout, prepared = subject.model, subject.layout, subject.prepared
    positions = torch.arange(_SEQ_LEN).expand_as(subject.prompt)
    states = embed(model, layout, subject.prompt, positions)
    for layer in range(subject.architecture.num_hidden_layers):
        outputs: list[Any] = []
        module = model.get_submodule(layout.layer_module.format(layer=layer))
        with module.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output)):
            subject.logits(model)
        expected = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        alone = layer_model(
            lambda name: read_tensor(prepared.headers[name]),
            prepared.config,
            subject.architecture,
            layout,
            layer,
            torch.float64,
        )
        states = run_layer(_plain_experts(alone), layout, states, positions)
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
    rotated = _plain_experts(model_from_tensors(dict(subject.prepared.config), tensors, torch.float64).eval())
    difference = (subject.logits(rotated) - subject.logits(subject.model)).abs().max().item()
    assert difference <= _TOLERANCE, (
        f"rotating without cutting changes the logits by {difference:.3g}; a norm stands in the wrong place of the "
        "table, or acts on what a layer adds to the residual stream (on_branch)"
    )


def check_loss(subject: Subject) -> None:
    """The chunked loss and its gradients are those of the model's own logits, and KL(p || p) is 0."""
    model, ids = subject.model, subject.prompt
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        hidden = final_hidden(model, ids, positions).flatten(0, 1)
        head = OutputHead.of(model).detached()
        own = subject.logits(model).flatten(0, 1)
        difference = (head.logits(hidden) - own).abs().max().item()
        assert difference <= _TOLERANCE, f"the output head's logits differ by {difference:.3g} from the model's"
        assert forward_kl(own, own).abs().max() <= 1e-12, "KL(p || p) is not 0"
        teacher = 0.7 * hidden.flip(0)
    labels = ids.flatten().roll(-1)
    gradients = []
    for chunked in (True, False):
        inputs, weight = hidden.clone().requires_grad_(), head.weight.clone().requires_grad_()
        student = replace(head, weight=weight)
        if chunked:
            targets = HiddenTargets(teacher, head)
            loss = distillation_loss(inputs, student, labels, targets, DistillationSettings(lm_loss_weight=0.5)).total
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
        proof = write_student(prepared, target, folder, teacher.prompt[:1], Lineage())
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
    check_units,
    check_nothing_pruned,
    check_masked_teacher,
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


def _check_units_of(subject: Subject, target: Architecture, name: str) -> None:
    pruned = _pruned_axes(subject.architecture, target)
    generator = torch.Generator().manual_seed(1)
    with _masked(subject, target, writers_only=True) as model:
        base = subject.logits(model)
        tensors = _written_off(subject, target, writers_only=True)
        for row in subject.layout.rows:
            if not row.exists(subject.architecture) or not _reads(subject.layout, row, pruned):
                continue
            for wanted in (False, True):
                noisy = _with_noise(subject, target, tensors, row, wanted, generator)
                with _masked(subject, target, writers_only=True, tensors=noisy) as other:
                    difference = (subject.logits(other) - base).abs().max().item()
                if wanted:
                    assert difference > _TOLERANCE, (
                        f"tensor {row.name!r}: the entries that the table gives to the {name} that stay have no effect"
                    )
                else:
                    assert difference <= _TOLERANCE, (
                        f"tensor {row.name!r}: entries that the table gives to {name} that are cut off still "
                        f"change the logits by {difference:.3g}; its axes or their order are wrong"
                    )


def _unit_shapes(layout: Layout, source: Architecture) -> dict[str, dict[str, int]]:
    """Shapes that take units away from one axis each, whether or not transformers would take the shape."""
    ffn = layout.neuron_axis.value
    groups, in_group = source.num_key_value_heads, source.heads_per_group
    shapes = {
        "neurons": {ffn: getattr(source, ffn) * 5 // 8 - 1},
        "groups": {"num_key_value_heads": groups - 1, "num_attention_heads": (groups - 1) * in_group},
        "channels": {"hidden_size": source.hidden_size * 3 // 4},
    }
    if in_group > 1:
        shapes["heads"] = {"num_attention_heads": groups * (in_group - 1)}
    if layout.has_experts:
        shapes["experts"] = {"num_experts": max(source.num_experts_per_tok, source.num_experts - 1)}
    return shapes


def _fewer_groups(layout: Layout, source: Architecture) -> dict[str, int]:
    """As many KV groups as can be kept without all being kept."""
    in_group = source.heads_per_group
    groups = next(
        count
        for count in range(source.num_key_value_heads - 1, 0, -1)
        if not layout.hidden_multiple_of_heads or source.hidden_size % (count * in_group) == 0
    )
    return {"num_key_value_heads": groups, "num_attention_heads": groups * in_group}


def _below(size: int, step: int) -> int:
    """The next multiple of a step below a size."""
    return (size - 1) // step * step


def _reads(layout: Layout, row: TensorRow, pruned: set[Axis]) -> bool:
    """Whether a tensor has entries for pruned units other than where these write to the residual stream."""
    if pruned & {Axis.HIDDEN}:
        readers = len(row.dims) == 2 and row.per_layer and layout.input_dim(row) == HIDDEN
        return (row.dims == (HIDDEN,) and row.is_norm) or readers
    axes = {axis for dimension in row.dims for part in dimension.parts for axis in part}
    if pruned == {Axis.EXPERTS}:
        return row.per_expert
    writes = len(row.dims) == 2 and row.per_layer and layout.output_dim(row) == HIDDEN
    return bool(axes & pruned) and not writes


def _pruned_axes(source: Architecture, target: Architecture) -> set[Axis]:
    fields = {axis for axis in Axis if axis is not Axis.QKV}
    return {axis for axis in fields if getattr(source, axis.value) != getattr(target, axis.value)}


def _kept_masks(subject: Subject, target: Architecture, place: TensorPlace) -> list[Tensor]:
    """For each dimension of a tensor of the teacher, which entries the student keeps."""
    masks = []
    for dimension, size in zip(place.row.dims, place.row.shape(subject.architecture), strict=True):
        kept = subject.prepared.order.kept_entries(dimension, place, subject.architecture, target)
        mask = torch.ones(size, dtype=torch.bool)
        if kept is not None:
            mask = torch.zeros(size, dtype=torch.bool)
            mask[kept] = True
        masks.append(mask)
    return masks


def _with_noise(
    subject: Subject,
    target: Architecture,
    tensors: Mapping[str, Tensor],
    row: TensorRow,
    wanted: bool,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Add noise to one tensor of every layer: to the entries that stay, or to those that leave."""
    pruned = _pruned_axes(subject.architecture, target)
    changed = dict(tensors)
    for place in subject.layout.tensors(subject.architecture):
        if place.row is not row:
            continue
        tensor = changed[place.name]
        stays = torch.ones_like(tensor, dtype=torch.bool)
        for number, mask in enumerate(_kept_masks(subject, target, place)):
            if pruned & {axis for part in row.dims[number].parts for axis in part}:
                stays &= mask.view([-1 if number == axis else 1 for axis in range(tensor.dim())])
        if pruned == {Axis.EXPERTS}:
            stays[:] = place.expert in subject.prepared.order.kept_experts(place.layer or 0, target.num_experts)
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        changed[place.name] = tensor + noise * (stays if wanted else ~stays)
    return changed


def _written_off(subject: Subject, target: Architecture, writers_only: bool = False) -> dict[str, Tensor]:
    """The teacher's tensors with zeros for all that leaves, or only where it writes to the residual stream."""
    layout, source = subject.layout, subject.architecture
    layers = subject.prepared.order.kept_layers(target.num_hidden_layers)
    stored = {
        own: name for own in subject.prepared.headers for name in layout.stored_names(own) if name in subject.tensors
    }
    result = {}
    for place in layout.tensors(source):
        row, tensor = place.row, subject.tensors[stored[place.name]].clone()
        writes = (
            row.per_layer
            and not row.is_norm
            and (row.dims == (HIDDEN,) or (len(row.dims) == 2 and layout.output_dim(row) == HIDDEN))
        )
        if not writers_only or writes or not row.per_layer:
            for number, mask in enumerate(_kept_masks(subject, target, place)):
                tensor *= mask.view([-1 if number == axis else 1 for axis in range(tensor.dim())])
        if writes and place.layer not in layers:
            tensor.zero_()
        result[place.name] = tensor
    return result


@contextmanager
def _masked(
    subject: Subject, target: Architecture, writers_only: bool = False, tensors: Mapping[str, Tensor] | None = None
) -> Iterator[Any]:
    """The teacher in which what leaves is zero, with norms and routers that do not see it.

    RMSNorm over hidden channels needs no help: the surgery makes up for zeros in its mean. LayerNorm
    and norms over heads look at the entries that stay.
    """
    content = tensors if tensors is not None else _written_off(subject, target, writers_only)
    model = _plain_experts(model_from_tensors(dict(subject.prepared.config), dict(content), torch.float64).eval())
    modules = dict(model.named_modules())
    for place in subject.layout.tensors(subject.architecture):
        if place.row.is_norm and (place.row.dims != (HIDDEN,) or subject.layout.norm_centres):
            (mask,) = _kept_masks(subject, target, place)
            name = subject.layout.module_of(place.row).format(layer=place.layer)
            _set_epsilon(modules[name], subject, target)
            _narrow(modules[name], mask)
    removed = {}
    if subject.architecture.num_experts != target.num_experts:
        for place in subject.layout.tensors(subject.architecture):
            if place.row.per_layer and Axis.EXPERTS in place.row.dims[0]:
                (mask, _) = _kept_masks(subject, target, place)
                name = subject.layout.module_of(place.row).format(layer=place.layer)
                removed[id(modules[name].weight)] = ~mask
    with _Router(removed):
        yield model


def _narrow(module: Any, mask: Tensor) -> None:
    """Let a norm look at some entries only, and give zero for the others."""
    if mask.all():
        return
    small = copy.copy(module)
    small._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach()[mask])
        for name, parameter in module._parameters.items()
    }
    if hasattr(module, "normalized_shape"):
        small.normalized_shape = (int(mask.sum()),)

    def forward(inputs: Tensor) -> Tensor:
        output = torch.zeros_like(inputs)
        output[..., mask] = type(module).forward(small, inputs[..., mask])
        return output

    module.forward = forward


def _set_epsilon(module: Any, subject: Subject, target: Architecture) -> None:
    """Give a norm that is not over hidden channels the epsilon that it shares with those that are."""
    constants = scaled_constants(subject.prepared.config, subject.layout, subject.architecture, target)
    for name in ("variance_epsilon", "eps"):
        if hasattr(module, name):
            for epsilon in constants.values():
                setattr(module, name, epsilon)


def _plain_experts(model: Any) -> Any:
    """Let experts compute one after the other: fused kernels know no float64."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


class _Router(TorchFunctionMode):
    """Gives removed experts the logit of minus infinity, where a router multiplies by its weight."""

    def __init__(self, removed: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._removed = removed

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function is nn.functional.linear and id(args[1]) in self._removed:
            return output.masked_fill(self._removed[id(args[1])], float("-inf"))
        return output
