"""How starts compare on SmolLM2: untrained, and after equal budgets of distillation.

A study of hours, in parts that go on where they were: `python tests/benchmarks/study_starts.py PART --data DATA
--out FOLDER`. DATA holds `corpus/*.parquet` (columns text, source, split), `eval_text/wikitext2_valid.txt` and
`lm_eval_tasks/`. FOLDER keeps tokens, scores, second moments, students and `measurements.json`. What is printed are
rows of Markdown; KL is in nats per token, bf16 on the CPU.
"""

import argparse
import importlib
import inspect
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice, product
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args
from unittest.mock import patch

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.caches import keep_signal
from minitron_nas.distillation.hidden_cache import HiddenCache
from minitron_nas.distillation.schedule import Schedule
from minitron_nas.distillation.settings import DistillationSettings, TextSettings
from minitron_nas.distillation.signals import load_for_inference, load_for_training
from minitron_nas.distillation.text import read_documents
from minitron_nas.distillation.tokens import PackedTokens, pack, tokenize
from minitron_nas.distillation.trainer import Stream, distill
from minitron_nas.distillation.validation import validate
from minitron_nas.execution.device import release_memory
from minitron_nas.families.checkpoint import Checkpoint
from minitron_nas.families.teacher import demo_teacher, resolve_teacher
from minitron_nas.importance.moments import second_moments
from minitron_nas.importance.score import score_importance
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import Aggregation, DepthSettings, ImportanceSettings
from minitron_nas.pipeline import preparing, pruning
from minitron_nas.pipeline.depth import choose_layers
from minitron_nas.pipeline.display import Quiet, default_display
from minitron_nas.pipeline.preparing import cuts_inputs
from minitron_nas.progress import Progress
from minitron_nas.pruning.settings import RIDGE
from minitron_nas.space.axes import load_space
from minitron_nas.storage.atomic import read_json, whole_file, whole_folder, write_json

SEED = 0
CALIBRATION_LENGTH = 1024
LENGTH = 512
EVALUATED = ("near", "far", "other")
SHAPES: dict[str, dict[str, int]] = {
    "504/1024": {"hidden_size": 504, "intermediate_size": 1024},
    "hidden 432": {"hidden_size": 432},
    "FFN 1024": {"intermediate_size": 1024},
    "2 KV groups": {"num_key_value_heads": 2},
    "half, 396/832": {"hidden_size": 396, "intermediate_size": 832},
}
STARTS: dict[str, dict[str, Any]] = {
    # What `prune` is told. Add a start here, then name it in --starts.
    "plain": {"start": "select", "repair": "none"},
    "repair": {"start": "select", "repair": "ridge"},
    "rotate": {"start": "rotate", "repair": "none"},
    "rotate+repair": {"start": "rotate", "repair": "ridge"},
    "rotate+repair, unbalanced": {"start": "rotate", "repair": "ridge"},
}
UNBALANCED = "rotate+repair, unbalanced"
LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1e-3)
RIDGES = (0.001, 0.003, 0.01, 0.1)
CRITERIA = ("block_importance", "loss", "kl", "logit_mse", "task")
MODES = ("layers", "block", "greedy")
TASK = "copa_local"
NARROW_SOURCE = "standardebooks"
OTHER_MODULES = (
    "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "cmd", "collections", "configparser",
    "contextlib", "csv", "ctypes", "datetime", "decimal", "difflib", "dis", "doctest", "email.message", "fractions",
    "functools", "heapq", "html.parser", "http.client", "inspect", "io", "ipaddress", "itertools", "json", "locale",
    "logging", "mailbox", "math", "mimetypes", "multiprocessing.pool", "operator", "optparse", "os", "pathlib",
    "pickle", "platform", "pprint", "random", "re", "sched", "selectors", "shelve", "shutil", "socket", "sqlite3",
    "ssl", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit",
    "tokenize", "traceback", "turtle", "unittest", "urllib.request", "uuid", "warnings", "weakref",
    "xml.dom.minidom", "zipfile",
)  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How much is read, measured and trained."""

    calibration: int = 128
    evaluation: int = 16
    batch_sequences: int = 2
    tuning_tokens: int = 25_600
    points: tuple[int, ...] = (0, 12_800, 25_600, 51_200, 76_800, 102_400)
    rates: tuple[float, ...] = LEARNING_RATES
    depth_sequences: int = 16
    greedy_sequences: int = 4
    task_limit: int = 100
    greedy_task_limit: int = 25
    depths: tuple[int, ...] = (26, 22)


SMOKE = Budget(8, 1, 2, 2048, (0, 1024, 2048), (3e-4,), 1, 1, 2, 2, (29, 28))


class Measurements:
    """Figures by readable keys, in one file that is written after each of them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = read_json(self._path) if self._path.exists() else {}
        return found

    def once(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what was measured under a key, measured now if it was not."""
        known = self.all()
        if key not in known:
            say(key)
            started = time.monotonic()
            figures = dict(measure())
            seconds = round(time.monotonic() - started, 1)
            known = {**self.all(), key: {"seconds": seconds, **figures}}
            write_json(self._path, known)
            say(f"{key}: {figures} in {seconds:.0f} s")
        return known[key]


class Study:
    """The teacher, the texts and what was measured on them, all kept in one folder."""

    def __init__(self, data: Path, out: Path, budget: Budget) -> None:
        self.data, self.out, self.budget = data, out, budget
        self.measurements = Measurements(out / "measurements.json")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        folder = self.out / "teacher"
        if not folder.is_dir():
            with TemporaryDirectory() as work:
                original, _ = demo_teacher(Path(work))
                with whole_folder(folder) as partial:
                    shutil.copytree(original.path, partial, dirs_exist_ok=True)
        return resolve_teacher(folder, self.out, read_values=False)

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.checkpoint.path)

    @cached_property
    def corpus(self) -> list[tuple[str, str, str]]:
        """(source, split, text) of every document."""
        files = sorted((self.data / "corpus").glob("*.parquet"))
        rows = chain.from_iterable(pq.read_table(file).to_pylist() for file in files)
        return [(row["source"], row["split"], row["text"]) for row in rows]

    def tokens(self, name: str, read: Callable[[], PackedTokens]) -> PackedTokens:
        """Return a text's tokens, read once."""
        path = self.out / "tokens" / f"{name}.safetensors"
        if not path.exists():
            read().save(path)
            say(f"read {name}")
        return PackedTokens.load(path)

    def calibration(self, num_sequences: int, source: str | None = None) -> PackedTokens:
        """Return the beginnings of documents, all of them from one source if it is named."""
        if source is None:
            read = lambda: self.beginnings(0, self.budget.calibration, CALIBRATION_LENGTH)  # noqa: E731
            return self.tokens("calibration", read).first(num_sequences)
        narrow = lambda: self.beginnings(0, num_sequences, CALIBRATION_LENGTH, source)  # noqa: E731
        return self.tokens(f"calibration-{source}", narrow)

    def beginnings(self, third: int, num_sequences: int, length: int, source: str | None = None) -> PackedTokens:
        """Read from one third of the training documents, so that texts of other thirds hold none of them."""
        by_source = by_sources(self.corpus, "train", source)
        thirds = [documents[third::3] for documents in by_source]
        return self.packed(thirds, num_sequences, length)

    def packed(self, sources: list[list[str]], num_sequences: int, length: int) -> PackedTokens:
        """Fill sequences from sources in turn."""
        streams = [sequences(documents, self.tokenizer, length) for documents in sources]
        found = list(islice(in_turn(streams), num_sequences))
        assert len(found) == num_sequences, f"{len(found)} sequences found, {num_sequences} needed"
        return pack(chain.from_iterable(found), length)

    def evaluation(self, name: str) -> PackedTokens:
        """Return an evaluation text, or the one that learning rates are tuned on."""
        count = self.budget.evaluation
        if name == "tuning":
            return self.tokens(name, lambda: self.beginnings(2, count, LENGTH))
        if name == "near":
            return self.tokens(name, lambda: self.packed(by_sources(self.corpus, "valid"), count, LENGTH))
        if name == "far":
            file = self.data / "eval_text" / "wikitext2_valid.txt"
            return self.tokens(
                name, lambda: self.packed([list(read_documents(file, TextSettings(), SEED))], count, LENGTH)
            )
        modules = random.Random(SEED).sample(OTHER_MODULES, len(OTHER_MODULES))
        return self.tokens(name, lambda: self.packed([[docstrings(module)] for module in modules], count, LENGTH))

    def training(self) -> PackedTokens:
        """Return the tokens of one distillation, in the order of training."""
        return self.tokens("training", lambda: self.beginnings(1, -(-self.budget.points[-1] // LENGTH), LENGTH))

    def stream(self, tokens: PackedTokens) -> Stream:
        """Return tokens with what the teacher says over them, which it says once."""
        cache, teacher = self.out / "signals" / tokens.fingerprint, self.checkpoint
        keep_signal(
            None, lambda: load_for_inference(teacher.path), teacher.fingerprint, tokens, cache, progress("signal")
        )
        release_memory()
        return Stream(tokens, HiddenCache(cache, teacher.fingerprint, tokens))

    def losses(self, model: Any, names: Iterable[str] = EVALUATED) -> dict[str, Any]:
        """Return KL to the teacher and perplexity on texts."""
        found = {}
        for name in names:
            stream = self.stream(self.evaluation(name))
            losses = validate(model, stream.tokens, stream.signal)
            found[name] = {"kl_nats": round(losses.kl_nats, 5), "perplexity": round(exp(losses.loss_nats), 3)}
        return found

    def scores(self, calibration: PackedTokens, importance: ImportanceSettings | None = None) -> Path:
        """Return the folder of the teacher's scores over a text."""
        settings = importance or ImportanceSettings()
        kind = f"{settings.batch_aggregation}-{settings.sequence_aggregation}"
        folder, teacher = self.out / "scores" / f"{calibration.fingerprint}-{kind}", self.checkpoint
        if not folder.is_dir():
            model = load_for_inference(teacher.path)
            found = score_importance(
                model, teacher.architecture, teacher.layout, calibration, settings, progress=progress("score")
            )
            found.save(folder, {"source": teacher.fingerprint}, calibration)
        return folder

    def student(
        self, folder: Path, shape: Mapping[str, int] | None, scores: Path, start: str = "plain", **more: Any
    ) -> Path:
        """Cut an untrained student out of the teacher."""
        arguments = {**STARTS[start], **more}
        changed = without_balances() if start == UNBALANCED else nullcontext()
        with self.measured_once(), changed:
            pruning.prune(self.checkpoint.path, folder, shape, scores=scores, seed=SEED, display=Quiet(), **arguments)
        return folder

    def untrained(
        self, shape: Mapping[str, int] | None, scores: Path, start: str = "plain", **more: Any
    ) -> dict[str, Any]:
        """Measure an untrained student, which is not kept."""
        with TemporaryDirectory(dir=self.out) as work:
            folder = self.student(Path(work) / "student", shape, scores, start, **more)
            return self.losses(load_for_inference(folder))

    @contextmanager
    def measured_once(self) -> Iterator[None]:
        """Let `prune` find the teacher's second moments in the folder if they were measured before."""
        measure, teacher = second_moments, str(self.checkpoint.path)

        def kept(model: Any, layout: Any, calibration: PackedTokens, *args: Any, **kwargs: Any) -> Any:
            if model.config._name_or_path != teacher:
                return measure(model, layout, calibration, *args, **kwargs)
            path = self.out / "moments" / f"{calibration.fingerprint}.safetensors"
            if not path.exists():
                moments = measure(model, layout, calibration, progress=progress("moments"))
                with whole_file(path) as partial:
                    save_file(moments, partial)
            return load_file(path)

        with patch.object(preparing, "second_moments", kept):
            yield


def by_sources(corpus: list[tuple[str, str, str]], split: str, only: str | None = None) -> list[list[str]]:
    """Return the distinct documents of each source of a split, sources and documents in a seeded order."""
    found: dict[str, list[str]] = {}
    for source, part, text in dict.fromkeys(corpus):
        if part == split and only in {None, source} and text.strip():
            found.setdefault(source, []).append(text)
    rng = random.Random(SEED)
    for source in sorted(found):
        rng.shuffle(found[source])
    names = sorted(found)
    rng.shuffle(names)
    return [found[name] for name in names]


def sequences(documents: Iterable[str], tokenizer: Any, length: int) -> Iterator[list[Any]]:
    """Yield what fills one sequence each: the beginning of a document, or several short documents."""
    short: list[Any] = []
    for piece in tokenize((text[: 16 * length] for text in documents), tokenizer):
        if len(piece) >= length:
            yield [piece[:length]]
            continue
        short.append(piece[: length - sum(map(len, short))])
        if sum(map(len, short)) == length:
            yield short
            short = []


def in_turn(streams: list[Iterator[list[Any]]]) -> Iterator[list[Any]]:
    """Yield from each stream in turn until all are empty."""
    left = list(streams)
    while left:
        for stream in list(left):
            found = next(stream, None)
            if found is None:
                left.remove(stream)
            else:
                yield found


def docstrings(module: str) -> str:
    """Return the docstrings of a module of Python's standard library, and of what it defines."""
    found = importlib.import_module(module)
    members = [member for name, member in sorted(vars(found).items()) if not name.startswith("_")]
    nested = [list(vars(member).values()) for member in members if inspect.isclass(member)]
    owners = [found, *(member for member in chain(members, *nested) if callable(member))]
    texts = [inspect.cleandoc(owner.__doc__) for owner in owners if isinstance(owner.__doc__, str)]
    return "\n\n".join(dict.fromkeys(text for text in texts if len(text) > 60))


def without_balances() -> AbstractContextManager[Any]:
    """Let rotated students have the plain gains folded into their matrices, whatever size those get."""

    def plain(*args: Any, **kwargs: Any) -> Any:
        rotation, *rest = preparing.measure_start(*args, **kwargs)
        assert rotation is not None
        return replace(rotation, balances=torch.ones_like(rotation.balances)), *rest

    return patch.object(pruning, "measure_start", plain)


def starts(study: Study, names: Iterable[str]) -> None:
    """Measure untrained students of several shapes from each start, and strengths of the repair's penalty."""
    scores = study.scores(study.calibration(study.budget.calibration))
    for shape in SHAPES:
        for start in distinct_starts(study.checkpoint.architecture, shape, names):
            ridges = () if STARTS[start]["repair"] == "none" else (RIDGE,)
            untrained(study, "starts", shape, scores, start, *ridges)
    for ridge in RIDGES:
        untrained(study, "starts", "504/1024", scores, "rotate+repair", ridge)
        untrained(study, "starts", "FFN 1024", scores, "repair", ridge)


def distinct_starts(source: Architecture, shape: str, names: Iterable[str]) -> list[str]:
    """Return the starts that give students of a shape of their own: rotation needs cut channels, ridge cut inputs."""
    target = source.reshaped(SHAPES[shape])
    found: dict[tuple[bool, str, bool], str] = {}
    for name in names:
        rotates = target.hidden_size < source.hidden_size and STARTS[name]["start"] == "rotate"
        repair = STARTS[name]["repair"]
        repair = "none" if repair == "ridge" and not cuts_inputs(source, target) else repair
        found.setdefault((rotates, repair, rotates and name == UNBALANCED), name)
    return list(found.values())


def untrained(study: Study, title: str, shape: str, scores: Path, start: str, *ridge: float) -> None:
    """Measure an untrained student unless it was measured."""
    key = " | ".join([title, shape, start, *(f"ridge {strength:g}" for strength in ridge)])
    more = {"ridge": ridge[0]} if ridge else {}
    study.measurements.once(key, partial(study.untrained, SHAPES[shape], scores, start, **more))


def aggregations(study: Study, _: Iterable[str]) -> None:
    """Measure what each pair of aggregations keeps."""
    calibration = study.calibration(study.budget.calibration)
    for batch, sequence in product(get_args(Aggregation), repeat=2):
        settings = ImportanceSettings(batch_aggregation=batch, sequence_aggregation=sequence)
        scores = study.scores(calibration, settings)
        title = f"aggregations | {batch} over samples, {sequence} over tokens"
        for shape in ("504/1024", "FFN 1024", "2 KV groups"):
            untrained(study, title, shape, scores, "plain")
        untrained(study, title, "FFN 1024", scores, "repair", RIDGE)


def calibration(study: Study, _: Iterable[str]) -> None:
    """Measure how much text, and how varied, scores, rotation and repair need."""
    full = study.budget.calibration
    texts = {
        f"{count} documents": study.calibration(count) for count in (full // 16, full // 8, full // 4, full // 2, full)
    }
    texts[f"{full // 4} documents of {NARROW_SOURCE}"] = study.calibration(full // 4, NARROW_SOURCE)
    for name, text in texts.items():
        scores = study.scores(text)
        for start, ridge in product(("repair", "rotate+repair"), (0.003, 0.03)):
            untrained(study, f"calibration | {name}, {text.num_tokens:,} tokens", "504/1024", scores, start, ridge)


def depth(study: Study, _: Iterable[str]) -> None:
    """Measure which layers each criterion drops in each mode, and what is lost with them."""
    scores = study.scores(study.calibration(study.budget.calibration))
    for criterion, mode in product(CRITERIA, MODES):
        settings = depth_settings(study, criterion, mode)
        size = settings.limit if criterion == "task" else settings.num_sequences * LENGTH
        key = f"{criterion} | {mode} | {size:,} {'questions' if criterion == 'task' else 'tokens'}"
        found = study.measurements.once(f"layers | {key}", partial(dropped_layers, study, scores, settings))
        for count, dropped in found["dropped"].items():
            row = f"depth | {key} | {count} layers"
            measure = partial(study.untrained, None, scores, drop_layers=dropped)
            figures = study.measurements.once(f"without layers | {', '.join(map(str, dropped))}", measure)
            study.measurements.once(row, partial(dict, figures, dropped=dropped))


def depth_settings(study: Study, criterion: str, mode: str) -> DepthSettings:
    """Return settings that measure less text where there is more to measure."""
    budget, greedy = study.budget, mode == "greedy"
    given: dict[str, Any] = {"criterion": criterion, "mode": mode}
    if criterion == "task":
        limit = budget.greedy_task_limit if greedy else budget.task_limit
        given |= {"task": TASK, "include_path": str(study.data / "lm_eval_tasks"), "limit": limit}
    given["num_sequences"] = budget.greedy_sequences if greedy else budget.depth_sequences
    return DepthSettings(**given)


def dropped_layers(study: Study, scores: Path, settings: DepthSettings) -> dict[str, Any]:
    """Return which layers leave, for each number of layers that stay."""
    layers = range(study.checkpoint.architecture.num_hidden_layers)
    table = choose_layers(
        study.checkpoint,
        ImportanceScores.load(scores, study.checkpoint.fingerprint),
        settings,
        load_space("default").protected_layers,
        study.budget.depths,
        lambda: study.tokens("depth", lambda: study.beginnings(0, study.budget.depth_sequences, LENGTH)),
        SEED,
        progress(f"{settings.criterion}, {settings.mode}"),
    )
    kept = {count: table[count - 1].nonzero().flatten().tolist() for count in study.budget.depths}
    return {"dropped": {str(count): sorted(set(layers) - set(stay)) for count, stay in kept.items()}}


def recovery(study: Study, names: Iterable[str]) -> None:
    """Distil students of one shape from each start, at the learning rate that suits it best."""
    budget = study.budget
    scores = study.scores(study.calibration(budget.calibration))
    for start in names:
        student = study.out / "students" / start.replace(", ", "-")
        if not student.is_dir():
            study.student(student, SHAPES["504/1024"], scores, start)
        reached = {}
        for rate in budget.rates:
            key = f"tuning | {start} | {rate:g} | {budget.tuning_tokens:,}"
            found = study.measurements.once(key, partial(tuned, study, student, rate))
            reached[rate] = found["tuning"]["kl_nats"]
        curve(study, student, start, min(reached, key=lambda rate: reached[rate]))


def tuned(study: Study, student: Path, rate: float) -> dict[str, Any]:
    """Distil a student on few tokens and measure it on a text of its own."""
    with TemporaryDirectory(dir=study.out) as work:
        model = load_for_training(student)
        train(study, model, rate, study.budget.tuning_tokens, Path(work))
        return study.losses(model, ["tuning"])


def curve(study: Study, student: Path, start: str, rate: float) -> None:
    """Distil a student on all tokens, stopping at each point to measure it on every text."""
    tokens, points = study.budget.points[-1], study.budget.points
    keys = {point: f"recovery | {start} | {rate:g} | {point:,}" for point in points}
    if all(key in study.measurements.all() for key in keys.values()):
        return
    work, model = study.out / "training" / f"{student.name}-{rate:g}", load_for_training(student)

    def measured(point: int) -> dict[str, Any]:
        seen = train(study, model, rate, tokens, work, point) if point else 0
        return {"tokens": seen, **study.losses(model)}

    for point, key in keys.items():
        study.measurements.once(key, partial(measured, point))
    shutil.rmtree(work, ignore_errors=True)


def train(study: Study, model: Any, rate: float, tokens: int, work: Path, stop: int | None = None) -> int:
    """Distil on the first tokens of the training text, up to a point of the schedule; return the tokens seen."""
    settings = DistillationSettings(
        tokens=tokens,
        learning_rate=rate,
        batch_sequences=study.budget.batch_sequences,
        micro_batch_sequences=study.budget.batch_sequences,
        num_evaluations=1,
        checkpoint_minutes=1000,
    )
    schedule = Schedule.resolve(settings, tokens, LENGTH)
    steps = schedule.steps_for(stop or tokens)
    name = f"{work.name}, {rate:g}"
    torch.manual_seed(SEED)
    few = study.stream(study.evaluation("tuning").first(1))
    distill(model, study.stream(study.training()), few, settings, schedule, work, SEED, steps, progress(name))
    release_memory()
    return steps * schedule.tokens_per_step


def progress(name: str, every_seconds: float = 30.0) -> Progress:
    """Return a progress function that says now and then how far something is."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every_seconds:
            last = time.monotonic()
            say(f"{name}: {done:,} of {total:,}")

    return tell


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def show(study: Study, kinds: Iterable[str]) -> None:
    """Print what was measured so far, as rows of a Markdown table."""
    columns = [f"{figure}, {name}" for name in (*EVALUATED, "tuning") for figure in ("KL", "perplexity")]
    print(f"| measured | {' | '.join(columns)} | more |\n|{'---|' * (len(columns) + 2)}")
    for key, figures in study.measurements.all().items():
        kind, _, rest = key.partition(" | ")
        if kind in {"teacher", *kinds}:
            texts = [figures.get(name, {}) for name in (*EVALUATED, "tuning")]
            cells = [f"{text[f]:.4g}" if text else "" for text in texts for f in ("kl_nats", "perplexity")]
            more = {name: value for name, value in figures.items() if name not in {*EVALUATED, "tuning"}}
            words = "; ".join(f"{name} {value}" for name, value in more.items())
            print(f"| {kind}: {rest.replace(' | ', '; ')} | {' | '.join(cells)} | {words} |")


PARTS: dict[str, Callable[[Study, Iterable[str]], None]] = {
    "aggregations": aggregations,
    "depth": depth,
    "starts": starts,
    "recovery": recovery,
    "calibration": calibration,
}
KINDS = {"recovery": ("tuning", "recovery"), "depth": ("layers", "depth")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--starts", help=f"for recovery and starts, separated by ';', of: {'; '.join(STARTS)}")
    parser.add_argument("--show", action="store_true", help="print what is measured, and measure nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, in OUT/smoke")
    args = parser.parse_args()
    out = args.out / "smoke" if args.smoke else args.out
    study = Study(args.data.absolute(), out.absolute(), SMOKE if args.smoke else Budget())
    names = args.starts.split(";") if args.starts else list(STARTS)
    unknown = set(names) - set(STARTS)
    if unknown:
        parser.error(f"no start is called {', '.join(sorted(unknown))}; choose from {'; '.join(STARTS)}")
    default_display()  # silences the libraries' own bars
    if not args.show:
        study.measurements.once("teacher", lambda: study.losses(load_for_inference(study.checkpoint.path)))
        PARTS[args.part](study, names)
    show(study, KINDS.get(args.part, (args.part,)))


if __name__ == "__main__":
    main()
