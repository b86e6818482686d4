"""Gemma 4 12B: the dense Gemma 4's tensors, in a model that takes pictures and sound without towers."""

from dataclasses import replace

from minitron_nas.families import gemma4_text

LAYOUT = replace(
    gemma4_text.LAYOUT,
    model_type="gemma4_unified_text",
    requires={**gemma4_text.LAYOUT.requires, "num_kv_shared_layers": (0,)},
    reasons={
        **gemma4_text.LAYOUT.reasons,
        "num_kv_shared_layers": "no such model has layers that read the keys and values of others",
    },
)
