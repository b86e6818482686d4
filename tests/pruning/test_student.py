import copy
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_nas.errors import InvalidArchitectureError
from minitron_nas.families.catalog import layout_of
from minitron_nas.importance.depth_modes import layer_table
from minitron_nas.pruning.parts import whole
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student, cuts, random_student, student_config
from minitron_nas.testing import Subject, rewrite_tensors, tiny_checkpoint, tiny_config
from minitron_nas.testing.tiny import TINY_E2B

BIASES = {"attention_bias": True, "mlp_bias": True}
KINDS = [
    pytest.param(model_type, changes, id="-".join([model_type, *changes]))
    for model_type, kinds in {
        "llama": ({}, {"tied": True}, BIASES),
        "mistral": ({}, {"tied": True}),
        "nemotron": ({}, {"tied": True}, BIASES),
        "qwen2": ({}, {"tied": True}),
    }.items()
    for changes in kinds
]
every_kind = pytest.mark.parametrize(("model_type", "changes"), KINDS)
FAMILIES = ("llama", "mistral", "nemotron", "qwen2")
SHAPES = [
    {"intermediate_size": 61},
    {"num_attention_heads": 4},
    {"num_attention_heads": 2},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 1, "num_attention_heads": 2},
    {"num_hidden_layers": 3},
    {"num_hidden_layers": 2, "intermediate_size": 40, "num_attention_heads": 4},
]
ROPE = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
NARROW = [
    {"hidden_size": 36},
    {"hidden_size": 24, "intermediate_size": 17, "num_attention_heads": 4, "num_hidden_layers": 3},
    {"hidden_size": 42, "num_key_value_heads": 1, "num_attention_heads": 1, "num_hidden_layers": 2},
]


def tensors_of(prepared, shape):
    return {part.name: whole(part) for part in cuts(prepared, prepared.architecture.reshaped(shape))}


def named(shape):
    return ",".join(f"{name}={size}" for name, size in shape.items())


def best(scores, count):
    return sorted(sorted(range(len(scores)), key=lambda index: -scores[index].item())[:count])


def kept_heads(source, layer, target):
    """Groups by their own score, heads by theirs within each group that stays."""
    groups = best(source.scores.kv_groups[layer], target.num_key_value_heads)
    grouped = source.scores.heads[layer].view(source.architecture.num_key_value_heads, -1)
    places = [(group, place) for group in groups for place in best(grouped[group], target.heads_per_group)]
    return groups, [group * grouped.shape[1] + place for group, place in places]


def kept_layers(source, target):
    """The first and the last layer, and the best of the others."""
    inner = best(source.scores.layers[1:-1], target.num_hidden_layers - 2)
    return [0, *(layer + 1 for layer in inner), source.architecture.num_hidden_layers - 1]


def cut_by_hand(source, target):
    """The teacher's tensors with what leaves taken out, tensor by tensor."""
    hidden, width = best(source.scores.hidden, target.hidden_size), source.architecture.head_dim
    layers, result = kept_layers(source, target), {}

    def entries(blocks):
        return [block * width + entry for block in blocks for entry in range(width)]

    for name, tensor in source.tensors.items():
        parts = name.split(".")
        if "layers" not in parts:
            result[name] = tensor[..., hidden]
            continue
        if (layer := int(parts[2])) not in layers:
            continue
        neurons = best(source.scores.neurons[layer], target.intermediate_size)
        groups, heads = kept_heads(source, layer, target)
        rows = {
            "q_proj": entries(heads),
            "k_proj": entries(groups),
            "v_proj": entries(groups),
            "gate_proj": neurons,
            "up_proj": neurons,
        }.get(parts[-2], hidden)
        columns = {"o_proj": entries(heads), "down_proj": neurons}.get(parts[-2], hidden)
        parts[2] = str(layers.index(layer))
        result[".".join(parts)] = tensor[rows] if tensor.dim() == 1 else tensor[rows][:, columns]
    return {name: with_gain(source, target, name, tensor) for name, tensor in result.items()}


def with_gain(source, target, name, tensor):
    """A norm over fewer channels, if it is an RMSNorm, multiplies by more."""
    if "norm" not in name or source.architecture.model_type == "nemotron":
        return tensor
    ratio = (source.architecture.hidden_size / target.hidden_size) ** 0.5
    return (tensor.double() * ratio).to(tensor.dtype)


@torch.no_grad()
def masked(source, target):
    """The teacher whose leaving neurons, heads and groups are zeroed and whose leaving layers are skipped."""
    model, shape = copy.deepcopy(source.model), source.architecture
    for index, layer in enumerate(model.model.layers):
        if index not in kept_layers(source, target):
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        kept = best(source.scores.neurons[index], target.intermediate_size)
        layer.mlp.down_proj.weight[:, [i for i in range(shape.intermediate_size) if i not in kept]] = 0
        _, kept = kept_heads(source, index, target)
        columns = layer.self_attn.o_proj.weight.view(shape.hidden_size, shape.num_attention_heads, shape.head_dim)
        columns[:, [i for i in range(shape.num_attention_heads) if i not in kept]] = 0
    return model


@torch.no_grad()
def without_channels(source, kept):
    """The teacher whose leaving channels are always zero."""
    model, size = copy.deepcopy(source.model), source.architecture.hidden_size
    gone = [channel for channel in range(size) if channel not in kept]
    model.model.embed_tokens.weight[:, gone] = 0
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight[gone] = 0
            if projection.bias is not None:
                projection.bias[gone] = 0
    return model


@every_kind
def test_pruning_nothing_gives_the_teacher_to_the_bit(source, prompt, model_type, changes):
    teacher = source(model_type, **changes)
    student = build_student(teacher.prepared, teacher.architecture, torch.float32)
    assert student.state_dict().keys() == teacher.tensors.keys()
    assert all(torch.equal(tensor, teacher.tensors[name]) for name, tensor in student.state_dict().items())
    assert torch.equal(student(prompt).logits, teacher.model(prompt).logits)


@pytest.mark.parametrize("shape", SHAPES, ids=named)
@every_kind
def test_a_student_computes_what_the_masked_teacher_does(source, prompt, model_type, changes, shape):
    teacher = source(model_type, dtype=torch.float64, **changes)
    target = teacher.architecture.reshaped(shape)
    student = build_student(teacher.prepared, target, torch.float64)
    expected = masked(teacher, target)(prompt).logits
    torch.testing.assert_close(student(prompt).logits, expected, rtol=0, atol=1e-5)
    assert (teacher.model(prompt).logits - expected).abs().max() > 0.05


@pytest.mark.parametrize("hidden_size", [24, 42])
@pytest.mark.parametrize(
    ("model_type", "changes"), [("llama", {}), ("llama", BIASES), ("mistral", {}), ("qwen2", {"tied": True})]
)
def test_without_channels_a_student_computes_what_a_teacher_does_in_which_they_are_zero(
    source, prompt, model_type, changes, hidden_size
):
    teacher = source(model_type, dtype=torch.float64, **changes)
    target = teacher.architecture.reshaped({"hidden_size": hidden_size})
    student = build_student(teacher.prepared, target, torch.float64)
    expected = without_channels(teacher, best(teacher.scores.hidden, hidden_size))(prompt).logits
    torch.testing.assert_close(student(prompt).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPES[-1], *NARROW], ids=named)
@every_kind
def test_every_tensor_is_the_teachers_without_what_leaves(source, model_type, changes, shape):
    teacher = source(model_type, **changes)
    target = teacher.architecture.reshaped(shape)
    student = build_student(teacher.prepared, target, torch.float32).state_dict()
    expected = cut_by_hand(teacher, target)
    assert student.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(student[name], tensor), name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_smaller_student_lies_within_a_larger_one_in_the_same_order(tmp_path, source, model_type):
    # Every entry of this teacher is its own position, so that a student's entries say where they come from.
    folder = tiny_checkpoint(tmp_path / "teacher", model_type)
    tensors = source(model_type).tensors.items()
    rewrite_tensors(folder, {name: torch.arange(1.0, 1 + t.numel()).view(t.shape) for name, t in tensors})
    prepared = PreparedTeacher.open(folder, source(model_type).prepared.folder)
    whole, large, small = (tensors_of(prepared, shape) for shape in ({}, *NARROW[:2]))
    layers = kept_layers(source(model_type), prepared.architecture.reshaped(NARROW[1]))
    for name, tensor in small.items():
        if "norm" in name:
            continue  # its gains grow with the channels that leave
        parts = name.split(".")
        if "layers" in parts:
            parts[2] = str(layers[int(parts[2])])
        within = large[".".join(parts)]
        assert (
            set(tensor.flatten().tolist()) <= set(within.flatten().tolist()) <= set(range(1, 1 + whole[name].numel()))
        )
        for axis in range(tensor.dim()):
            assert (tensor.diff(dim=axis) > 0).all()
            assert (within.diff(dim=axis) > 0).all()


def test_with_two_layers_left_they_are_the_first_and_the_last(source):
    teacher = source("llama")
    tensors = tensors_of(teacher.prepared, {"num_hidden_layers": 2})
    for new, old in ((0, 0), (1, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(tensors[name.format(new)], teacher.tensors[name.format(old)])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tied_stays_tied(source, prompt, model_type):
    teacher = source(model_type, tied=True)
    target = teacher.architecture.reshaped({"hidden_size": 36})
    assert "lm_head.weight" not in tensors_of(teacher.prepared, {"hidden_size": 36})
    student = build_student(teacher.prepared, target, torch.float32)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert student.config.tie_word_embeddings


@pytest.mark.parametrize("model_type", FAMILIES)
def test_of_the_config_only_sizes_change(source, model_type):
    teacher = source(model_type, rope_parameters=ROPE)
    target = teacher.architecture.reshaped(NARROW[0] | {"num_hidden_layers": 3})
    config = student_config(teacher.prepared, target)
    original = teacher.checkpoint.config
    changed = {name for name in config if config[name] != original.get(name)}
    epsilon = {"rms_norm_eps"} & config.keys()
    assert changed == {"num_hidden_layers", "hidden_size", *epsilon, *({"layer_types"} & config.keys())}
    assert all(config[name] == pytest.approx(original[name] * 48 / 36) for name in epsilon)
    assert {name: config[name] for name in target.sizes()} == target.sizes()
    assert (config["vocab_size"], config["rope_parameters"]) == (320, original["rope_parameters"])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_heads_keep_their_width_although_the_config_leaves_it_out(tmp_path, source, prompt, model_type):
    folder = tiny_checkpoint(tmp_path / "teacher", model_type)
    edit_config(folder, head_dim=None)
    teacher = source(model_type)
    prepared = PreparedTeacher.open(folder, teacher.prepared.folder)
    target = teacher.architecture.reshaped({"hidden_size": 36, "num_attention_heads": 4})
    assert student_config(prepared, target)["head_dim"] == 8
    student = build_student(prepared, target, torch.float32)
    assert student.model.layers[0].self_attn.q_proj.weight.shape == (32, 36)
    expected = build_student(teacher.prepared, target, torch.float32)
    assert torch.equal(student(prompt).logits, expected(prompt).logits)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("spelled_out", [True, False], ids=["spelled out", "left to transformers"])
def test_a_layer_that_stays_keeps_its_kind_of_attention(tmp_path, source, prompt, spelled_out):
    windows = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    teacher = source("qwen2", **windows)
    assert teacher.checkpoint.config["layer_types"] == ["full_attention"] * 2 + ["sliding_attention"] * 2
    folder = tiny_checkpoint(tmp_path / "teacher", "qwen2", **windows)
    if not spelled_out:
        edit_config(folder, layer_types=None)
    prepared = PreparedTeacher.open(folder, teacher.prepared.folder)
    target = teacher.architecture.reshaped({"num_hidden_layers": 3})
    kept = kept_layers(teacher, target)
    kinds = [teacher.checkpoint.config["layer_types"][layer] for layer in kept]
    assert student_config(prepared, target)["layer_types"] == kinds
    student = build_student(prepared, target, torch.float32)
    torch.testing.assert_close(student(prompt).logits, masked(teacher, target)(prompt).logits, rtol=0, atol=1e-5)


def test_a_shape_that_transformers_refuses_is_refused_with_the_nearest_legal_sizes(source):
    teacher = source("llama")
    target = teacher.architecture.reshaped({"hidden_size": 40})
    message = (
        r"hidden_size=40 with num_attention_heads=6 breaks the rule hidden_size_multiple_of_heads: stock "
        r"transformers refuses .*; nearest legal hidden_size: 36 or 42$"
    )
    with pytest.raises(InvalidArchitectureError, match=message):
        build_student(teacher.prepared, target, torch.float32)
    message = (
        "transformers refuses the config of the student l4-h40-f96-q6-k2: .*hidden size .* is not a multiple of the "
        "number of attention heads .*; choose other sizes$"
    )
    with pytest.raises(InvalidArchitectureError, match=message):
        student_config(teacher.prepared, target)


@pytest.mark.parametrize("model_type", ["mistral", "nemotron", "qwen2"])
def test_families_without_that_rule_take_any_hidden_size(source, prompt, model_type):
    teacher = source(model_type)
    target = teacher.architecture.reshaped({"hidden_size": 41})
    assert build_student(teacher.prepared, target, torch.float32)(prompt).logits.isfinite().all()


def test_a_student_may_be_built_in_another_format(source):
    teacher = source("llama")
    target = teacher.architecture.reshaped(NARROW[1])
    student = build_student(teacher.prepared, target, torch.bfloat16).state_dict()
    assert all(torch.equal(student[name], tensor.bfloat16()) for name, tensor in cut_by_hand(teacher, target).items())


def test_the_prepared_teacher_and_the_global_random_state_stay_as_they_are(source):
    teacher = source("llama")
    before = (teacher.checkpoint.path / "model.safetensors").read_bytes()
    state = torch.get_rng_state()
    student = build_student(teacher.prepared, teacher.architecture, torch.float32)
    with torch.no_grad():
        student.model.embed_tokens.weight.zero_()
    assert (teacher.checkpoint.path / "model.safetensors").read_bytes() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_random_student_has_the_shape_and_rests_on_its_seed_alone(source):
    teacher = source("llama")
    target = teacher.architecture.reshaped(NARROW[1])
    pruned = build_student(teacher.prepared, target, torch.float32).state_dict()
    state = torch.get_rng_state()
    one, same, other = (
        random_student(teacher.prepared, target, torch.float32, seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in pruned.items()}
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], pruned[name])


def dtypes(model):
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


def test_what_transformers_keeps_in_float32_is_not_rounded_to_the_type_of_the_others(tmp_path):
    subject = Subject.make(layout_of("glm4_moe"), tiny_config("glm4_moe"), tmp_path, dtype=torch.bfloat16)
    student = build_student(subject.prepared, subject.architecture, torch.bfloat16)
    stock = AutoModelForCausalLM.from_pretrained(subject.prepared.path, dtype=torch.bfloat16)
    assert dtypes(student) == dtypes(stock)
    kept, own = (model.model.layers[1].mlp.gate for model in (student, subject.model))
    assert kept.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(kept.e_score_correction_bias, own.e_score_correction_bias)
    assert torch.equal(kept.weight, own.weight)


def test_a_student_that_would_end_on_a_layer_that_transformers_takes_for_another_is_refused(tmp_path):
    prepared = Subject.make(layout_of("gemma4_text"), tiny_config("gemma4_text"), tmp_path).prepared

    def config(kept):
        order = replace(prepared.order, layers=layer_table({len(kept): kept}, 4))
        shape = prepared.architecture.reshaped({"num_hidden_layers": len(kept)})
        return student_config(replace(prepared, order=order), shape)

    assert config([0, 1, 3])["layer_types"] == ["sliding_attention", "full_attention", "full_attention"]
    assert config([0, 1, 3])["per_layer_config"].keys() == {"1", "2"}
    with pytest.raises(InvalidArchitectureError, match="last of the 2 layers is of kind 'sliding_attention', and"):
        config([1, 2])


def test_a_student_keeps_the_layers_whose_keys_it_reads_and_drops_them_with_all_that_read_them(tmp_path):
    prepared = Subject.make(layout_of("gemma4_text"), tiny_config("gemma4_text", **TINY_E2B), tmp_path).prepared

    def student(kept):
        order = replace(prepared.order, layers=layer_table({len(kept): kept}, 7))
        shape = prepared.architecture.reshaped({"num_hidden_layers": len(kept)})
        return student_config(replace(prepared, order=order), shape)

    assert student([0, 2, 3, 5, 6])["num_kv_shared_layers"] == 2
    assert student([0, 1, 2, 3])["num_kv_shared_layers"] == student([0, 1])["num_kv_shared_layers"] == 0
    assert student([0, 1, 3, 6])["num_kv_shared_layers"] == 1
    for kept in ([0, 1, 3, 5, 6], [0, 1, 2, 6]):
        with pytest.raises(InvalidArchitectureError, match="have no keys and values of their own, and the layer that"):
            student(kept)


def test_blocks_of_single_layers_leave_with_them(tmp_path):
    subject = Subject.make(layout_of("gemma4_text"), tiny_config("gemma4_text", **TINY_E2B), tmp_path)
    target = subject.architecture.reshaped({"num_hidden_layers": 5})
    kept = subject.prepared.order.kept_layers(5)
    student = build_student(subject.prepared, target, torch.float64).model
    for name, axis in (("embed_tokens_per_layer", 1), ("per_layer_model_projection", 0)):
        whole = getattr(subject.model.model, name).weight.chunk(7, axis)
        assert torch.equal(getattr(student, name).weight, torch.cat([whole[layer] for layer in kept], axis))
