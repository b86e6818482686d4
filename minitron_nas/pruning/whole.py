"""A student inside the wrapper that it was cut from: towers and projectors as they are, beside another text part."""

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError, PlanError, ProofError, SpaceError
from minitron_nas.families.catalog import layout_of
from minitron_nas.families.wrappers import Tower, Wrapper
from minitron_nas.memory import available_memory
from minitron_nas.models.causal_lm import logits_of
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.config import read_config
from minitron_nas.models.outline import Outline, kept_for
from minitron_nas.models.quiet import quiet_transformers
from minitron_nas.models.special_floats import plain_floats, tagged_floats
from minitron_nas.models.stock_config import finished_config
from minitron_nas.models.text_part import causal_lm_in, read_text_headers, wrapper_in
from minitron_nas.models.tower import tower_tensors
from minitron_nas.progress import Progress
from minitron_nas.pruning.parts import Cut, Part, total_bytes
from minitron_nas.pruning.stacks import in_stacks
from minitron_nas.pruning.write import write_weights
from minitron_nas.space.axes import SearchSpace
from minitron_nas.storage.atomic import read_json, write_json
from minitron_nas.storage.foreign import read_object
from minitron_nas.storage.lineage import PROOF
from minitron_nas.storage.weights import read_headers

_CONFIG = "config.json"
_ITS_OWN = {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype"}
"""Keys that a text model and a wrapper each have for themselves."""
_HEADS = "num_attention_heads"
_HEAD_DIM = "head_dim"
_SHOWN = 3


def require_tower(model: Checkpoint | Outline, told: str) -> Tower:
    """Return the tower that is to stay beside a model's students.

    Args:
        model: The model.
        told: What it is called, for the message.

    Raises:
        PlanError: If none lies beside it.
    """
    if model.tower is not None and model.tower.is_there:
        return model.tower
    held = "is in memory" if model.tower is not None else "has no such part"
    raise PlanError(
        f"text_only=false keeps what looks at pictures, and {told} {held}; give the folder or hub name of a model that "
        "has it, or leave text_only out"
    )


def space_beside(tower: Tower, space: SearchSpace) -> SearchSpace:
    """Return a space of shapes that a tower can stay beside.

    Args:
        tower: The tower.
        space: The space, from which sizes that stay are left out, and whose protected layers grow.
    """
    protected = (*space.protected_layers, *(set(range(tower.num_fed_layers)) - set(space.protected_layers)))
    axes = space.axes.model_copy(update=dict.fromkeys(tower.kept_sizes))
    return space.model_copy(update={"axes": axes, "protected_layers": protected})


def check_axes_beside(tower: Tower, space: SearchSpace) -> None:
    """Refuse a space of which a tower leaves nothing to prune.

    Args:
        tower: The tower.
        space: What `space_beside` returned.

    Raises:
        SpaceError: Naming what has to stay.
    """
    if not space.axes.given():
        raise SpaceError(
            f"with text_only=false {', '.join(tower.kept_sizes)} stay, and the space lets no other size change; add an "
            "axis to it, such as intermediate_size or num_hidden_layers, or leave text_only out"
        )


def check_beside(
    tower: Tower, source: Architecture, target: Architecture, kept_layers: Sequence[int] | None = None
) -> None:
    """Refuse a student that its source's tower cannot stay beside.

    Args:
        tower: The tower.
        source: The shape of the text part.
        target: The student's.
        kept_layers: The layers of the source that it consists of, where they are known.

    Raises:
        InvalidArchitectureError: Naming what has to stay.
    """
    fed = set(range(tower.num_fed_layers))
    changed = any(getattr(target, name) != getattr(source, name) for name in tower.kept_sizes)
    if changed or (kept_layers is not None and fed - set(kept_layers)):
        raise InvalidArchitectureError(
            f"{target.id}: with text_only=false {kept_for(tower, source)}, because what looks at pictures writes "
            "there; prune neurons, heads, experts or other layers"
        )


def tower_parts(source: Path) -> list[Cut]:
    """Return what is taken over as it is beside a student: the tensors of the tower.

    Args:
        source: The wrapper's folder.
    """
    return [Cut.all_of(name, header) for name, header in tower_tensors(source).items()]


def put_into_wrapper(student: Path, source: Path, folder: Path, told: Path, progress: Progress) -> None:
    """Write the wrapper of a source with the student in place of its text part, and compare logits of text.

    A tower may hold infinity, as Gemma 4's does where it clips nothing.

    Args:
        student: The student as a stock text model.
        source: The wrapper's folder.
        folder: An existing folder that holds nothing but an earlier attempt at the same.
        told: Where it will lie in the end, for messages.
        progress: Told the number of bytes written and verified.

    Raises:
        DiskSpaceError: If the disk cannot hold it.
        ProofError: If transformers computes other logits from it than from the student, or does not find there what
            it looks for.
    """
    wrapper, tower = wrapper_in(source), tower_parts(source)
    assert wrapper is not None, source
    parts = [*_text_parts(student, source, wrapper), *tower]
    write_weights(parts, folder, progress, as_they_are={part.name for part in tower})
    write_json(folder / _CONFIG, tagged_floats(_config_with(student, source)))
    if (student / PROOF).is_file() and 2 * total_bytes(parts) <= available_memory():
        _compare(student, wrapper, folder, told)


def _text_parts(student: Path, source: Path, wrapper: Wrapper) -> Sequence[Part]:
    """Return the student's tensors under their names in the wrapper, experts in stacks where its files hold these."""
    names = wrapper.text_names(read_headers(source))
    text = {name: Cut.all_of(_name_inside(name, names), header) for name, header in read_headers(student).items()}
    if not wrapper.either_way:
        return [*text.values()]
    config = read_json(student / _CONFIG)
    turned = any(header.pitch for header in read_text_headers(source).values())

    def lies_turned(name: str, *sizes: int) -> bool:
        return turned and wrapper.lies_turned(name, (0, *sizes), config["hidden_size"])

    return in_stacks(text, layout_of(config["model_type"]), lies_turned)


def _name_inside(name: str, names: dict[str, str]) -> str:
    """Return the name that a tensor of the text part has in the wrapper: another beginning."""
    beginning = name.partition(".")[0] + "."
    inside, bare = next(pair for pair in names.items() if pair[1].startswith(beginning))
    return inside.removesuffix(bare.removeprefix(beginning)) + name.removeprefix(beginning)


def _config_with(student: Path, source: Path) -> dict[str, Any]:
    """Return the wrapper's config with all of its text part's that is another in the student's.

    Some wrappers say sizes of the text part at their top level, too, for readers of other versions; these follow.
    """
    config: dict[str, Any] = plain_floats(read_object(source / _CONFIG))
    after = _filled(plain_floats(read_json(student / _CONFIG)))
    before = _filled(finished_config(read_config(source), after["dtype"]))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} - _ITS_OWN
    if "text_config" not in config:
        return _changed(config, changed, after)
    return {
        **_changed(config, changed & config.keys(), after),
        "text_config": _changed(config["text_config"], changed, after),
    }


def _changed(config: Mapping[str, Any], keys: Collection[str], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the student's values of some keys, without those that the student has not."""
    if _HEADS in keys and _HEAD_DIM in after:  # from fewer of which a head's channels would be derived
        keys = {*keys, _HEAD_DIM}
    kept = {key: value for key, value in config.items() if key not in keys or key in after}
    return {**kept, **{key: after[key] for key in sorted(keys) if key in after}}


def _filled(config: dict[str, Any]) -> dict[str, Any]:
    """Return a text model's config with all that transformers fills in, as JSON holds it."""
    filled = AutoConfig.for_model(**copy.deepcopy(config)).to_dict()
    found: dict[str, Any] = json.loads(json.dumps({**filled, **config}, default=str))
    return found


def _compare(student: Path, wrapper: Wrapper, folder: Path, told: Path) -> None:
    proof = read_json(student / PROOF)
    ids, dtype = torch.tensor(proof["input_ids"]), getattr(torch, proof["dtype"])
    found = []
    for kind, place in ((AutoModelForCausalLM, student), (AutoModelForImageTextToText, folder)):
        with quiet_transformers():
            pair: Any = kind.from_pretrained(  # which its annotation does not know
                place, dtype=dtype, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
            )
        loaded, info = pair
        _require_complete(info, wrapper, told)
        found.append(logits_of(causal_lm_in(loaded), ids))
        del loaded, pair
    difference = (found[0] - found[1]).abs().max().item()
    if not difference <= proof["tolerance"]:
        raise ProofError(
            f"the student that was to be {told} gives logits inside its wrapper that differ by {difference:.3g} from "
            f"those that it gives alone (at most {proof['tolerance']} is accepted); it was not given its name; please "
            "report this"
        )


def _require_complete(info: Mapping[str, Any], wrapper: Wrapper, told: Path) -> None:
    """Refuse what transformers had to make up; what lies in a tower's files and it does not need is the teacher's."""
    made_up = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
    if astray := sorted({*made_up, *wrapper.text_names(info["unexpected_keys"])}):
        raise ProofError(
            f"transformers does not find what it looks for in the student that was to be {told}, inside its wrapper: "
            f"{', '.join(astray[:_SHOWN])} is missing, of another shape, or not known to it; it was not given its "
            "name; where AutoModelForImageTextToText loads the teacher without such a report, please report this"
        )
