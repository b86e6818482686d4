"""`TrainedMember`: one model of a run, as the stages that follow its training see it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeAlias

from minitron_nas.storage.lineage import Proof

Role: TypeAlias = Literal["teacher", "student", "depth_baseline", "random_baseline"]


@dataclass(frozen=True, slots=True)
class TrainedMember:
    """A model with what its training has shown.

    Attributes:
        name: "teacher", the size's label, that of a further student with -2, -3 ..., or of a baseline with -depth or
            -random.
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
