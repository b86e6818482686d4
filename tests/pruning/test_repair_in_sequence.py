from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minitron_nas.architecture.config import architecture_of
from minitron_nas.distillation.loss.losses import forward_kl
from minitron_nas.errors import MachineError
from minitron_nas.families.catalog import layout_of, layouts
from minitron_nas.importance.moments import second_moments
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.stock import read_tensor
from minitron_nas.pruning import repair_in_sequence as sequence
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.parts import whole
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.repair_in_sequence import repair_in_sequence, why_not_in_sequence
from minitron_nas.pruning.rotation import Rotation
from minitron_nas.pruning.settings import RANDOM_TOKENS, SequenceSettings
from minitron_nas.pruning.student import build_student, cuts
from minitron_nas.storage.weights import read_headers
from minitron_nas.testing import Subject, tiny_config, tiny_tokenizer
from minitron_nas.text.packing import pack
from minitron_nas.text.tokens import PackedTokens

OF_SEVERAL_KINDS = {
    "afmoe", "bamba", "cohere2_moe", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "gemma4_text",
    "gemma4_unified_text", "glm4_moe", "glm4_moe_lite", "granitemoehybrid", "lfm2", "lfm2_moe",
    "llama4_text", "mellum", "nemotron_h", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
}  # fmt: skip
NOT_REPAIRABLE = OF_SEVERAL_KINDS | {"cohere", "cohere2", "falcon_h1", "granitemoeshared", "opt", "phi"}
IDS = torch.randint(0, 320, (400,), generator=torch.Generator().manual_seed(1)).numpy()
TEXT = pack([IDS[:30], IDS[30:47], IDS[47:150], IDS[150:]], 20)
"""Twenty sequences of twenty tokens; documents end inside some of them."""

READ = TEXT.with_random_tokens(RANDOM_TOKENS, 320)
"""What models read of it while they are repaired."""

NAMES = {
    "llama": {
        "layer": "model.layers.{}",
        "attention": "model.layers.{}.self_attn.o_proj",
        "ffn": "model.layers.{}.mlp.down_proj",
        "reads attention": "model.layers.{}.self_attn.q_proj",
        "reads ffn": "model.layers.{}.mlp.up_proj",
    },
    "gpt2": {
        "layer": "transformer.h.{}",
        "attention": "transformer.h.{}.attn.c_proj",
        "ffn": "transformer.h.{}.mlp.c_proj",
        "reads attention": "transformer.h.{}.attn.c_attn",
        "reads ffn": "transformer.h.{}.mlp.c_fc",
    },
}


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    monkeypatch.setattr("minitron_nas.importance.layered_model.compute_dtype", lambda device: torch.float32)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def repaired(prepared, target, folder, text=TEXT, **more):
    headers = repair_in_sequence(prepared, target, text, folder, SequenceSettings(**more))
    return {name: read_tensor(header) for name, header in headers.items()}, build_student(
        prepared, target, torch.float32, headers
    )


@torch.no_grad()
def watched(model, names):
    """What modules read and put out while a student is repaired, (num_tokens, size), float64."""
    found, handles = {}, []
    for name in names:

        def keep(_, args, kwargs, output, name=name):
            states = args[0] if args else kwargs["hidden_states"]
            output = output[0] if isinstance(output, tuple) else output
            found[name] = tuple(each.flatten(0, 1).double() for each in (states, output))

        handles.append(model.get_submodule(name).register_forward_hook(keep, with_kwargs=True))
    model(input_ids=READ.input_ids, position_ids=READ.position_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def least_squares(inputs, outputs, start, ridge):
    """numpy's minimum of |outputs - X inputs|^2 + r |X - start|^2, r = ridge times the mean square of an input."""
    penalty = ridge * inputs.square().sum(dim=0).mean().item()
    size = inputs.shape[1]
    rows = np.vstack([inputs.numpy(), np.sqrt(penalty) * np.eye(size)])
    wanted = np.vstack([outputs.numpy(), np.sqrt(penalty) * start.double().numpy().T])
    solution, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    return torch.from_numpy(solution.T)


@pytest.mark.parametrize("model_type", [name for name in layouts() if name not in NOT_REPAIRABLE])
def test_where_nothing_is_cut_nothing_changes(tmp_path, source, model_type):
    teacher = source(model_type)
    found, _ = repaired(teacher.prepared, teacher.architecture, tmp_path)
    assert found
    stored = {name: read_tensor(header) for name, header in teacher.prepared.headers.items()}
    for name, tensor in found.items():
        assert torch.allclose(tensor, stored[name], atol=2e-4), name


OF_ONE_KIND = {
    "afmoe": {"num_dense_layers": 0},
    "deepseek_v2": {"first_k_dense_replace": 0},
    "deepseek_v3": {"first_k_dense_replace": 4},
    "dots1": {"first_k_dense_replace": 0, "layer_types": ["full_attention"] * 4},
    "ernie4_5_moe": {"moe_layer_start_index": 0},
    "exaone_moe": {"mlp_layer_types": ["dense"] * 4, "layer_types": ["full_attention"] * 4},
    "glm4_moe": {"first_k_dense_replace": 0},
    "granitemoehybrid": {"layer_types": ["full_attention"] * 4},
    "lfm2": {"layer_types": ["full_attention"] * 4},
    "lfm2_moe": {"layer_types": ["full_attention"] * 4, "num_dense_layers": 0},
    "llama4_text": {"moe_layers": [0, 1, 2, 3], "interleave_moe_layer_step": 1},
    "qwen3_5_text": {"layer_types": ["full_attention"] * 4},
    "qwen3_next": {"layer_types": ["full_attention"] * 4, "mlp_only_layers": []},
}
"""Models of families with several kinds of layers that have one kind alone."""


@pytest.mark.parametrize("model_type", OF_ONE_KIND)
def test_where_all_layers_are_of_one_kind_they_are_repaired(tmp_path, model_type):
    config = tiny_config(model_type, **OF_ONE_KIND[model_type])
    teacher = Subject.make(layout_of(model_type), config, tmp_path / "teacher", dtype=torch.float32)
    source = teacher.architecture
    assert len(set(source.kinds)) == 1
    assert why_not_in_sequence(teacher.layout, source, source) is None
    found, _ = repaired(teacher.prepared, source, tmp_path / "same")
    for name, tensor in found.items():
        assert torch.allclose(tensor, teacher.tensors[name].to(tensor.dtype), atol=2e-4), name
    target = source.reshaped({"num_hidden_layers": 3, "hidden_size": source.hidden_size // 2})
    plain = build_student(teacher.prepared, target, torch.float32)
    _, student = repaired(teacher.prepared, target, tmp_path / "fewer")
    wanted = teacher.model(input_ids=READ.input_ids, use_cache=False).logits
    errors = [(model(input_ids=READ.input_ids).logits - wanted).square().mean().item() for model in (plain, student)]
    assert errors[1] < 0.9 * errors[0]


def test_what_transformers_splits_as_it_loads_is_repaired_as_it_is_stored(tmp_path, monkeypatch):
    """A layer whose parameters have other shapes is loaded again with what was refitted."""
    subject = Subject.make(layout_of("llama"), tiny_config("llama"), tmp_path / "teacher", dtype=torch.float32)
    target = subject.architecture.reshaped({"num_hidden_layers": 3, "intermediate_size": 56})
    wanted, _ = repaired(subject.prepared, target, tmp_path / "one")
    get = torch.nn.Linear.get_parameter
    other = torch.nn.Parameter(torch.zeros(1))
    q_proj = lambda self: self.out_features == self.in_features == 48  # noqa: E731 - queries and attention's output
    monkeypatch.setattr(torch.nn.Linear, "get_parameter", lambda self, name: other if q_proj(self) else get(self, name))
    found, _ = repaired(subject.prepared, target, tmp_path / "other")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("part", ["attention", "ffn"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_an_output_projection_adds_what_the_students_stream_lacks(tmp_path, source, model_type, part, layer):
    teacher, names = source(model_type), NAMES[model_type]
    target = teacher.architecture.reshaped({"intermediate_size": 56})
    found, student = repaired(teacher.prepared, target, tmp_path, ridge=0.2)
    name, block = names[part].format(layer), names["layer"].format(layer)
    own = watched(student, [name, block, names["ffn"].format(layer)])
    wanted = watched(load(teacher.checkpoint.path), [block, names["ffn"].format(layer)])
    if part == "ffn":
        missing = wanted[block][1] - (own[block][1] - own[name][1])
    else:
        behind_attention = wanted[block][1] - wanted[names["ffn"].format(layer)][1]
        missing = behind_attention - own[block][0]
    start = {each.name: whole(each) for each in cuts(teacher.prepared, target)}[f"{name}.weight"]
    stored = found[f"{name}.weight"]
    bias = getattr(student.get_submodule(name), "bias", None)
    if bias is not None:
        missing = missing - bias.detach().double()
    if model_type == "gpt2":
        start, stored = start.T, stored.T
    expected = least_squares(own[name][0], missing, start, 0.2)
    assert torch.allclose(stored.double(), expected, atol=1e-3)
    assert not torch.allclose(start.double(), expected, atol=1e-2)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize(
    ("writer", "behind"),
    [("self_attn.o_proj", "post_attention_layernorm"), ("mlp.down_proj", "post_feedforward_layernorm")],
)
@pytest.mark.parametrize(
    ("model_type", "offset"), [("gemma2", 1), ("gemma3_text", 1), ("glm4", 0), ("olmo2", 0), ("exaone4", 0)]
)
def test_with_a_norm_behind_it_an_output_projection_gives_what_the_norm_is_to_even(
    tmp_path, source, model_type, offset, writer, behind, layer
):
    if model_type == "glm4":
        behind = {"self_attn.o_proj": "post_self_attn_layernorm", "mlp.down_proj": "post_mlp_layernorm"}[writer]
    teacher, block = source(model_type), f"model.layers.{layer}"
    target = teacher.architecture.reshaped({"intermediate_size": 56, "hidden_size": 36})
    found, student = repaired(teacher.prepared, target, tmp_path, ridge=0.2)
    names = [block, f"{block}.{writer}", f"{block}.{behind}"]
    own, wanted = watched(student, names), watched(load(teacher.checkpoint.path), names)
    if writer == "mlp.down_proj":
        stream, before = wanted[block][1], own[block][1] - own[names[2]][1]
    else:
        stream, before = wanted[block][0] + wanted[names[2]][1], own[block][0]
    missing = stream[:, torch.sort(teacher.order.hidden[:36]).values] - before
    cut = {each.name: whole(each).double() for each in cuts(teacher.prepared, target)}
    start, gain = cut[f"{names[1]}.weight"], cut[f"{names[2]}.weight"] + offset
    least = 0.1 * gain.square().mean().sqrt()
    gain = gain.where(gain.abs() > least, least.copysign(gain))
    read = own[names[1]][0]
    epsilon = student.config.rms_norm_eps
    size = ((read @ start.T).square().mean(dim=1, keepdim=True) + epsilon).sqrt()
    matrix, expected = found[f"{names[1]}.weight"].double(), least_squares(read / size, missing / gain, start, 0.2)
    assert torch.allclose(matrix, expected, atol=1e-3)
    assert not torch.allclose(start, expected, atol=1e-2)
    put_out = read @ matrix.T
    even = put_out / (put_out.square().mean(dim=1, keepdim=True) + epsilon).sqrt()
    penalty = 0.2 * even.square().sum(dim=0).mean()
    refitted = ((missing * even).sum(dim=0) + penalty * gain) / (even.square().sum(dim=0) + penalty)
    assert torch.allclose(found[f"{names[2]}.weight"].double() + offset, refitted, atol=1e-3)
    assert not torch.allclose(gain, refitted, atol=1e-2)


@pytest.mark.parametrize("part", ["reads attention", "reads ffn"])
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("model_type", ["llama", "olmo2"])
def test_what_reads_the_stream_or_its_norm_gives_what_the_teachers_gives(tmp_path, source, model_type, part, layer):
    teacher, name = source(model_type), NAMES["llama"][part].format(layer)
    target = teacher.architecture.reshaped({"intermediate_size": 56})
    found, student = repaired(teacher.prepared, target, tmp_path, ridge=0.2)
    outputs = watched(load(teacher.checkpoint.path), [name])[name][1]
    start = {each.name: whole(each) for each in cuts(teacher.prepared, target)}[f"{name}.weight"]
    if part == "reads ffn":
        outputs = outputs[:, torch.sort(teacher.order.neurons[layer][:56]).values]
    expected = least_squares(watched(student, [name])[name][0], outputs, start, 0.2)
    assert torch.allclose(found[f"{name}.weight"].double(), expected, atol=1e-3)
    assert not torch.allclose(start.double(), expected, atol=1e-2)


def test_the_layer_before_dropped_ones_makes_up_for_them(tmp_path, source):
    teacher = source("llama")
    target = teacher.architecture.reshaped({"num_hidden_layers": 2})
    kept = teacher.order.kept_layers(2)
    assert kept == [0, 3]
    found, student = repaired(teacher.prepared, target, tmp_path, ridge=0.2)
    name = "model.layers.0.mlp.down_proj"
    own = watched(student, [name, "model.layers.0"])
    stream = watched(load(teacher.checkpoint.path), ["model.layers.3"])["model.layers.3"][0]
    missing = stream - (own["model.layers.0"][1] - own[name][1])
    start = load(teacher.checkpoint.path).get_submodule(name).weight.detach()
    expected = least_squares(own[name][0], missing, start, 0.2)
    assert torch.allclose(found[f"{name}.weight"].double(), expected, atol=1e-3)


@pytest.fixture(scope="module")
def trained(trained_teacher, text_file, tmp_path_factory):
    """The teacher that has learned, ranked and measured on text, with and without a repair in one pass."""
    folder, work = trained_teacher, tmp_path_factory.mktemp("trained")
    checkpoint, model = open_checkpoint(folder), load(folder)
    tokenizer = tiny_tokenizer()
    ids = torch.tensor(tokenizer(text_file.read_text(encoding="utf-8")[:60_000])["input_ids"])
    sequences = ids[: len(ids) // 64 * 64].view(-1, 64)
    text = PackedTokens(sequences, torch.arange(64).expand_as(sequences).contiguous())
    seen, unseen = text.first(128), PackedTokens(text.input_ids[128:192], text.position_ids[128:192])
    scores = score_importance(model, checkpoint.architecture, checkpoint.layout, seen, ImportanceSettings())
    moments = TensorFolder(work / "moments")
    second_moments(model, checkpoint.layout, seen, moments)
    rotation = Rotation.of(moments, checkpoint.headers, checkpoint.architecture, checkpoint.layout)
    order = PruningOrder.from_scores(scores, checkpoint.architecture, (0, -1))
    write_prepared(work / "prepared", order, rotation, moments.path)
    return PreparedTeacher.open(folder, work / "prepared"), model, seen, unseen


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"intermediate_size": 64}, marks=pytest.mark.slow),
        pytest.param({"hidden_size": 36}, marks=pytest.mark.slow),
        {"hidden_size": 36, "intermediate_size": 64},
        {"num_hidden_layers": 3},
        {"num_key_value_heads": 1, "num_attention_heads": 3},
    ],
    ids=str,
)
def test_it_is_nearer_to_the_teacher_than_a_repair_in_one_pass(trained, tmp_path, shape):
    prepared, teacher, seen, unseen = trained
    target = prepared.architecture.reshaped(shape)
    _, student = repaired(prepared, target, tmp_path / "work", seen)
    one_pass = build_student(prepared, target, torch.float32)
    with torch.no_grad():
        expected, own, plain = (
            model(input_ids=unseen.input_ids).logits.flatten(0, 1) for model in (teacher, student, one_pass)
        )
    assert forward_kl(own, expected).mean() < 0.9 * forward_kl(plain, expected).mean()


def test_random_tokens_bring_it_nearer_to_the_teacher_on_tokens_that_the_text_lacks(trained, tmp_path):
    prepared, teacher, seen, unseen = trained
    target, vocab_size = prepared.architecture.reshaped({"hidden_size": 36}), prepared.architecture.vocab_size
    strange = unseen.with_random_tokens(0.5, vocab_size, seed=1)
    distances = {}
    for share in (0.0, RANDOM_TOKENS):
        _, student = repaired(prepared, target, tmp_path / f"{share}", seen, random_tokens=share)
        with torch.no_grad():
            expected, own = (model(input_ids=strange.input_ids).logits.flatten(0, 1) for model in (teacher, student))
        distances[share] = forward_kl(own, expected).mean()
    assert distances[RANDOM_TOKENS] < 0.95 * distances[0.0], distances


def test_hidden_states_in_a_file_give_the_same_bytes(tmp_path, source, monkeypatch):
    teacher = source("llama")
    target = teacher.architecture.reshaped({"intermediate_size": 56, "hidden_size": 36})
    in_memory, _ = repaired(teacher.prepared, target, tmp_path / "one")
    monkeypatch.setattr("minitron_nas.importance.hidden_states.available_memory", lambda: 0)
    in_a_file, _ = repaired(teacher.prepared, target, tmp_path / "other")
    assert all(torch.equal(in_memory[name], in_a_file[name]) for name in in_memory)
    assert {path.suffix for path in (tmp_path / "other").iterdir()} == {".safetensors"}


def test_batches_of_another_size_give_nearly_the_same(tmp_path, source):
    teacher = source("qwen2")
    target = teacher.architecture.reshaped({"intermediate_size": 56, "hidden_size": 36})
    one, _ = repaired(teacher.prepared, target, tmp_path / "one", batch_sequences=2)
    other, _ = repaired(teacher.prepared, target, tmp_path / "other", batch_sequences=7)
    assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)


def test_progress_counts_every_layer_of_the_teacher_once(tmp_path, source):
    teacher, told = source("llama"), []
    target = teacher.architecture.reshaped({"num_hidden_layers": 3})
    repair_in_sequence(teacher.prepared, target, TEXT, tmp_path, progress=lambda *pair: told.append(pair))
    assert told[-1] == (4 * 400, 4 * 400)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_what_is_refitted_lies_in_a_file_for_each_layer(tmp_path, source):
    teacher = source("llama")
    headers = repair_in_sequence(teacher.prepared, teacher.architecture, TEXT, tmp_path)
    assert {header.file.name for header in headers.values()} == {f"layer-{layer:05}.safetensors" for layer in range(4)}
    assert set(headers) == {name for name in read_headers(teacher.checkpoint.path) if "_proj" in name}


@pytest.mark.parametrize("has_norms", [True, False])
def test_norms_behind_output_projections_are_refitted_where_the_config_has_them(tmp_path, source, has_norms):
    teacher = source("hyperclovax", use_post_norm=has_norms)
    found, _ = repaired(teacher.prepared, teacher.architecture.reshaped({"intermediate_size": 56}), tmp_path)
    norms = {f"model.layers.{layer}.post_norm{number}.weight" for layer in range(4) for number in (1, 2)}
    assert {name for name in found if "norm" in name} == (norms if has_norms else set())


def test_which_families_can_be_repaired_in_sequence():
    sources = {name: architecture_of(tiny_config(name).to_dict(), layout) for name, layout in layouts().items()}
    reasons = {name: why_not_in_sequence(layout_of(name), source, source) for name, source in sources.items()}
    assert {name for name, reason in reasons.items() if reason is not None} == NOT_REPAIRABLE
    assert all("are of several kinds" in reasons[name] for name in OF_SEVERAL_KINDS)
    assert all("is no module of its own" in reasons[name] for name in ("granitemoeshared", "opt"))
    assert "more to the residual stream than attention and FFN" in reasons["falcon_h1"]
    assert all("read the residual stream through one norm" in reasons[name] for name in ("cohere", "cohere2", "phi"))


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        (
            "granitemoehybrid",
            {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 4},
            "the FFN of granitemoehybrid is no module of its own",
        ),
        ("gemma4_text", {"layer_types": ["full_attention"] * 4}, "are not attention with heads that can leave and an"),
        ("lfm2", {"layer_types": ["conv"] * 4}, "layers of this lfm2 are not attention"),
    ],
)
def test_layers_of_one_kind_may_be_others_than_the_repair_knows(model_type, changes, said):
    layout = layout_of(model_type)
    source = architecture_of(tiny_config(model_type, **changes).to_dict(), layout)
    assert said in why_not_in_sequence(layout, source, source)


@pytest.mark.parametrize(
    ("shape", "only_heads"),
    [
        ({"num_attention_heads": 2}, True),
        ({"num_attention_heads": 2, "intermediate_size": 56}, False),
        ({"num_key_value_heads": 1}, False),
        ({}, False),
    ],
)
def test_where_only_query_heads_leave_layers_are_not_refitted_in_sequence(shape, only_heads):
    layout = layout_of("llama")
    source = architecture_of(tiny_config("llama").to_dict(), layout)
    reason = why_not_in_sequence(layout, source, source.reshaped(shape))
    assert reason == ("only query heads leave, which one pass makes up for better" if only_heads else None)


def test_attention_that_adds_nothing_is_not_taken_for_one_beside_the_ffn(tmp_path):
    subject = Subject.make(layout_of("llama"), tiny_config("llama"), tmp_path)
    file = next(subject.prepared.path.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.o_proj.weight"].zero_()
    save_file(tensors, file, {"format": "pt"})
    run = sequence._Sequence._run_teacher
    found = []
    with patch.object(sequence._Sequence, "_run_teacher", lambda *args: found.append(run(*args)) or found[-1]):
        repaired(subject.prepared, subject.architecture.reshaped({"intermediate_size": 56}), tmp_path)
    assert found == [False] * 4


def test_output_projections_of_experts_are_not_refitted(tmp_path, source):
    teacher = source("mixtral")
    target = teacher.architecture.reshaped({"intermediate_size": 64})
    found, _ = repaired(teacher.prepared, target, tmp_path)
    assert any("self_attn.o_proj" in name for name in found)
    assert any(".w1." in name for name in found)
    assert not any(".w2." in name for name in found)


def test_where_memory_cannot_hold_a_regression_that_is_said_before_work(tmp_path, source, monkeypatch):
    teacher = source("llama")
    widest = teacher.architecture.intermediate_size
    monkeypatch.setattr(sequence, "available_bytes", lambda device: 20 * widest**2 - 1)
    told = rf"takes \d+ kB for a matrix of {widest} inputs, and cpu has \d+ kB left; .* repair=none$"
    with pytest.raises(MachineError, match=told):
        repair_in_sequence(teacher.prepared, teacher.architecture, TEXT, tmp_path / "work")
    assert not (tmp_path / "work").exists()
