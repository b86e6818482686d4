"""Writing a student as a stock Hugging Face folder, and proving that it loads."""

import copy
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from minitron_nas.architecture.rules import check_architecture
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import ProofError
from minitron_nas.memory import available_memory
from minitron_nas.models.causal_lm import CausalLM, logits_of
from minitron_nas.models.checks import check_tensors
from minitron_nas.models.expected import ExpectedTensors
from minitron_nas.models.hub import TERMS
from minitron_nas.models.special_floats import tagged_floats
from minitron_nas.models.stock import DTYPES
from minitron_nas.models.stock_config import finished_config, save_stock
from minitron_nas.models.text_part import read_text_headers
from minitron_nas.models.tower import tower_in
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.parts import num_bytes, total_bytes
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student, cuts, student_config
from minitron_nas.pruning.whole import put_into_wrapper, tower_parts
from minitron_nas.pruning.write import surgery_key, write_weights
from minitron_nas.storage.atomic import require_free_bytes, whole_folder, write_json
from minitron_nas.storage.lineage import PROOF, Lineage, Proof
from minitron_nas.storage.weights import INDEX, TensorHeader
from minitron_nas.text.tokens import PackedTokens

_GENERATION = "generation_config.json"
_TOLERANCE = 1e-3
_TOP_LOGITS = 8
_TEXT_PART = ".text"
_MODELS_IN_A_PROOF = 3
"""The student in memory, the reloaded one, and room for what loading takes."""
_COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "additional_chat_templates/*", "vocab.*", "merges.txt", "*.model", _GENERATION, *TERMS,
)  # fmt: skip
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What says how pictures become numbers."""


PROOF_TOKENS = 16
"""Tokens of the prompt on which a student's reloaded logits are compared."""


def export_student(
    model: CausalLM,
    source: Path,
    folder: Path,
    dtype: torch.dtype,
    prompt: Tensor,
    lineage: Lineage,
    wrapper: Path | None = None,
) -> Proof:
    """Write a student that lives in memory, reload it as a user would, and compare the logits.

    The folder appears only when the proof holds. It gets safetensors (sharded at 5 GB),
    `config.json`, `generation_config.json`, the source's tokenizer, chat template and terms of use,
    `proof.json` with the prompt and its highest logits, so that anyone can repeat the comparison, and
    `lineage.json`.

    Args:
        model: The student in memory; it is cast to `dtype`.
        source: The stock folder whose tokenizer, generation settings and terms of use the student takes over.
        folder: Where it goes.
        dtype: Of the stored weights.
        prompt: (1, seq_len), token ids.
        lineage: Where the student comes from; the proof is added to it.
        wrapper: The folder of the wrapper that it is written inside; a text model is written without it.

    Raises:
        ProofError: If the reloaded model gives other logits.
    """
    model.cpu().eval()
    # Parameters only: rotary frequencies are buffers, which stock loading leaves in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with whole_folder(folder) as partial, _text_part(partial, wrapper, folder, silent) as text:
        save_stock(_with_generation_of(source, model), text)
        copy_companions(source, text)
        proof = _prove(text, folder, model, dtype, prompt)
        _beside_tower(lineage, wrapper).write(text, proof)
    return proof


def write_student(
    prepared: PreparedTeacher,
    target: Architecture,
    folder: Path,
    lineage: Lineage,
    repaired: Mapping[str, TensorHeader] | None = None,
    progress: Progress = silent,
    *,
    text_only: bool = True,
) -> Proof | None:
    """Cut an untrained student out of a teacher's files, tensor by tensor, into a folder as above.

    The weights keep the teacher's type and never lie in memory as a whole; a killed attempt goes on
    where it was, unless files that it reads were written again since, as those of repaired tensors are
    by another repair. The result is checked against the family's table. Where memory has room for it,
    the folder is also reloaded as a user would, and its logits are compared with those of the student
    built in memory, on tokens that are drawn by the lineage's seed.

    Args:
        prepared: The ranked teacher.
        target: A shape no larger than the teacher's.
        folder: Where it goes; it appears when it is whole.
        lineage: Where the student comes from; the proof is added to it.
        repaired: Tensors of the student that stand ready in a file, by name.
        progress: Told the number of bytes written and verified.
        text_only: Whether it is written as a text model; else inside the wrapper that the teacher's folder holds.

    Returns:
        The proof, or None where memory is too small for it.

    Raises:
        InvalidArchitectureError: If stock transformers would refuse the shape.
        DiskSpaceError: If the disk cannot hold the student.
        CheckpointError: If the disk gives back other bytes than were written.
        ProofError: If the reloaded model gives other logits.
    """
    check_architecture(target, prepared.layout, prepared.architecture)
    prompt = _drawn_prompt(target.vocab_size, lineage.seed or 0)
    parts = cuts(prepared, target, repaired)
    dtype = _most((part.dtype, num_bytes(part)) for part in parts)
    config = finished_config(student_config(prepared, target), str(dtype).removeprefix("torch."))
    wrapper, tower = (None, []) if text_only else (prepared.path, tower_parts(prepared.path))
    with (
        whole_folder(folder, surgery_key([*parts, *tower], config)) as partial,
        _text_part(partial, wrapper, folder, progress) as text,
    ):
        if wrapper is not None:
            _require_room_for_both(partial, total_bytes(parts), total_bytes(tower))
        write_weights(parts, text, progress)
        write_json(text / "config.json", tagged_floats(config))
        copy_companions(prepared.path, text)
        check_tensors(text, ExpectedTensors.of(prepared.settled(target), prepared.layout))
        proof = None
        if _MODELS_IN_A_PROOF * total_bytes([*parts, *tower]) <= available_memory():
            proof = _prove(text, folder, build_student(prepared, target, dtype, repaired).eval(), dtype, prompt)
        _beside_tower(lineage, wrapper).write(text, proof)
    return proof


@contextmanager
def _text_part(partial: Path, wrapper: Path | None, folder: Path, progress: Progress) -> Iterator[Path]:
    """Give the folder for a student's text model; unless that is all, it goes into the wrapper afterwards."""
    if wrapper is None:
        yield partial
        return
    text = partial / _TEXT_PART
    text.mkdir(exist_ok=True)
    yield text
    put_into_wrapper(text, wrapper, partial, folder, progress)
    copy_companions(wrapper, partial, _PROCESSORS)
    for file in text.iterdir():
        if not (partial / file.name).exists() and not file.name.endswith((".safetensors", INDEX)):
            file.rename(partial / file.name)
    shutil.rmtree(text)


def _beside_tower(lineage: Lineage, wrapper: Path | None) -> Lineage:
    """Return the lineage of a student inside a wrapper, which says how large what stands beside it is."""
    tower = tower_in(wrapper) if wrapper is not None else None
    return lineage if tower is None else replace(lineage, num_tower_parameters=tower.num_parameters)


def _require_room_for_both(partial: Path, text_bytes: int, tower_bytes: int) -> None:
    """Refuse a student that the disk cannot hold alone and inside its wrapper, which lie side by side for a while."""
    written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    purpose = "the student's weights, alone and inside the wrapper,"
    require_free_bytes(partial, max(2 * text_bytes + tower_bytes - written, 0), purpose)


def proof_prompt(validation: PackedTokens) -> Tensor:
    """Return the tokens, (1, seq_len), over which a student that is reloaded must say what it said before.

    Args:
        validation: Held-out sequences, of which the first is taken.
    """
    return validation.first(1).in_memory().input_ids[:, :PROOF_TOKENS]


def _drawn_prompt(vocab_size: int, seed: int) -> Tensor:
    """The same where there is no text: any tokens."""
    return torch.randint(0, vocab_size, (1, PROOF_TOKENS), generator=torch.Generator().manual_seed(seed))


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype in which a checkpoint stores most of its values.

    Args:
        folder: The checkpoint.
    """
    return _most((header.dtype, header.num_bytes) for header in read_text_headers(folder).values())


def _most(stored: Iterable[tuple[str, int]]) -> torch.dtype:
    """The type that most bytes are of."""
    sizes: dict[str, int] = {}
    for dtype, size in stored:
        sizes[dtype] = sizes.get(dtype, 0) + size
    return DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]), torch.float32)


def _with_generation_of(source: Path, model: CausalLM) -> CausalLM:
    """The same model without a generation config of its own if the source has one, which is copied as it is.

    transformers refuses to save one that contradicts itself, as published ones do.
    """
    if not (source / _GENERATION).is_file():
        return model
    twin = copy.copy(model)
    twin.generation_config = GenerationConfig()
    return twin


def copy_companions(source: Path, folder: Path, patterns: Sequence[str] = _COPIED) -> None:
    """Copy what lies beside a model's weights: tokenizer, chat template, generation settings and terms of use.

    Args:
        source: A stock folder; folders in it are others', whatever their names.
        folder: An existing folder.
        patterns: Names of what is copied; of a text model's by default.
    """
    for file in [file for pattern in patterns for file in source.glob(pattern) if file.is_file()]:
        place = folder / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)


def _prove(folder: Path, told: Path, model: CausalLM, dtype: torch.dtype, prompt: Tensor) -> Proof:
    expected = logits_of(model, prompt)
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
    difference = (logits_of(reloaded, prompt) - expected).abs().max().item()
    if not difference <= _TOLERANCE:
        raise ProofError(
            f"the student that was to be {told} gives logits that differ by {difference:.3g} from the model in memory "
            f"(at most {_TOLERANCE} is accepted); it was not given its name; please report this"
        )
    values, ids = expected[0].topk(_TOP_LOGITS, dim=-1)
    record = {
        "input_ids": prompt.tolist(),
        "dtype": str(dtype).removeprefix("torch."),
        "top_logit_ids": ids.tolist(),
        "top_logits": values.tolist(),
        "max_abs_difference": difference,
        "tolerance": _TOLERANCE,
    }
    write_json(folder / PROOF, record)
    return Proof(difference, _TOLERANCE)
