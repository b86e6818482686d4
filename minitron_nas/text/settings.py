"""Settings of text; no torch."""

from typing import Annotated, Literal

from pydantic import Field

from minitron_nas.settings import Settings


class TextSettings(Settings):
    """How text becomes tokens.

    Attributes:
        column: The column of a table that holds the text, or conversations, which go through the
            tokenizer's chat template. Where a table has no column `text` and none is named here, its
            `messages` or `conversations` are read.
        config: The hub dataset's configuration, where it has several; also of a clone whose card names them, and of a
            folder without a card the folder in it that is named after it.
        split: The hub dataset's split; also of a folder or glob whose files or folders are named after splits, where
            no other split is read. Several are joined by a plus.
        sequence_length: Tokens of one packed sequence.
        bos: Where the tokenizer begins a text with BOS, what else does: every `sequence` that begins inside a document,
            where it counts in no loss, or nothing but a `document`. Models such as Gemma 3 need it: perplexity of
            its 270M at 256 tokens is 27 with it and 111 without (`reports/benchmarks.md`, "BOS"). Other tokenizers are
            not concerned.
        calibration_samples: Sequences for importance scores, rotation and repair, at most a fifth of the text. SmolLM2
            wants 32,768 tokens, 21 for each neuron of an FFN (`reports/benchmarks.md`); 256 sequences of 2,048 are as
            many for FFNs of 25,000.
        validation_samples: Sequences for validation, at most a tenth of the text.
        max_epochs: How often training may repeat the text, or a source of a blend that runs dry, before
            it is called too short.
    """

    column: str = "text"
    config: str | None = None
    split: str = "train"
    sequence_length: Annotated[int, Field(ge=8, le=2**24)] = 2048
    bos: Literal["sequence", "document"] = "sequence"
    calibration_samples: Annotated[int, Field(ge=1)] = 256
    validation_samples: Annotated[int, Field(ge=1)] = 128
    max_epochs: Annotated[int, Field(ge=1)] = 1
