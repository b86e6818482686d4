"""Masks for models that do not look for the borders of packed documents."""

import torch

from minitron_nas.distillation.signals.teacher import final_hidden
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.borders import border_masks
from minitron_nas.models.layer_model import decoder_layers, embed, layer_input, run_layer
from minitron_nas.testing import tiny_config, tiny_model

POSITIONS = torch.tensor([[0, 1, 2, 0, 1]])
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def test_a_model_that_finds_borders_itself_is_given_nothing() -> None:
    assert border_masks(tiny_model(tiny_config("llama")), POSITIONS) == {}


def test_a_model_that_does_not_is_given_a_mask_for_each_kind_of_its_layers() -> None:
    masks = border_masks(tiny_model(tiny_config("gpt_oss", sliding_window=2)), POSITIONS)["attention_mask"]
    seen = {kind: (mask[0, 0] == 0).int().tolist() for kind, mask in masks.items()}
    assert seen == {
        "full_attention": [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
        "sliding_attention": [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
    }


def test_the_second_of_two_documents_is_what_it_is_alone_in_the_whole_model_and_in_a_layer() -> None:
    model, layout = tiny_model(tiny_config("gpt_oss")), layout_of("gpt_oss")
    packed, alone = final_hidden(model, IDS, POSITIONS), final_hidden(model, IDS[:, 3:], POSITIONS[:, 3:])
    torch.testing.assert_close(packed[:, 3:], alone)
    read: list[torch.Tensor] = []
    (last,) = decoder_layers(model, layout, [3])
    with last.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(layer_input(args, kwargs)), with_kwargs=True
    ):
        final_hidden(model, IDS, POSITIONS)
    model.get_decoder().layers = model.get_decoder().layers[:1]
    states = embed(model, layout, IDS, POSITIONS)
    together = run_layer(model, layout, states, POSITIONS)
    torch.testing.assert_close(together[:, 3:], run_layer(model, layout, states[:, 3:], POSITIONS[:, 3:]))
