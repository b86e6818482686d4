"""How starts compare on SmolLM2: untrained, and after equal budgets of distillation.

A study of hours, in parts that go on where they were: `python tests/benchmarks/study_starts.py PART --data DATA
--out FOLDER`. DATA holds `corpus/*.parquet`, `eval_text/wikitext2_valid.txt` and `lm_eval_tasks/`. What is measured
goes to `measured/starts.json` beside this file. KL is in nats per token, bf16 on the CPU.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
from study import EVALUATED, EVALUATION_SEQUENCES, LENGTH, SEED, Study, progress

from minitron_nas.architecture.spec import Architecture
from minitron_nas.execution.device import release_memory
from minitron_nas.importance.depth_modes import layer_table
from minitron_nas.importance.layers import Depths, choose_layers
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import Aggregation, DepthSettings, ImportanceSettings
from minitron_nas.models.loading import load_for_inference, load_for_training
from minitron_nas.pipeline.display import default_display
from minitron_nas.pruning import start as preparing
from minitron_nas.pruning import student as surgery
from minitron_nas.pruning.compensate import Scaling
from minitron_nas.pruning.export import write_student
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.repair_in_sequence import repair_in_sequence
from minitron_nas.pruning.settings import RANDOM_TOKENS, RIDGE, SEQUENCE_RIDGE, SequenceSettings, StartSettings
from minitron_nas.pruning.start import measure_start, possible_start
from minitron_nas.pruning.student import build_student
from minitron_nas.space.axes import load_space
from minitron_nas.storage.lineage import Lineage
from minitron_nas.text.tokens import PackedTokens

SHAPES: dict[str, dict[str, int]] = {
    "504/1024": {"hidden_size": 504, "intermediate_size": 1024},
    "hidden 432": {"hidden_size": 432},
    "FFN 1024": {"intermediate_size": 1024},
    "2 KV groups": {"num_key_value_heads": 2},
    "half, 396/832": {"hidden_size": 396, "intermediate_size": 832},
}
CALIBRATION = 32
"""Documents, of 1,024 tokens each."""
DOCUMENTS = (8, 32, 128)
HELD_OUT_SEQUENCES = 16
NARROW = (32, "standardebooks")
RATES = (1e-4, 3e-4, 6e-4)
POINTS = (0, 12_288, 24_576, 49_152, 76_800, 102_400)
CRITERIA = ("kl", "loss", "logit_mse", "block_importance", "task")
MODES = ("layers", "block", "greedy")
DEPTHS = (26, 22)
TASK = "copa_local"
SCORES = ImportanceSettings()
PAPERS = ImportanceSettings(batch_aggregation="l2", sequence_aggregation="mean")
"""The papers' choice of aggregations; names of starts that use it end in "L2 of means"."""


@dataclass(frozen=True)
class Start:
    """How a student is cut.

    Attributes:
        rotate: Whether channels are rotated, not selected.
        repair: Whether what is cut is made up for, all at once or layer after layer.
        balanced: Whether matrices that a norm's gain is folded into are brought back to their size.
        ridge: Strength of the penalty of the repair in one pass.
        sequence_ridge: Strength of that of the repair in sequence.
        rescaled: Whether norms make up for the mean over fewer channels where channels are selected.
        random_tokens: Share of the text's tokens that rotation and repair in sequence read others for.
        repaired_first: Whether that penalty pulls towards the student that is repaired in one pass.
        scores: How activations become scores.
    """

    rotate: bool = False
    repair: Literal["none", "one pass", "sequence"] = "none"
    balanced: bool = True
    ridge: float = RIDGE
    sequence_ridge: float = SEQUENCE_RIDGE
    rescaled: bool = True
    random_tokens: float = 0.0
    repaired_first: bool = False
    scores: ImportanceSettings = SCORES

    def changes(self, source: Architecture, target: Architecture) -> tuple[Any, ...]:
        """Return what of it tells on a shape: rotation needs cut channels, repair in one pass cut inputs."""
        rotates = self.rotate and target.hidden_size < source.hidden_size
        sizes = ("intermediate_size", "num_attention_heads")
        cut = any(getattr(source, size) != getattr(target, size) for size in sizes)
        repair = "none" if self.repair == "one pass" and not cut else self.repair
        cut_channels = target.hidden_size < source.hidden_size
        random = self.random_tokens if rotates or repair == "sequence" else 0.0
        return rotates, repair, random, self.balanced or not rotates, self.rescaled or not cut_channels, self.scores

    def apply(self, prepared: PreparedTeacher) -> PreparedTeacher:
        """Leave away what the start does without."""
        rotation = prepared.rotation if self.rotate else None
        if rotation is not None and not self.balanced:
            rotation = replace(rotation, balances=torch.ones_like(rotation.balances))
        one_pass = self.repair == "one pass" or (self.repair == "sequence" and self.repaired_first)
        moments = prepared.moments if one_pass else None
        return replace(prepared, rotation=rotation, moments=moments, ridge=self.ridge)


AS_IT_IS = "rotation, repair in sequence"
DEFAULT = f"{AS_IT_IS}, random tokens"
NOT_BALANCED = f"{AS_IT_IS}, gains not rebalanced"
STARTS = {
    "selection": Start(),
    "selection, norms as they are": Start(rescaled=False),
    AS_IT_IS: Start(rotate=True, repair="sequence"),
    DEFAULT: Start(rotate=True, repair="sequence", random_tokens=RANDOM_TOKENS),
    "rotation": Start(rotate=True),
    "selection, repair in sequence": Start(repair="sequence"),
    "rotation, repair in one pass": Start(rotate=True, repair="one pass"),
    "selection, repair in one pass": Start(repair="one pass"),
    NOT_BALANCED: Start(rotate=True, repair="sequence", balanced=False),
}
STARTS |= {f"{name}, L2 of means": replace(start, scores=PAPERS) for name, start in STARTS.items()}


class Starts(Study):
    """The study's teacher with scores, rotation and moments over each calibration text."""

    documents: int = CALIBRATION
    """That untrained students of several shapes are calibrated on."""
    shapes: Mapping[str, Mapping[str, int]] = SHAPES
    """What these shapes are."""

    def scored(self, text: PackedTokens, settings: ImportanceSettings) -> ImportanceScores:
        kind = f"{settings.batch_aggregation}-{settings.sequence_aggregation}"
        folder, teacher = self.out / "scores" / f"{text.fingerprint}-{kind}", self.checkpoint
        if not folder.is_dir():
            model = load_for_inference(teacher.path)
            found = score_importance(
                model, teacher.architecture, teacher.layout, text, settings, progress=progress("score")
            )
            found.save(folder, {"source": teacher.fingerprint}, text)
        return ImportanceScores.load(folder, teacher.fingerprint)

    def prepared(self, text: PackedTokens, settings: ImportanceSettings, random_tokens: float = 0.0) -> PreparedTeacher:
        """Return the teacher with all that any start needs."""
        share = f"-{random_tokens:g}" if random_tokens else ""
        folder = self.out / "prepared" / f"{text.fingerprint}{share}"
        scores = self.scored(text, settings)
        order = PruningOrder.from_scores(scores, self.checkpoint.architecture, protected_layers())
        if not folder.is_dir():
            with TemporaryDirectory(dir=self.out) as work, patch.object(preparing, "RANDOM_TOKENS", random_tokens):
                measures = measure_start(
                    self.checkpoint,
                    lambda: text,
                    StartSettings(possible_start("rotate", self.checkpoint)[0], "ridge"),
                    Path(work),
                    progress=progress("moments"),
                )
                write_prepared(folder, order, *measures)
        return replace(PreparedTeacher.open(self.checkpoint.path, folder), order=order)

    @contextmanager
    def repaired(
        self, prepared: PreparedTeacher, target: Architecture, start: Start, text: PackedTokens
    ) -> Iterator[Mapping[str, Any]]:
        with TemporaryDirectory(dir=self.out) as work:
            if start.repair != "sequence":
                yield {}
            else:
                tell = progress("sequence")
                settings = SequenceSettings(start.sequence_ridge, start.random_tokens)
                yield repair_in_sequence(prepared, target, text, Path(work), settings, tell)

    def untrained(
        self,
        shape: Mapping[str, int],
        start: Start,
        text: PackedTokens,
        prepared: PreparedTeacher | None = None,
        names: Sequence[str] = ("near", "far"),
        count: int = EVALUATION_SEQUENCES,
    ) -> dict[str, Any]:
        """Measure an untrained student."""
        source = start.apply(prepared or self.prepared(text, start.scores, start.random_tokens))
        target = source.architecture.reshaped(shape)
        rescaling = nullcontext() if start.rescaled else norms_as_they_are()
        with self.repaired(source, target, start, text) as repaired, rescaling:
            student = build_student(source, target, torch.bfloat16, repaired).eval()
        return self.losses(student, names, count)

    def student(self, shape: Mapping[str, int], start: Start, text: PackedTokens, folder: Path) -> Path:
        """Write an untrained student, once."""
        if not folder.is_dir():
            source = start.apply(self.prepared(text, start.scores, start.random_tokens))
            target = source.architecture.reshaped(shape)
            with self.repaired(source, target, start, text) as repaired:
                write_student(source, target, folder, Lineage(), repaired)
        return folder

    def note(self, key: str, *arguments: Any) -> None:
        """Measure an untrained student unless it was measured."""
        self.measurements.once(key, partial(self.untrained, *arguments))


@contextmanager
def norms_as_they_are() -> Iterator[None]:
    """Cut channels as plain Minitron does: no gain or epsilon makes up for them."""
    with (
        patch.object(surgery, "scaling_of", lambda *_: Scaling()),
        patch.object(surgery, "scaled_constants", lambda *_: {}),
    ):
        yield


def protected_layers() -> tuple[int, ...]:
    return tuple(load_space("default").protected_layers)


def starts(study: Starts, names: Sequence[str]) -> None:
    """Untrained students of several shapes from each start."""
    text, source = study.calibration(study.documents), study.checkpoint.architecture
    for shape, sizes in study.shapes.items():
        seen = set()
        for name in names:
            changes = STARTS[name].changes(source, source.reshaped(sizes))
            if changes not in seen and STARTS[name].balanced:
                seen.add(changes)
                study.note(
                    f"starts | {shape} | {name} | {text.num_tokens:,} tokens",
                    sizes,
                    STARTS[name],
                    text,
                    None,
                    EVALUATED,
                )


def held_out(study: Starts, names: Sequence[str]) -> None:
    """The default against plain Minitron, untrained, on more text and on text that DATA lacks."""
    text, texts = study.calibration(study.documents), (*EVALUATED, *study.also)
    teacher = study.checkpoint.path
    study.measurements.once(
        "held-out | teacher", lambda: study.losses(load_for_inference(teacher), texts, HELD_OUT_SEQUENCES)
    )
    for shape, name in product(study.shapes, names):
        study.note(
            f"held-out | {shape} | {name} | {text.num_tokens:,} tokens",
            study.shapes[shape],
            STARTS[name],
            text,
            None,
            texts,
            HELD_OUT_SEQUENCES,
        )


def ridges(study: Starts, _: Sequence[str]) -> None:
    """Strengths of the two penalties."""
    text, sizes = study.calibration(CALIBRATION), SHAPES["504/1024"]
    for ridge in (0.001, 0.003, 0.01, 0.03, 0.1):
        start = Start(rotate=True, repair="one pass", ridge=ridge, scores=PAPERS)
        study.note(f"ridges | one pass | ridge {ridge:g}", sizes, start, text)
    short = study.calibration(32)
    for ridge, first in ((0.1, False), (0.1, True), (0.03, False), (0.3, False)):
        start = Start(rotate=True, repair="sequence", sequence_ridge=ridge, repaired_first=first, scores=PAPERS)
        pulled = "what is repaired in one pass" if first else "what is cut"
        key = f"ridges | sequence, {short.num_tokens:,} tokens, pulled towards {pulled} | ridge {ridge:g}"
        study.note(key, sizes, start, short)


def aggregations(study: Starts, _: Sequence[str]) -> None:
    """What each pair of aggregations keeps."""
    text = study.calibration(CALIBRATION)
    for batch, sequence in product(get_args(Aggregation), repeat=2):
        scores = ImportanceSettings(batch_aggregation=batch, sequence_aggregation=sequence)
        key = f"aggregations | {batch} over samples, {sequence} over tokens"
        for shape in ("504/1024", "FFN 1024", "2 KV groups"):
            study.note(f"{key} | {shape} | selection", SHAPES[shape], Start(scores=scores), text)
        repaired = Start(repair="one pass", scores=scores)
        study.note(f"{key} | FFN 1024 | repair in one pass", SHAPES["FFN 1024"], repaired, text)


def calibration(study: Starts, _: Sequence[str]) -> None:
    """How much text, and how varied, rotation and repair need."""
    texts = {f"{count} documents": study.calibration(count) for count in DOCUMENTS}
    texts[f"{NARROW[0]} documents of {NARROW[1]}"] = study.calibration(*NARROW)
    for (name, text), start in product(texts.items(), ("rotation, repair in one pass", AS_IT_IS)):
        key = f"calibration | {start} | {name}, {text.num_tokens:,} tokens"
        study.note(key, SHAPES["504/1024"], STARTS[start], text)


def merging(study: Starts, _: Sequence[str]) -> None:
    """What head-residual merging is worth where two heads of three stay in each group."""
    text = study.calibration(CALIBRATION)
    prepared = study.prepared(text, SCORES)
    for (words, merged), repair in product({"off": False, "on": True}.items(), ("none", "one pass", "sequence")):
        source, start = replace(prepared, merge_heads=merged), Start(repair=repair)
        study.note(f"merging | {words} | repair: {repair}", {"num_attention_heads": 6}, start, text, source)


def depth(study: Starts, _: Sequence[str]) -> None:
    """Which layers each criterion drops in each mode, and what is lost with them."""
    text = study.calibration(CALIBRATION)
    prepared = study.prepared(text, SCORES)
    for mode, criterion in product(MODES, CRITERIA):
        key, found = choice_of_layers(study, text, criterion, mode)
        for count, dropped in found.items():
            source, names = without_layers(prepared, dropped), ", ".join(map(str, dropped))
            measure = partial(study.untrained, {"num_hidden_layers": int(count)}, Start(), text, source)
            figures = study.measurements.once(f"without layers | {names}", measure)
            study.measurements.once(f"depth | {key} | {count} layers", partial(dict, figures, dropped=dropped))


def depth_repaired(study: Starts, _: Sequence[str]) -> None:
    """What the choice of eight layers is worth once what is left is repaired."""
    text = study.calibration(CALIBRATION)
    prepared = study.prepared(text, SCORES)
    for criterion, mode in (("kl", "greedy"), ("block_importance", "layers")):
        key, found = choice_of_layers(study, text, criterion, mode)
        source = without_layers(prepared, found["22"])
        name = f"depth, repaired | {key} | 22 layers"
        study.note(name, {"num_hidden_layers": 22}, STARTS[AS_IT_IS], text, source, EVALUATED)


def choice_of_layers(study: Starts, text: PackedTokens, criterion: str, mode: str) -> tuple[str, dict[str, list[int]]]:
    """Return what names a choice, and which layers leave for each number of layers that stay."""
    settings = depth_settings(study, criterion, mode)
    size = f"{settings.limit} questions" if criterion == "task" else f"{settings.num_sequences * LENGTH:,} tokens"
    key = f"{criterion} | {mode} | {size}"
    found = study.measurements.once(f"layers | {key}", partial(dropped_layers, study, text, settings))
    return key, found["dropped"]


def without_layers(prepared: PreparedTeacher, dropped: Sequence[int]) -> PreparedTeacher:
    """Return a teacher that loses some layers first."""
    num_layers = prepared.architecture.num_hidden_layers
    kept = [layer for layer in range(num_layers) if layer not in dropped]
    return replace(prepared, order=replace(prepared.order, layers=layer_table({len(kept): kept}, num_layers)))


def depth_settings(study: Starts, criterion: str, mode: str) -> DepthSettings:
    """Return settings that measure less where there is more to measure."""
    given: dict[str, Any] = {"criterion": criterion, "mode": mode, "num_sequences": 2 if mode == "greedy" else 4}
    if criterion == "task":
        limit = 25 if mode == "greedy" else 100
        given |= {"task": TASK, "include_path": str(study.data / "lm_eval_tasks"), "limit": limit}
    return DepthSettings(**given)


def dropped_layers(study: Starts, text: PackedTokens, settings: DepthSettings) -> dict[str, Any]:
    """Return which layers leave, for each number of layers that stay."""
    table = choose_layers(
        study.checkpoint,
        study.scored(text, SCORES),
        Depths(settings, DEPTHS, protected_layers(), SEED),
        lambda: study.tokens("depth", lambda: study.beginnings(0, 16, LENGTH)),
        progress(f"{settings.criterion}, {settings.mode}"),
    )
    release_memory()
    layers = range(len(table))
    return {"dropped": {str(count): [layer for layer in layers if not table[count - 1, layer]] for count in DEPTHS}}


def recovery(study: Starts, names: Sequence[str]) -> None:
    """Students of one shape after distillation from each start, at the learning rate that suits it best."""
    text = study.calibration(CALIBRATION)
    for name in names:
        folder = study.out / "students" / name.replace(", ", "-").replace(" ", "-")
        student = study.student(SHAPES["504/1024"], STARTS[name], text, folder)
        study.recover(partial(load_for_training, student), "recovery", name, RATES, POINTS)


PARTS: dict[str, Callable[[Starts, Sequence[str]], None]] = {
    "starts": starts,
    "held-out": held_out,
    "recovery": recovery,
    "calibration": calibration,
    "ridges": ridges,
    "merging": merging,
    "depth": depth,
    "depth-repaired": depth_repaired,
    "aggregations": aggregations,
}
KINDS = {"recovery": ("tuning", "recovery"), "depth": ("layers", "depth"), "depth-repaired": ("depth, repaired",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    starts_help = f"for recovery, starts and held-out, separated by ';', of: {'; '.join(STARTS)}"
    parser.add_argument("--starts", help=starts_help)
    shapes_help = f"for starts and held-out, separated by ';', of: {'; '.join(SHAPES)}"
    parser.add_argument("--shapes", default=";".join(SHAPES), help=shapes_help)
    documents_help = "for starts and held-out, of 1,024 tokens each"
    parser.add_argument("--documents", type=int, default=CALIBRATION, help=documents_help)
    parser.add_argument(
        "--also",
        metavar="NAME=FOLDER",
        nargs="*",
        default=[],
        help="further texts for held-out, as folders of .txt or .md files",
    )
    parser.add_argument("--show", action="store_true", help="print what is measured, and measure nothing")
    args = parser.parse_args()
    names = args.starts.split(";") if args.starts else list(STARTS)
    unknown = set(names) - set(STARTS)
    if unknown:
        parser.error(f"no start is called {', '.join(sorted(unknown))}; choose from {'; '.join(STARTS)}")
    shapes = args.shapes.split(";")
    if unknown := set(shapes) - set(SHAPES):
        parser.error(f"no shape is called {', '.join(sorted(unknown))}; choose from {'; '.join(SHAPES)}")
    measured = Path(__file__).parent / "measured" / "starts.json"
    study = Starts(args.data.absolute(), args.out.absolute(), measured)
    study.documents = args.documents
    study.shapes = {shape: SHAPES[shape] for shape in shapes}
    study.also = {name: Path(folder) for name, _, folder in (text.partition("=") for text in args.also)}
    default_display()  # silences the libraries' own bars
    if not args.show:
        teacher = study.checkpoint.path
        study.measurements.once("teacher", lambda: study.losses(load_for_inference(teacher)))
        PARTS[args.part](study, names)
    study.show(KINDS.get(args.part, (args.part,)))


if __name__ == "__main__":
    main()
