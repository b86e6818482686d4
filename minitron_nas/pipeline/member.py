"""`TrainedMember`: one model of a run, as the stages that follow its training see it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeAlias

from minitron_nas.storage.lineage import Proof

Baseline: TypeAlias = Literal["depth_only", "random_shape", "largest_shape", "random_weights"]
"""What a student is held against: its source with whole layers dropped and nothing else; a shape of the pool drawn at
random, and the one with the most parameters, cut and trained as it is; its own shape without the source's weights."""

DEFAULT_BASELINES: tuple[Baseline, ...] = ("depth_only", "random_shape")

Role: TypeAlias = Literal["teacher", "student", Baseline]


def member_name(size: str, role: Role, number: int = 1) -> str:
    """Return what a model is called.

    Args:
        size: The label of its size.
        role: What it is in the family; not the teacher.
        number: Which of the size's students it is, from 1.

    Returns:
        The size's label, that of a further student with -2, -3 ..., that of a baseline with its role: `4B-depth-only`.
    """
    if role != "student":
        return f"{size}-{role.replace('_', '-')}"
    return size if number == 1 else f"{size}-{number}"


@dataclass(frozen=True, slots=True)
class TrainedMember:
    """A model with what its training has shown.

    Attributes:
        name: "teacher", or what `member_name` says.
        role: What it is in the family.
        size: The label of its size; None for the teacher.
        path: Its stock folder, relative to the run folder where it lies inside.
        tokens_trained: KD tokens of its own distillation; None for the teacher, like what follows.
        exported_tokens: KD tokens after which its weights were reached: those of the best validation.
        untrained_kl_nats: Validation KL to the first teacher before it.
        proof: What reloading it showed.
    """

    name: str
    role: Role
    size: str | None
    path: str
    tokens_trained: int | None = None
    exported_tokens: int | None = None
    untrained_kl_nats: float | None = None
    proof: Proof | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned."""
        proof = values["proof"]
        return cls(**{**values, "proof": None if proof is None else Proof(**proof)})
