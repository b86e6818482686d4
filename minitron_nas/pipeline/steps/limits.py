"""`CompareLimits`: how far the second of two models or runs may be from the first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from minitron_nas.errors import PlanError
from minitron_nas.settings import Settings, plan_error
from minitron_nas.storage.plain_yaml import load_yaml


class CompareLimits(Settings):
    """How far the second of two models may be from the first; null asks for nothing.

    The defaults let the same model pass that is stored in another type or in other files. What a compressed model has
    to keep to is up to who ships it, such as `kl_nats=0.6`, `loss_increase_nats=0.4`, `agreement_share=0.2`,
    `decode_speedup=1.3`.

    Attributes:
        kl_nats: The most KL(first || second) a token; of two runs the most by which a member's KL may rise.
        loss_increase_nats: The most by which the next-token loss may rise.
        agreement_share: The least share of greedily written tokens that are the first model's, up to the first that is
            not, on average over prompts; of two runs the least tokens that are the teacher's, over those of the first
            run's member.
        ended_drop: The most by which the share may fall of texts that a model ends by itself within 128 tokens.
        parameters_ratio: The most parameters over the first model's.
        memory_ratio: The most memory while generating over the first model's.
        prefill_speedup: The least tokens per second of a prompt over the first model's, timed in turns; of two runs,
            which are not timed again, a member's speed over its own teacher's takes the place of its speed.
        decode_speedup: The same of decoding.
        task_drop: The most by which an lm-eval metric may fall that is a mean over documents and is to be high, such as
            accuracy. A fall beyond it counts where it is beyond by more than 1.96 standard errors, those of the
            differences on the same documents.
        differing_settings: The most settings beside the weights that differ of a kind: chat template, special tokens,
            how text is generated, how long it may be. Null lets a model be held against the one that was aligned.
    """

    kl_nats: Annotated[float, Field(ge=0)] | None = 0.02
    loss_increase_nats: float | None = 0.02
    agreement_share: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    ended_drop: Annotated[float, Field(ge=0)] | None = None
    parameters_ratio: Annotated[float, Field(gt=0)] | None = None
    memory_ratio: Annotated[float, Field(gt=0)] | None = None
    prefill_speedup: Annotated[float, Field(gt=0)] | None = None
    decode_speedup: Annotated[float, Field(gt=0)] | None = None
    task_drop: float | None = None
    differing_settings: Annotated[int, Field(ge=0)] | None = 0

    @property
    def asks_for_speed(self) -> bool:
        """Whether models have to be timed."""
        return not self.memory_ratio is self.prefill_speedup is self.decode_speedup is None


def read_limits(path: Path | None, given: Sequence[str]) -> CompareLimits:
    """Read limits from a YAML file and from `name=value` strings, which come last.

    Args:
        path: The file; None for none.
        given: Such as `kl_nats=0.6`.

    Raises:
        PlanError: If the file cannot be read, or a limit is unknown or no number.
    """
    content: Any = {}
    if path is not None:
        try:
            content = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise PlanError(f"{path} cannot be read as limits: {error}") from None
        if not isinstance(content, dict):
            raise PlanError(f"{path} must hold a mapping such as 'kl_nats: 0.6'")
    named: set[str] = set()
    for one in given:
        name, separator, value = (word.strip() for word in one.partition("="))
        if not separator:
            raise PlanError(f"--limit {one!r} is not of the form name=value, such as kl_nats=0.6")
        if name in named:
            raise PlanError(f"--limit names {name} twice; keep one")
        named.add(name)
        try:
            content = {**content, name: load_yaml(value)}
        except ValueError as error:
            raise PlanError(f"--limit {one!r}: the value is not YAML: {error}") from None
    try:
        return CompareLimits.model_validate(content)
    except ValidationError as error:
        raise plan_error(error, CompareLimits, "limits") from None
