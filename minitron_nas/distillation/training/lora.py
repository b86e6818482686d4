"""The door to peft: low-rank additions to a model's linear layers, merged into its weights at the end."""

from importlib.util import find_spec

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from minitron_nas.errors import PlanError
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.causal_lm import CausalLM

_ALPHA_PER_RANK = 2
_PLACE = "model"
"""Of the model in what peft is given, which has no `config`: by one it takes dense layers' matrices for experts'."""
_LINEAR = (nn.Linear.forward, Conv1D.forward)
"""What linear layers compute; a router that is built on one computes more."""


def require_peft() -> None:
    """Refuse to go on without peft.

    Raises:
        PlanError: If it is not installed; names the extra that brings it.
    """
    if find_spec("peft") is None:
        raise PlanError(
            "correct.weights=lora needs peft; pip install '.[lora]' in the checkout, or choose correct.weights=full"
        )


def add_adapters(model: CausalLM, rank: int, seed: int) -> None:
    """Add trainable low-rank matrices to all linear layers but the output head, and freeze everything else.

    The model's function is the same until they are trained. Experts that a model keeps in one tensor for
    all of them are no linear layers, and stay as they are; so do the output projections of mixers, whose
    kernels read the weight and would pass by what is added.

    Args:
        model: It is changed in place.
        rank: Of the additions.
        seed: Of their random half.

    Source: Hu et al. 2021 (arXiv 2106.09685).
    """
    from peft import LoraConfig, inject_adapter_in_model  # deferred: peft is an extra

    head, mixers = model.get_output_embeddings(), _mixer_outputs(model)
    targets = {
        name: module
        for name, module in model.named_modules()
        if type(module).forward in _LINEAR and module is not head and name not in mixers
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=_ALPHA_PER_RANK * rank,
        target_modules=[f"{_PLACE}.{name}" for name in targets],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in targets.values()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, nn.ModuleDict({_PLACE: model}))


def _mixer_outputs(model: CausalLM) -> set[str]:
    """Return the names of what writes to the residual stream beside attention and FFN."""
    layout = layout_of(model.config.model_type)
    layers = range(model.config.num_hidden_layers)
    return {layout.module_of(row).format(layer=layer) for row in layout.other_writers() for layer in layers}


def merge_adapters(model: CausalLM) -> None:
    """Add the trained matrices to the weights and leave the model as it was built, every weight trainable.

    Args:
        model: What `add_adapters` changed; it is changed back in place.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.requires_grad_(True)
