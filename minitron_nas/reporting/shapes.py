"""The shapes of the members, drawn to one scale: layer by layer, at the teacher's layers that they were."""

from collections.abc import Sequence
from dataclasses import dataclass

from minitron_nas.reporting.members import ReportedMember
from minitron_nas.reporting.run_record import RunRecord

WIDTH, HEIGHT = 132.0, 150.0
"""Of the teacher, in pixels."""

_GAP = 3.0  # between the parts of a layer


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a layer: its kind, its place and its size in pixels."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """A member's shape.

    Attributes:
        title: The member's.
        words: What its shape is.
        blocks: Parts of its layers, from the first layer at the bottom on; those of layers that left have no width.
        dropped: The teacher's layers that it lacks; None where that is not known.
    """

    title: str
    words: str
    blocks: list[Block]
    dropped: list[int] | None


def drawings(run: RunRecord, members: Sequence[ReportedMember]) -> list[Drawing]:
    """Return the members whose shape is known, the teacher first; nothing without the teacher's.

    Args:
        run: The run.
        members: Of it, the teacher first.
    """
    teacher = members[0]
    if teacher.value("num_hidden_layers") is None or teacher.value("num_attention_heads") is None:
        return []
    head_dim = _head_dim(run, teacher)
    parts = _parts(teacher, head_dim)
    drawn = (WIDTH - (len(parts) - 1) * _GAP) / sum(parts.values())
    return [
        _drawing(run, member, head_dim, drawn, int(teacher.value("num_hidden_layers")))
        for member in members
        if member.value("num_hidden_layers") is not None and member.value("hidden_size") is not None
    ]


def teacher_layers(run: RunRecord, name: str) -> list[int] | None:
    """Return the teacher's layers that a student consists of; None where that is not known.

    Args:
        run: The run.
        name: The student's.
    """
    lineage = run.lineages.get(name)
    if lineage is None or not lineage.kept_layers:
        return None
    if lineage.source.name in ("teacher", None):
        return list(lineage.kept_layers)
    source = None if lineage.source.name == name else teacher_layers(run, str(lineage.source.name))
    if source is None or max(lineage.kept_layers) >= len(source):
        return None
    return [source[layer] for layer in lineage.kept_layers]


def _drawing(run: RunRecord, member: ReportedMember, head_dim: float, scale: float, num_layers: int) -> Drawing:
    mine, places = int(member.value("num_hidden_layers")), teacher_layers(run, member.name)
    dropped = None if places is None else [layer for layer in range(num_layers) if layer not in places]
    if places is None or len(places) != mine:
        places, dropped = list(range(mine)), [] if member.role == "teacher" else None
    high = HEIGHT / num_layers
    blocks, x = list[Block](), 0.0
    for kind, size in _parts(member, head_dim).items():
        width = round(size * scale, 2)
        blocks += [
            Block(kind, round(x, 2), round(HEIGHT - (place + 1) * high, 2), width, round(0.8 * high, 2))
            for place in places
        ]
        x += width + _GAP
    return Drawing(member.title, _words(member), blocks, dropped)


def _parts(member: ReportedMember, head_dim: float) -> dict[str, float]:
    """Return how wide the parts of a layer are: channels, query heads, mixers, FFN neurons of all experts together."""
    experts = member.value("num_experts")
    neurons = member.value("intermediate_size") or 0
    if experts:
        neurons = experts * (member.value("moe_intermediate_size") or neurons)
    heads = (member.value("num_attention_heads") or 0) * head_dim
    mixers = (member.value("mamba_num_heads") or 0) * (member.value("mamba_head_dim") or 0)
    parts = {"hidden": member.value("hidden_size"), "heads": heads, "mixers": mixers, "neurons": neurons}
    return {kind: float(size) for kind, size in parts.items() if size or kind != "mixers"}


def _words(member: ReportedMember) -> str:
    experts = f", {member.value('num_experts'):.0f} experts" if member.value("num_experts") else ""
    mixers = (
        f", {member.value('mamba_num_heads'):.0f} Mamba heads of {member.value('mamba_head_dim'):.0f} channels"
        if member.value("mamba_num_heads")
        else ""
    )
    return (
        f"{member.value('num_hidden_layers'):.0f} layers, {member.value('hidden_size'):,.0f} channels, "
        f"{member.value('num_attention_heads') or 0:.0f} heads, {member.value('intermediate_size') or 0:,.0f} neurons"
        f"{experts}{mixers}"
    )


def _head_dim(run: RunRecord, teacher: ReportedMember) -> float:
    for lineage in run.lineages.values():
        if lineage.architecture.get("head_dim"):
            return float(lineage.architecture["head_dim"])
    return float(teacher.value("hidden_size") / teacher.value("num_attention_heads"))
