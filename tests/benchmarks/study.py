"""What studies on SmolLM2 share: the teacher, texts near and far, what was measured, and training with stops.

A study keeps tokens, teacher signals and students in a folder, and every figure in one JSON file under a key that
can be read. A figure that is there is not measured again, so that a study of hours goes on where it was.
"""

import importlib
import inspect
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, islice
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.caches import keep_signal, open_signal
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.distillation.training.lesson import Lesson, Stream
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.execution.device import release_memory
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.models.source import demo_teacher, resolve_teacher
from minitron_nas.progress import Progress
from minitron_nas.storage.atomic import read_json, whole_folder, write_json
from minitron_nas.text.packing import pack
from minitron_nas.text.tokenization import tokenize
from minitron_nas.text.tokens import PackedTokens

SEED = 0
LENGTH = 512
CALIBRATION_LENGTH = 1024
TUNING_TOKENS = 12_288
EVALUATION_SEQUENCES = 8
EVALUATED = ("near", "far", "other")
"""The corpus' validation split; WikiText-2; docstrings of Python's standard library."""

_LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n)")
_ARTICLE = re.compile(r"^ = [^=].*$", re.MULTILINE)
_MODULES = (
    "argparse", "array", "ast", "asyncio", "base64", "bisect", "calendar", "cmd", "collections", "configparser",
    "contextlib", "csv", "ctypes", "datetime", "decimal", "difflib", "dis", "doctest", "email.message", "fractions",
    "functools", "heapq", "html.parser", "http.client", "inspect", "io", "ipaddress", "itertools", "json", "locale",
    "logging", "mailbox", "math", "mimetypes", "multiprocessing.pool", "operator", "optparse", "os", "pathlib",
    "pickle", "platform", "pprint", "random", "re", "sched", "selectors", "shelve", "shutil", "socket", "sqlite3",
    "ssl", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit",
    "tokenize", "traceback", "turtle", "unittest", "urllib.request", "uuid", "warnings", "weakref",
    "xml.dom.minidom", "zipfile",
)  # fmt: skip


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
    """The teacher and the texts, kept in a folder, and what was measured on them.

    Attributes:
        data: Holds `corpus/*.parquet` (columns text, source, split) and `eval_text/wikitext2_valid.txt`.
        out: The folder.
        measurements: The figures.
        also: Further texts to measure on, by name: folders of .txt or .md files, one for each document.
        source: Another teacher than the demo's, whatever `resolve_teacher` takes.
        hear: What training hears of the teacher's signal.
    """

    def __init__(self, data: Path, out: Path, measurements: Path) -> None:
        self.data, self.out = data, out
        self.measurements = Measurements(measurements)
        self.also: dict[str, Path] = {}
        self.source: str | None = None
        self.hear: Callable[[TeacherSignal], TeacherSignal] = lambda signal: signal

    @cached_property
    def checkpoint(self) -> Checkpoint:
        folder = self.out / "teacher"
        if not folder.is_dir():
            with TemporaryDirectory() as work:
                if self.source is None:
                    original, _ = demo_teacher(Path(work))
                else:
                    original = resolve_teacher(self.source, Path(work), progress("teacher"))
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
        name = f"calibration-{num_sequences}{f'-{source}' if source else ''}"
        return self.tokens(name, lambda: self.beginnings(0, num_sequences, CALIBRATION_LENGTH, source))

    def training(self, num_tokens: int) -> PackedTokens:
        """Return the tokens of one distillation, in the order of training."""
        return self.tokens("training", lambda: self.beginnings(1, -(-num_tokens // LENGTH), LENGTH))

    def evaluation(self, name: str, count: int = EVALUATION_SEQUENCES) -> PackedTokens:
        """Return an evaluation text, or the one that learning rates are tuned on."""
        kept = f"also-{name}" if name in self.also else name
        kept = kept if count == EVALUATION_SEQUENCES else f"{kept}-{count}"
        return self.tokens(kept, lambda: self._read_evaluation(name, count))

    def _read_evaluation(self, name: str, count: int) -> PackedTokens:
        if name in self.also:
            files = sorted(file for file in self.also[name].rglob("*") if file.suffix in {".txt", ".md"})
            files = random.Random(SEED).sample(files, len(files))
            return self.packed([[_LINE_BREAK.sub(" ", file.read_text())] for file in files], count, LENGTH)
        if name == "tuning":
            return self.beginnings(2, count, LENGTH)
        if name == "near":
            return self.packed(by_sources(self.corpus, "valid"), count, LENGTH)
        if name == "far":
            wikipedia = (self.data / "eval_text" / "wikitext2_valid.txt").read_text()
            return self.packed([_ARTICLE.split(wikipedia)[1:]], count, LENGTH)
        modules = random.Random(SEED).sample(_MODULES, len(_MODULES))
        return self.packed([[docstrings(module)] for module in modules], count, LENGTH)

    def beginnings(self, third: int, num_sequences: int, length: int, source: str | None = None) -> PackedTokens:
        """Read from one third of the training documents, so that texts of other thirds hold none of them."""
        thirds = [documents[third::3] for documents in by_sources(self.corpus, "train", source)]
        return self.packed(thirds, num_sequences, length)

    def packed(self, sources: list[list[str]], num_sequences: int, length: int) -> PackedTokens:
        """Fill sequences from sources in turn."""
        vocab_size = self.checkpoint.architecture.vocab_size
        streams = [sequences(documents, self.tokenizer, vocab_size, length) for documents in sources]
        found = list(islice(in_turn(streams), num_sequences))
        assert len(found) == num_sequences, f"{len(found)} sequences found, {num_sequences} needed"
        return pack(chain.from_iterable(found), length)

    def stream(self, tokens: PackedTokens, top_k: int | None = None) -> Stream:
        """Return tokens with what the teacher says over them, which it says once; its most probable ones if so many."""
        name = tokens.fingerprint if top_k is None else f"{tokens.fingerprint}-top-{top_k}"
        teacher, fingerprint = self.checkpoint.path, self.checkpoint.fingerprint
        place = SignalPlace(self.out / "signals" / name, fingerprint, tokens)
        keep_signal(top_k, partial(load_for_inference, teacher), place, progress("signal"))
        release_memory()
        return Stream(tokens, open_signal(teacher, fingerprint, tokens, place.path))

    def losses(self, model: Any, names: Iterable[str] = EVALUATED, count: int = EVALUATION_SEQUENCES) -> dict[str, Any]:
        """Return KL to the teacher and perplexity on so many sequences of texts."""
        found = {}
        for name in names:
            stream = self.stream(self.evaluation(name, count))
            losses = validate(model, stream.tokens, stream.signal)
            found[name] = {"kl_nats": round(losses.kl_nats, 5), "perplexity": round(exp(losses.loss_nats), 3)}
        return found

    def train(
        self, model: Any, rate: float, tokens: int, work: Path, stop: int | None = None, /, **changes: Any
    ) -> int:
        """Distil on the first tokens of the training text, up to a point of the schedule; return the tokens seen.

        Args:
            model: The student.
            rate: Its peak learning rate.
            tokens: Of the schedule.
            work: For checkpoints.
            stop: The point.
            changes: Other settings.
        """
        given = {"batch_sequences": 2, "micro_batch_sequences": 2, "num_evaluations": 1, "checkpoint_minutes": 1000}
        settings = DistillationSettings(**given | {"tokens": tokens, "learning_rate": rate} | changes)
        schedule = Schedule.resolve(settings, tokens, LENGTH)
        steps = schedule.steps_for(stop or tokens)
        torch.manual_seed(SEED)
        few = self.stream(self.evaluation("tuning").first(1))
        text = self.training(tokens)
        if settings.teacher_signal == "online":
            train = Stream(text, OnlineTeacher(load_for_inference(self.checkpoint.path)))
        else:
            train = self.stream(text, settings.cached_top_k)
        train = replace(train, signal=self.hear(train.signal))
        lesson = Lesson(train, few, settings, schedule, SEED)
        distill(model, lesson, work, steps, progress(f"{work.name}, {rate:g}"))
        release_memory()
        return steps * schedule.tokens_per_step

    def recover(
        self,
        begin: Callable[[], Any],
        kind: str,
        name: str,
        rates: Sequence[float],
        points: Sequence[int],
        /,
        tokens: int | None = None,
        **changes: Any,
    ) -> None:
        """Distil a student at the best of some learning rates, and measure it at points of the way.

        Args:
            begin: Loads the student.
            kind: Of the study, first in the keys of what is measured.
            name: Of the student and how it learns.
            rates: Learning rates, of which few tokens choose the best, where there are several.
            points: Tokens after which it is measured.
            tokens: Of the schedule; the last point by default.
            changes: Settings of the distillation.
        """
        tokens = tokens or points[-1]
        self.training(tokens)
        reached = dict.fromkeys(rates, 0.0)
        for rate in rates if len(rates) > 1 else ():
            key = f"tuning | {name} | {rate:g} | {TUNING_TOKENS:,}"
            found = self.measurements.once(key, partial(self._tuned, begin, rate, changes))
            reached[rate] = found["tuning"]["kl_nats"]
        rate = min(reached, key=lambda rate: reached[rate])
        keys = {point: f"{kind} | {name} | {rate:g} | {point:,}" for point in points}
        if all(key in self.measurements.all() for key in keys.values()):
            return
        folder = re.sub(r"\W+", "-", f"{kind}-{name}-{rate:g}")
        work, model = self.out / "training" / folder, begin()

        def measured(point: int) -> dict[str, Any]:
            seen = self.train(model, rate, tokens, work, point, **changes) if point else 0
            return {"tokens": seen, **self.losses(model)}

        for point, key in keys.items():
            self.measurements.once(key, partial(measured, point))
        shutil.rmtree(work, ignore_errors=True)

    def _tuned(self, begin: Callable[[], Any], rate: float, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Distil a student on few tokens and measure it on a text of its own."""
        with TemporaryDirectory(dir=self.out) as work:
            model = begin()
            self.train(model, rate, TUNING_TOKENS, Path(work), **changes)
            return self.losses(model, ["tuning"])

    def show(self, kinds: Iterable[str]) -> None:
        """Print what was measured so far, as rows of a Markdown table."""
        names = (*EVALUATED, *self.also, "tuning")
        columns = [f"{figure}, {name}" for name in names for figure in ("KL", "perplexity")]
        print(f"| measured | {' | '.join(columns)} | more |\n|{'---|' * (len(columns) + 2)}")
        for key, figures in self.measurements.all().items():
            kind, _, rest = key.partition(" | ")
            if kind in {"teacher", *kinds}:
                texts = [figures.get(name, {}) for name in names]
                cells = [f"{text[f]:.4g}" if text else "" for text in texts for f in ("kl_nats", "perplexity")]
                more = {name: value for name, value in figures.items() if name not in names}
                words = "; ".join(f"{name} {value}" for name, value in more.items())
                print(f"| {kind}: {rest.replace(' | ', '; ')} | {' | '.join(cells)} | {words} |")


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


def sequences(documents: Iterable[str], tokenizer: Any, vocab_size: int, length: int) -> Iterator[list[Any]]:
    """Yield what fills one sequence each: the beginning of a document, or several short documents."""
    short: list[Any] = []
    for piece in tokenize((text[: 16 * length] for text in documents), tokenizer, vocab_size):
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
