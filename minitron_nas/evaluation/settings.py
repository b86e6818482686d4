"""Settings of evaluation; no torch."""

from typing import Annotated

from pydantic import Field

from minitron_nas.settings import Settings


class EvaluationSettings(Settings):
    """What is measured of every model.

    Attributes:
        prompt_tokens: Tokens of the measured prefill, batch 1.
        decode_tokens: Tokens of the measured decoding, batch 1, with a key-value cache.
        repeats: Rounds, after one to warm up, in which a model and its teacher are timed in turns; medians count.
            While a spread is above a tenth there are as many again, up to three times as many.
        tasks: lm-eval tasks.
        include_path: Folder of the user's own lm-eval task files.
        limit: Documents of each task; all without it.
        num_fewshot: Examples in the prompt; each task's own default without it.
        batch_size: Requests of one forward pass of a task.
    """

    prompt_tokens: Annotated[int, Field(ge=2)] = 512
    decode_tokens: Annotated[int, Field(ge=1)] = 32
    repeats: Annotated[int, Field(ge=1)] = 5
    tasks: tuple[str, ...] = ()
    include_path: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 8
