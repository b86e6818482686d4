"""`CausalLM`: a loaded model, as every function that takes one expects it."""

from typing import TypeAlias

from transformers import PreTrainedModel

CausalLM: TypeAlias = PreTrainedModel
"""A causal language model of transformers, with `get_decoder`, `get_output_embeddings` and a `config`."""
