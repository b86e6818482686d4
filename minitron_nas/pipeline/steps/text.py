"""The text of a step that stands alone."""

from contextlib import suppress
from pathlib import Path

from transformers import AutoTokenizer

from minitron_nas.errors import CheckpointError
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.progress import Progress
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import Data, data_fingerprint
from minitron_nas.text.splits import TextReader, TokenSplits, split_text


def read_splits(
    work: Path,
    data: Data,
    teacher: Checkpoint,
    text: TextSettings,
    tokens: int | None,
    seed: int,
    progress: Progress,
) -> TokenSplits:
    """Read, split and pack the text of a step that stands alone; repeated, it finds what is done already.

    Args:
        work: A folder of the step.
        data: The text.
        teacher: Whose tokenizer reads it.
        text: How text becomes tokens.
        tokens: Training tokens needed, or None for one pass over the text.
        seed: Decides the order of documents.
        progress: Told about tokens.

    Raises:
        DataError: If the text is missing or too short.
        PlanError: If the teacher knows fewer positions than a sequence has.
    """
    teacher.require_length(text.sequence_length)
    inputs = {"data": data_fingerprint(data, text), "text": text.model_dump(), "tokens": tokens, "seed": seed}
    folder = work / f"tokens-{fingerprint({**inputs, 'teacher': teacher.fingerprint})}"
    with suppress(CheckpointError):  # nothing is there, or not what was written
        return TokenSplits.load(folder, verify=True)
    reader = TextReader(AutoTokenizer.from_pretrained(teacher.path), teacher.architecture.vocab_size, text)
    split_text(data, reader, seed, tokens, folder, progress=progress)
    return TokenSplits.load(folder)
