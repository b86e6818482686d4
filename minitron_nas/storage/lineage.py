"""`Lineage`: where a model that was written here comes from, as `lineage.json` in its folder says it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from minitron_nas.errors import RunFolderError
from minitron_nas.storage.atomic import read_json, write_json
from minitron_nas.storage.places import last_parts

LINEAGE = "lineage.json"
PROOF = "proof.json"
"""What a prompt gave, so that anyone can repeat the comparison."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Another model, by its name and fingerprint; None where that is not known."""

    name: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What reloading a student showed.

    Attributes:
        max_abs_difference: Largest difference between the logits of the model in memory and of the
            folder reloaded through AutoModelForCausalLM without remote code.
        tolerance: The difference that is still accepted.
    """

    max_abs_difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the reloaded model is the one that was written."""
        return self.max_abs_difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a model comes from; what does not apply to it, or is not known, is None or empty.

    Attributes:
        teacher: Whom it learned from, or was cut out of.
        source: The model that it was pruned from; of a student that was distilled by itself, what that began as.
        corrected: The teacher that it is the correction of.
        size: Label of its size.
        role: What it is in its family.
        architecture: Its shape.
        source_architecture: The shape that it was pruned from.
        kept_layers: Layers of the source that it consists of, ascending.
        depth: How these were chosen.
        scores: Where the ranking of everything else comes from.
        start: What it was before training: `channels`, `repair`, `merge_heads`.
        correction: How its teacher was corrected.
        alignment: Of a student that was aligned: method, data, cost.
        num_tower_parameters: Of what looks at pictures beside its text part; None of a text model.
        tokens_trained: Tokens of its own training.
        exported_tokens: Of these, those after which its weights were reached: the best validation.
        learning_rate: The peak of it.
        settings: Of a correction.
        validation_loss_nats: Of a correction, `before` and `after`.
        dtype: Of the stored weights.
        seed: Of every random draw.
        versions: Packages by name.
        proof: What reloading it showed; None where memory was too small for it.
    """

    teacher: Origin = Origin()
    source: Origin = Origin()
    corrected: Origin | None = None
    size: str | None = None
    role: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    source_architecture: Mapping[str, Any] = field(default_factory=dict)
    kept_layers: Sequence[int] = ()
    depth: Mapping[str, Any] | str | None = None
    scores: Any = None
    start: Mapping[str, Any] | None = None
    correction: Mapping[str, Any] | None = None
    alignment: Mapping[str, Any] | None = None
    num_tower_parameters: int | None = None
    tokens_trained: int | None = None
    exported_tokens: int | None = None
    learning_rate: float | None = None
    settings: Mapping[str, Any] | None = None
    validation_loss_nats: Mapping[str, float] | None = None
    dtype: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    proof: Proof | None = None

    def write(self, folder: Path, proof: Proof | None) -> None:
        """Write it into a model's folder, with what reloading the model showed; of places, only their last part."""
        content = last_parts(asdict(replace(self, proof=proof)))
        kept = {name: value for name, value in content.items() if value not in (None, {}, [], ())}
        write_json(folder / LINEAGE, {**kept, "proof": content["proof"]})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `write` has written, or versions before it have."""
        known = {each.name: content[each.name] for each in fields(cls) if content.get(each.name) is not None}
        for name in ("teacher", "source", "corrected"):
            if name in known:
                known[name] = _origin(known[name])
        if proof := known.pop("proof", None):
            known["proof"] = Proof(float(proof["max_abs_difference"]), float(proof["tolerance"]))
        return cls(**known)


def read_lineage(folder: Path) -> Lineage:
    """Read the lineage in a model's folder; an empty one where there is none.

    Raises:
        RunFolderError: If it cannot be read.
    """
    path = folder / LINEAGE
    if not path.is_file():
        return Lineage()
    try:
        return Lineage.from_dict(read_json(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path} is not JSON ({error}); distill this student again") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{path} is no lineage ({error!r}); distill this student again") from None


def _origin(values: Mapping[str, Any]) -> Origin:
    return Origin(values.get("name", values.get("source")), values.get("fingerprint"))
