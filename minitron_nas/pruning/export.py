"""Writing a student as a stock Hugging Face folder, and proving that it loads."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from minitron_nas.errors import ProofError
from minitron_nas.storage.atomic import whole_folder, write_json

PROOF = "proof.json"
LINEAGE = "lineage.json"
_SHARD_SIZE = "5GB"
_TOLERANCE = 1e-3
_TOP_LOGITS = 8
_COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "additional_chat_templates/*", "vocab.*", "merges.txt", "*.model", "generation_config.json", "LICENSE*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Proof:
    """What reloading a student showed.

    Attributes:
        max_abs_difference: Largest difference between the logits of the model in memory and of the
            folder reloaded through AutoModelForCausalLM without remote code.
        tolerance: The difference that is still accepted.
    """

    max_abs_difference: float
    tolerance: float


def export_student(
    model: Any, source: Path, folder: Path, dtype: torch.dtype, prompt: Tensor, lineage: Mapping[str, Any]
) -> Proof:
    """Write a student, reload it as a user would, and compare the logits.

    The folder appears only when the proof holds. It gets safetensors (sharded at 5 GB),
    `config.json`, `generation_config.json`, the source's tokenizer and chat template, `proof.json`
    with the prompt and its highest logits, so that anyone can repeat the comparison, and
    `lineage.json`.

    Args:
        model: The student in memory; it is cast to `dtype`.
        source: The stock folder whose tokenizer and generation settings the student takes over.
        folder: Where it goes.
        dtype: Of the stored weights.
        prompt: (1, seq_len), token ids.
        lineage: Where the student comes from; the proof is added to it.

    Raises:
        ProofError: If the reloaded model gives other logits.
    """
    model = model.cpu().eval()
    # Parameters only: rotary frequencies are buffers, which stock loading leaves in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    expected = _logits(model, prompt)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial, max_shard_size=_SHARD_SIZE)
        for file in [file for pattern in _COPIED for file in source.glob(pattern)]:
            copy = partial / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
        reloaded = AutoModelForCausalLM.from_pretrained(partial, dtype=dtype, trust_remote_code=False).eval()
        difference = (_logits(reloaded, prompt) - expected).abs().max().item()
        if not difference <= _TOLERANCE:
            raise ProofError(
                f"the student written to {folder} gives logits that differ by {difference:.3g} from the model in "
                f"memory (at most {_TOLERANCE} is accepted); nothing was left there; please report this"
            )
        proof = Proof(difference, _TOLERANCE)
        write_json(partial / PROOF, _proof_record(expected, prompt, proof, dtype))
        write_json(partial / LINEAGE, {**lineage, "proof": asdict(proof)})
    return proof


@torch.no_grad()
def _logits(model: Any, prompt: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=prompt, use_cache=False).logits
    return logits.float()


def _proof_record(logits: Tensor, prompt: Tensor, proof: Proof, dtype: torch.dtype) -> dict[str, Any]:
    values, ids = logits[0].topk(_TOP_LOGITS, dim=-1)
    return {
        "input_ids": prompt.tolist(),
        "dtype": str(dtype).removeprefix("torch."),
        "top_logit_ids": ids.tolist(),
        "top_logits": values.tolist(),
        "max_abs_difference": proof.max_abs_difference,
        "tolerance": proof.tolerance,
    }
