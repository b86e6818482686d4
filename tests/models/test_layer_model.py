import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.families.catalog import layouts
from minitron_nas.importance.baselines import random_scores
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.layer_model import embed, layer_model, release_weights, run_layer, states_of
from minitron_nas.models.loading import load_stock
from minitron_nas.models.stock import read_tensor
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.parts import whole
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.student import build_student, cuts, student_config
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.packing import pack

IDS = torch.randint(0, 320, (36,), generator=torch.Generator().manual_seed(0)).numpy()
TEXT = pack([IDS[:7], IDS[7:20], IDS[20:]], 12)
"""Three sequences; documents end inside two of them."""


MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5}
VARIANTS = {
    "gemma2": (MIXED,),
    "gemma3_text": (MIXED,),
    "llama": ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},),
    "mistral": ({"sliding_window": 5},),
    "qwen2": ({**MIXED, "use_sliding_window": True},),
    "smollm3": ({"no_rope_layers": [1, 0, 0, 1]},),
}
KINDS = [
    pytest.param(model_type, changes, id="-".join([model_type, *changes]))
    for model_type in layouts()
    for changes in ({}, *VARIANTS.get(model_type, ()))
]


@pytest.mark.parametrize(("model_type", "changes"), KINDS)
@torch.no_grad()
def test_the_layers_one_by_one_compute_what_the_whole_model_does_to_the_bit(tmp_path, model_type, changes):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, model_type, **changes))
    whole_model = load_stock(tmp_path, torch.float32)
    layout, seen = checkpoint.layout, []
    for layer in range(4):
        module = whole_model.get_submodule(layout.layer_module.format(layer=layer))
        module.register_forward_hook(lambda _, __, output: seen.append(states_of(output)))
    final_hidden(whole_model, TEXT.input_ids, TEXT.position_ids)
    states = embed(whole_model, layout, TEXT.input_ids, TEXT.position_ids)
    for layer in range(4):
        model = layer_model(
            lambda name: read_tensor(checkpoint.headers[name]),
            checkpoint.config,
            checkpoint.architecture,
            layout,
            layer,
            torch.float32,
        )
        states = run_layer(model, layout, states, TEXT.position_ids)
        assert torch.equal(states, seen[layer])


@torch.no_grad()
def test_a_students_layer_is_made_of_what_is_cut_for_it(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "qwen2", tied=True))
    source, layout = checkpoint.architecture, checkpoint.layout
    write_prepared(tmp_path / "prepared", PruningOrder.from_scores(random_scores(source, layout, 0), source, (0,)))
    prepared = PreparedTeacher.open(tmp_path, tmp_path / "prepared")
    target = source.reshaped({"num_hidden_layers": 3, "hidden_size": 36, "intermediate_size": 50})
    student = build_student(prepared, target, torch.float32)
    parts = {part.name: part for part in cuts(prepared, target)}
    states = embed(student, layout, TEXT.input_ids, TEXT.position_ids)
    for layer in range(3):
        config = student_config(prepared, target)
        model = layer_model(lambda name: whole(parts[name]), config, target, layout, layer, torch.float32)
        states = run_layer(model, layout, states, TEXT.position_ids)
    expected = final_hidden(student, TEXT.input_ids, TEXT.position_ids)
    assert torch.equal(student.model.norm(states), expected)


@torch.no_grad()
def test_an_embedding_of_some_rows_gives_what_the_whole_one_gives(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "gpt2", tied=True))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tensors = {name: read_tensor(header) for name, header in checkpoint.headers.items()}
    vocabulary, rows = TEXT.input_ids.unique(return_inverse=True)
    embedding = tensors["transformer.wte.weight"][vocabulary]
    first = layer_model(
        tensors.__getitem__, checkpoint.config, checkpoint.architecture, checkpoint.layout, 0, torch.float32, embedding
    )
    positions = TEXT.position_ids
    expected = model.transformer.wte(TEXT.input_ids) + model.transformer.wpe(positions)
    assert torch.equal(embed(first, checkpoint.layout, rows, positions), expected)


def test_hooks_on_the_layer_see_the_states_that_are_given_and_none_stays(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "llama"))
    tensors = {name: read_tensor(header) for name, header in checkpoint.headers.items()}
    shape, layout = checkpoint.architecture, checkpoint.layout
    model = layer_model(tensors.__getitem__, checkpoint.config, shape, layout, 2, torch.float32)
    states, seen = torch.randn(3, 12, 48), []
    handle = model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        run_layer(model, layout, states, TEXT.position_ids)
        embed(model, layout, torch.zeros_like(TEXT.input_ids), TEXT.position_ids)
    handle.remove()
    assert seen[0] is states
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("model_type", layouts())
def test_released_weights_are_gone_while_the_model_is_still_there(tmp_path, model_type):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, model_type))
    tensors = {name: read_tensor(header) for name, header in checkpoint.headers.items()}
    shape, layout = checkpoint.architecture, checkpoint.layout
    model = layer_model(tensors.__getitem__, checkpoint.config, shape, layout, 1, torch.float32)
    parameters = [weakref.ref(parameter) for parameter in model.parameters()]
    release_weights(model)
    assert len(parameters) >= 6
    assert not any(parameter() is not None for parameter in parameters)


def test_a_layers_model_is_as_small_as_the_layer(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "llama"))
    tensors = {name: read_tensor(header) for name, header in checkpoint.headers.items()}
    shape, layout = checkpoint.architecture, checkpoint.layout
    model = layer_model(tensors.__getitem__, checkpoint.config, shape, layout, 2, torch.bfloat16)
    layer = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("model.layers.2."))
    assert sum(parameter.numel() for parameter in model.parameters()) == layer + 48 + 2 * 8 * 48
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
