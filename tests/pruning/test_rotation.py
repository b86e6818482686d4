from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minitron_nas.importance.moments import normalised, second_moments
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.rotation import Rotation, stream_norms, why_not_rotatable
from minitron_nas.pruning.student import basis_of, build_student
from minitron_nas.testing import rewrite_tensors, tiny_checkpoint
from minitron_nas.text.tokens import PackedTokens

ROTATABLE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "mixtral", "qwen3_moe")
CENTRED = ("nemotron", "starcoder2", "gpt_neox", "cohere", "phi")
NOT = ("exaone4", "gemma2", "gemma3_text", "glm4", "olmo2", "olmo3")
IDS = torch.randint(0, 320, (8, 24), generator=torch.Generator().manual_seed(1))
TEXT = PackedTokens(IDS, torch.arange(24).expand_as(IDS))
LOW = 24
"""Directions that the stream of a low-rank teacher has, of 48."""


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prepared(folder, scores):
    """A teacher with its rotation, measured on the text."""
    checkpoint = open_checkpoint(folder)
    model, moments = load(folder), {}
    second_moments(model, checkpoint.layout, TEXT, moments, "norms")
    rotation = Rotation.of(moments, checkpoint.headers, checkpoint.architecture, checkpoint.layout)
    order = PruningOrder.from_scores(scores, checkpoint.architecture, ())
    write_prepared(folder / "prepared", order, rotation)
    return PreparedTeacher.open(folder, folder / "prepared"), moments


def low_rank(folder, model_type, tied):
    """Let all that a teacher writes to its stream lie in half of the directions."""
    checkpoint = open_checkpoint(tiny_checkpoint(folder, model_type, tied=tied, rms_norm_eps=1e-12))
    layout = checkpoint.layout
    generator = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(48, LOW, generator=generator, dtype=torch.float64)).Q
    projector = directions @ directions.T
    tensors, changed = load_file(folder / "model.safetensors"), {}
    for place in layout.tensors(checkpoint.architecture):
        tensor = tensors[place.name].double()
        if layout.writes_hidden(place.row):
            changed[place.name] = (projector @ tensor).float()
        elif "embed" in place.name:
            changed[place.name] = (tensor @ projector).float()
    rewrite_tensors(folder, changed)
    return folder


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.fixture
def random_scores(source):
    return lambda model_type: source(model_type).scores


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3", "granite"])
def test_directions_without_energy_leave_without_loss(tmp_path, random_scores, model_type, tied):
    folder = low_rank(tmp_path / "teacher", model_type, tied)
    teacher, _ = prepared(folder, random_scores(model_type))
    student = build_student(teacher, teacher.architecture.reshaped({"hidden_size": LOW}), torch.float32)
    whole = logits(load(folder))
    assert torch.allclose(logits(student), whole, atol=2e-4 * whole.abs().max().item())


def test_selecting_channels_of_the_same_teacher_loses_much(tmp_path, random_scores):
    folder = low_rank(tmp_path / "teacher", "llama", tied=True)
    teacher, _ = prepared(folder, random_scores("llama"))
    plain = replace(teacher, rotation=None)
    student = build_student(plain, teacher.architecture.reshaped({"hidden_size": LOW}), torch.float32)
    whole = logits(load(folder))
    assert (logits(student) - whole).abs().max() > 0.1 * whole.abs().max()


@pytest.mark.parametrize("model_type", ["llama", "nemotron"])
def test_the_basis_is_orthonormal_and_ordered_by_energy(tmp_path, random_scores, model_type):
    teacher, moments = prepared(tiny_checkpoint(tmp_path, model_type), random_scores(model_type))
    rotation = teacher.rotation
    assert torch.allclose(rotation.basis.T @ rotation.basis, torch.eye(48, dtype=torch.float64), atol=1e-10)
    total = sum(moment.double() for moment in moments.values())
    along = (rotation.basis * (total @ rotation.basis)).sum(dim=0)
    energies = along[:-1] if teacher.layout.norm_centres else along
    assert (energies.diff() <= 1e-6).all()
    assert torch.allclose(rotation.energies.sum(dim=1), torch.ones(9, dtype=torch.float64))
    np.testing.assert_allclose(rotation.energies.sum(dim=0), along / 48, rtol=1e-4, atol=1e-5)


def test_a_centred_basis_ends_with_the_mean_and_its_students_have_none(tmp_path, random_scores):
    teacher, _ = prepared(tiny_checkpoint(tmp_path, "nemotron"), random_scores("nemotron"))
    constant = torch.full((48,), 48**-0.5, dtype=torch.float64)
    assert abs(teacher.rotation.basis[:, -1] @ constant) == pytest.approx(1, abs=1e-5)
    matrix = teacher.rotation.at(32, tied=False).matrix
    assert matrix.sum(dim=1).abs().max() < 1e-10
    assert torch.linalg.matrix_rank(matrix) == 31


def test_kept_directions_of_fewer_channels_are_a_part_of_those_of_more(tmp_path, random_scores):
    teacher, _ = prepared(tiny_checkpoint(tmp_path, "llama", tied=True), random_scores("llama"))
    wide, narrow = (teacher.rotation.at(size, tied=True).matrix for size in (40, 24))
    assert torch.allclose(wide @ (wide.T @ narrow), narrow, atol=1e-10)


def test_folding_gains_keeps_the_size_of_what_reads_a_norm(tmp_path, random_scores):
    """Adam's steps do not depend on the size of weights, so the constants keep it."""
    folder = tiny_checkpoint(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    gains = {name: 0.1 * tensor for name, tensor in tensors.items() if "layernorm" in name}
    rewrite_tensors(folder, gains)
    teacher, _ = prepared(folder, random_scores("llama"))
    rotation = teacher.rotation
    numbers = {place.name: number for number, place in enumerate(stream_norms(teacher.layout, teacher.architecture))}
    for layer in range(4):
        gain = gains[f"model.layers.{layer}.input_layernorm.weight"].double()
        matrices = [tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"].double() for name in "qkv"]
        before = sum(matrix.square().sum() for matrix in matrices)
        after = sum((matrix * gain).square().sum() for matrix in matrices)
        balance = rotation.balances[numbers[f"model.layers.{layer}.input_layernorm.weight"]]
        assert balance.item() == pytest.approx((before / after).sqrt().item(), rel=1e-6)
        assert balance > 5


def test_a_norms_gain_makes_up_for_lost_energy_and_for_the_mean_over_fewer_channels(tmp_path, random_scores):
    teacher, moments = prepared(tiny_checkpoint(tmp_path, "llama"), random_scores("llama"))
    rotation, basis = teacher.rotation, teacher.rotation.at(32, tied=False)
    name = "model.layers.1.post_attention_layernorm.weight"
    number = [place.name for place in stream_norms(teacher.layout, teacher.architecture)].index(name)
    kept = torch.trace(basis.matrix.T @ moments[name].double() @ basis.matrix) / 48
    expected = (kept * 48 / 32).sqrt() / rotation.balances[number]
    assert basis.gains[number].item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_norms_read_has_the_energy_of_one_per_channel():
    stream = torch.randn(5, 48) * 7 + 3
    for model_type in ("llama", "gpt2"):
        layout = open_layout(model_type)
        values = normalised(stream, layout)
        assert torch.allclose(values.square().mean(dim=1), torch.ones(5), atol=1e-5)
        assert (values.mean(dim=1).abs().max() < 1e-5) == layout.norm_centres


def open_layout(model_type):
    from minitron_nas.families.catalog import layout_of

    return layout_of(model_type)


@pytest.mark.parametrize(
    ("model_type", "tied", "reason"),
    [
        *((model_type, tied, None) for model_type in ROTATABLE for tied in (False, True)),
        *((model_type, False, None) for model_type in CENTRED),
        *((model_type, True, "LayerNorm's bias and mean") for model_type in (*CENTRED, "gpt2")),
        *((model_type, False, f"{model_type} has norms on what layers add") for model_type in NOT),
    ],
)
def test_families_that_cannot_be_rotated_say_why(source, model_type, tied, reason):
    shape = replace(source("llama").architecture, model_type=model_type, tie_word_embeddings=tied)
    found = why_not_rotatable(open_layout(model_type), shape)
    assert (found is None) == (reason is None)
    assert reason is None or found.startswith(reason)


def test_norms_on_what_layers_add_are_in_the_way_where_the_config_has_them(source):
    with_norms, without = (source("hyperclovax", use_post_norm=each).architecture for each in (True, False))
    layout = open_layout("hyperclovax")
    assert why_not_rotatable(layout, with_norms).startswith("hyperclovax has norms on what layers add")
    assert why_not_rotatable(layout, without) is None


def test_without_norms_that_have_gains_there_is_nothing_to_fold_a_basis_into(source):
    layout = open_layout("llama")
    bare = replace(layout, rows=tuple(row for row in layout.rows if not row.is_norm))
    reason = why_not_rotatable(bare, source("llama").architecture)
    assert reason == "llama has no norms with gains, into whose readers a basis could be folded"


def test_embeddings_that_are_multiplied_by_the_root_of_their_size_are_not_rotated(source):
    layout, architecture = replace(open_layout("llama"), scales_embeddings=True), source("llama").architecture
    reason = why_not_rotatable(layout, architecture)
    assert reason == "llama multiplies embeddings by the square root of hidden_size, which rotation leaves out"


def test_a_rotation_is_read_as_it_was_written(tmp_path, random_scores):
    teacher, _ = prepared(tiny_checkpoint(tmp_path, "nemotron"), random_scores("nemotron"))
    teacher.rotation.save(tmp_path / "again.safetensors")
    again = Rotation.load(tmp_path / "again.safetensors")
    one, other = (rotation.at(40, tied=False) for rotation in (teacher.rotation, again))
    assert torch.equal(one.matrix, other.matrix)
    assert torch.equal(one.readers, other.readers)


def test_where_no_channel_leaves_the_basis_stays(tmp_path, random_scores):
    teacher, _ = prepared(tiny_checkpoint(tmp_path, "llama"), random_scores("llama"))
    target = teacher.architecture.reshaped({"intermediate_size": 56})
    assert basis_of(teacher, target) is None
    plain = build_student(replace(teacher, rotation=None), target, torch.float32).state_dict()
    rotated = build_student(teacher, target, torch.float32).state_dict()
    assert all(torch.equal(plain[name], rotated[name]) for name in plain)
