"""Settings of evaluation; no torch."""

from typing import Annotated

from pydantic import Field

from minitron_nas.settings import Settings


class EvaluationSettings(Settings):
    """What is measured of every model.

    Attributes:
        prompt_tokens: Tokens of the measured prefill, batch 1.
        decode_tokens: Tokens of the measured decoding, batch 1, with a key-value cache.
        repeats: The median of this many measurements counts, after one warm-up.
        tasks: lm-eval tasks.
        include_path: Folder of the user's own lm-eval task files.
        limit: Documents of each task; all without it.
        num_fewshot: Examples in the prompt; each task's own default without it.
        batch_size: Requests of one forward pass of a task.
    """

    prompt_tokens: Annotated[int, Field(ge=2)] = 512
    decode_tokens: Annotated[int, Field(ge=1)] = 64
    repeats: Annotated[int, Field(ge=1)] = 3
    tasks: tuple[str, ...] = ()
    include_path: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 8
