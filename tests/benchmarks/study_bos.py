"""What BOS at the beginning of every sequence is worth: `python tests/benchmarks/study_bos.py TEACHER TEXT.jsonl`.

Prints the perplexity of the same text in sequences of 256 tokens, with BOS where a sequence begins inside a document
and without it. Documents begin with BOS in both.
"""

import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer

from minitron_nas.distillation.loss.validation import validate
from minitron_nas.models.loading import load_for_inference
from minitron_nas.models.source import resolve_teacher
from minitron_nas.text.packing import pack
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import read_in_order
from minitron_nas.text.token_log import TokenStream
from minitron_nas.text.tokenization import tokenize

SEQUENCE_LENGTH = 256


def main(teacher: str, text: str) -> None:
    """Measure both."""
    with TemporaryDirectory() as work:
        checkpoint = resolve_teacher(teacher, Path(work), compare=False)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        stream = tokenize(read_in_order(text, TextSettings()), tokenizer, checkpoint.architecture.vocab_size)
        documents, model = list(stream), load_for_inference(checkpoint.path)
    for name, bos in (("sequence", stream.bos), ("document", None)):
        tokens = pack(TokenStream(documents, bos), SEQUENCE_LENGTH)
        perplexity = math.exp(validate(model, tokens, None).loss_nats)
        print(f"text.bos={name}: perplexity {perplexity:.1f}, {tokens.num_tokens:,} tokens", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
