"""How much memory it takes to read, split and pack text: 5 and 20 million tokens in a process of their own.

Prints the growth of the resident set, which the text must not decide.
"""

import subprocess
import sys
from pathlib import Path

import pytest

NUM_TOKENS = (5_000_000, 20_000_000)
SEQ_LEN = 2048
MAX_GROWTH_BYTES = 100e6

READ = f"""
import resource, sys, time
import numpy as np
from pathlib import Path
from minitron_nas.text import splits
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.splits import TextReader, TokenSplits, split_documents
from minitron_nas.text.sources import TextSource

# Tokens stand in for the tokenizer's, whose speed and memory are not what is measured.
splits.tokenize = lambda documents, tokenizer, vocab_size: documents

def documents(num_tokens):
    generator = np.random.default_rng(0)
    while num_tokens > 0:
        piece = generator.integers(0, 49152, size=generator.integers(50, 3000))
        num_tokens -= len(piece)
        yield piece

def resident():
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return [int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmHWM", "VmRSS")]

folder, num_tokens = Path(sys.argv[1]), int(sys.argv[2])
settings = TextSettings(sequence_length={SEQ_LEN}, calibration_samples=64, validation_samples=64)
sources = [TextSource("synthetic", None, 1.0, settings)]
before, started = resident()[2], time.perf_counter()
split_documents(sources, [documents(num_tokens)], TextReader(None, 49152, settings), None, folder)
tokens = TokenSplits.load(folder).train
seconds = time.perf_counter() - started
written = resident()
for _, batch in tokens.batches(4):
    batch.labels()
read = resident()
print(tokens.num_tokens, seconds, written[1] - before, read[1] - before, (folder / "train.safetensors").stat().st_size)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_for_text_does_not_grow_with_the_text(tmp_path: Path) -> None:
    growth = {}
    for num_tokens in NUM_TOKENS:
        command = [sys.executable, "-c", READ, str(tmp_path / str(num_tokens)), str(num_tokens)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found, seconds, written, read, size = (float(word) for word in output)
        growth[num_tokens] = written
        print(
            f"{found:,.0f} training tokens split and packed in {seconds:.0f} s into {size / 1e6:.0f} MB; peak resident "
            f"set grew by {written / 1e6:.0f} MB while writing, and by {read / 1e6:.0f} MB once all was read back, "
            "mapped pages of the file included"
        )
    assert max(growth.values()) < MAX_GROWTH_BYTES + 4 * NUM_TOKENS[1]  # pages of the log and of the file
