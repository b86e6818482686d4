"""Settings of evaluation; no torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeAlias

from pydantic import Field, StringConstraints, field_validator, model_validator

from minitron_nas.evaluation.tasks import OFFLINE, WrittenTask, expand
from minitron_nas.settings import Settings
from minitron_nas.text.data_source import OWN, NamedText

TextName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class EvaluationSettings(Settings):
    """What is measured of every model.

    Attributes:
        prompt_tokens: Tokens of the measured prefill, batch 1.
        decode_tokens: Tokens of the measured decoding, batch 1, with a key-value cache.
        repeats: Rounds, after one to warm up, in which a model and its teacher are timed in turns; medians count.
            While a spread is above a tenth there are as many again, up to three times as many.
        texts: Held-out texts of other kinds, by names: files, a folder or a hub dataset's name, or a mapping such as
            `{path: wiki.parquet, column: body, split: test}`. As many sequences of each are read as of the plan's own
            held-out text, and wherever a model's KL is measured it is the mean over all of them, in the search and in
            the choice of a training's best weights too; `texts.parquet` has that of each text.
        tasks: lm-eval tasks, as `name` or `name@examples`; `paper` for those of the Minitron papers, and `offline` for
            all that `include_path` holds.
        include_path: Folder of the user's own lm-eval task files.
        limit: Documents of each task; all without it.
        num_fewshot: Examples in the prompt where a task does not say it by itself; each task's own default without it.
        batch_size: Requests of one forward pass of a task.
        keep_answers: Whether prompts and answers of tasks are kept, in `answers.parquet`.
        run_generated_code: Whether tasks may run, on this machine, the programs that a model writes.
    """

    prompt_tokens: Annotated[int, Field(ge=2)] = 512
    decode_tokens: Annotated[int, Field(ge=1)] = 32
    repeats: Annotated[int, Field(ge=1)] = 5
    texts: dict[TextName, NamedText] = Field(default_factory=dict)
    tasks: tuple[WrittenTask, ...] = ()
    include_path: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 8
    keep_answers: bool = False
    run_generated_code: bool = False

    @field_validator("texts", mode="before")
    @classmethod
    def _paths_alone(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"path": text} if isinstance(text, str) else text for name, text in value.items()}

    @field_validator("texts")
    @classmethod
    def _no_name_twice(cls, value: dict[str, NamedText]) -> dict[str, NamedText]:
        if OWN in value:
            raise ValueError(f"{OWN!r} is what the plan's own text is called; call the other text otherwise")
        return value

    @field_validator("tasks")
    @classmethod
    def _presets_expanded(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return expand(value)

    @model_validator(mode="after")
    def _offline_from_a_folder(self) -> Self:
        if OFFLINE in self.tasks and self.include_path is None:
            raise ValueError(
                f"tasks={OFFLINE} takes all tasks of your own folder, and none is named; name it with include_path "
                "(lm-eval brings tasks but no data: its own read it from the hub)"
            )
        return self
