"""Tokens that a step has kept are those of the text as it is."""

import pytest

from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.steps.text import read_splits
from minitron_nas.progress import silent
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.settings import TextSettings

TEXT = TextSettings(sequence_length=16, calibration_samples=4, validation_samples=2)
CHANGES = {
    "a file is rewritten": lambda folder: (folder / "a.jsonl").write_text(written("other", 80)),
    "a file is added": lambda folder: (folder / "c.jsonl").write_text(written("third", 80)),
    "a file goes": lambda folder: (folder / "b.jsonl").unlink(),
    "a file is renamed into another split": lambda folder: (folder / "b.jsonl").rename(folder / "b-test.jsonl"),
    "a line is added": lambda folder: (folder / "a.jsonl").write_text(written("first", 80) + '{"text": "more"}'),
}


def written(word, num_lines):
    return "".join(f'{{"text": "{word} {number} of the stones is round."}}\n' for number in range(num_lines))


@pytest.mark.parametrize("change", CHANGES)
def test_changed_text_is_read_anew_and_unchanged_text_is_not(tmp_path, change):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama"))
    folder = tmp_path / "text"
    folder.mkdir()
    for name, word in (("a.jsonl", "first"), ("b.jsonl", "second")):
        (folder / name).write_text(written(word, 80))

    def read():
        return read_splits(tmp_path / "work", str(folder), checkpoint, TEXT, 64, 0, silent)

    first = read()
    assert read().train.fingerprint == first.train.fingerprint
    assert len(list((tmp_path / "work").glob("tokens-*"))) == 1
    CHANGES[change](folder)
    read()
    assert len(list((tmp_path / "work").glob("tokens-*"))) == 2
