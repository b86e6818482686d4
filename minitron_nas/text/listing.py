"""Which files a path, a glob or a folder stands for: what is read, of which split, and what is passed over."""

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

from minitron_nas.errors import DataError
from minitron_nas.storage.machine import expanded
from minitron_nas.storage.run_folder import is_written_by_a_command
from minitron_nas.text.card import files_of_card
from minitron_nas.text.formats import COMPRESSIONS, PROSE, SAVED, TABLES, kind_of
from minitron_nas.text.settings import TextSettings

_SPLITS = {
    "train": ("train", "training", "trainset", "traindata"),
    "validation": ("validation", "valid", "val", "dev", "development", "valset", "devset", "devdata"),
    "test": ("test", "testing", "eval", "evaluation", "tests", "testset", "testdata", "evalset", "evaldata", "holdout"),
}
"""What `datasets` takes for the name of a split, and what else files of one are called."""

_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_NOT_IN_PROSE = frozenset(("training", "dev", "development", "testing", "tests", "eval", "evaluation"))
"""Words that mean something else as often in names of prose."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_HELD_OUT = re.compile(r"held[-_. ]?out", re.IGNORECASE)

_SHARD = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_CARD = re.compile(
    r"(readme|licen[cs]es?|notice|copying|citation|changelog|contributing|code_of_conduct|authors|dataset_?card)"
    r"([-_.][a-z0-9.]{1,8})?"
)
_SAVED_SPLITS = "dataset_dict.json"
_METADATA = frozenset(
    (_SAVED_SPLITS, "dataset_info.json", "dataset_infos.json", "state.json", "metadata.json", "croissant.json")
)
_MAC_ARCHIVE = "__MACOSX"


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one source.

    Attributes:
        files: What is read, sorted; a folder that `Dataset.save_to_disk` wrote is one of them.
        split: Whose files they are, and which belong to none beside them; None where no file belongs to one.
        passed_over: Names of files that are not read, by reason.
    """

    files: tuple[Path, ...] = ()
    split: str | None = None
    passed_over: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def about_passed_over(self) -> str:
        """Say in one line what is not read and why; "" where all is."""
        said = [_counted(names, reason) for reason, names in self.passed_over.items()]
        return f"passed over: {', '.join(said)}" if said else ""


def _counted(names: Sequence[str], why: str) -> str:
    many = len(names) > 1
    return f"{len(names)} file{'s' * many} ({why}: {names[0]}{', ...' * many})"


def list_files(name: str, settings: TextSettings | None) -> Listing:
    """Return the files that a name stands for; none where it stands for nothing here.

    A file that is named is read whatever it is called. In a folder, and among the files that a glob matches, hidden
    files, what lies in the folder of a run, a step or a model, cards, licences, metadata and what has no kind of text
    or table are passed over; so is prose beside tables, and what belongs to another split than the settings name.

    Args:
        name: A path, a glob or a folder; ~ is the home folder.
        settings: Say which split is wanted, and which configuration of a hub dataset's clone or folder that is named
            after it; without them the files of all are listed.

    Raises:
        DataError: If there are splits or configurations, and not the one that is wanted.
    """
    path = expanded(name)
    if path.is_file():
        return Listing((path,))  # also where its name holds what a glob would read otherwise
    if path.is_dir():
        base, pattern = path, ""
        found = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        base, pattern = _base_of(path)
        matches = glob.glob(pattern, root_dir=base, recursive=True) if pattern else []
        found = sorted(base / match for match in matches if (base / match).is_file())
    return _Sorter(name, base, pattern).sort(found, settings)


def _base_of(path: Path) -> tuple[Path, str]:
    """Split a glob into the folder that exists as it is written, and the rest."""
    base = path.parent
    while not base.is_dir() and base != base.parent:
        base = base.parent
    return base, str(path.relative_to(base))


class _Sorter:
    """Tells what is read of a folder or a glob from what is not."""

    def __init__(self, name: str, base: Path, pattern: str) -> None:
        self._name, self._base, self._pattern = name, base, pattern
        self._passed: dict[str, list[str]] = {}

    def sort(self, found: Sequence[Path], settings: TextSettings | None) -> Listing:
        """Sort files.

        Args:
            found: All that lie there.
            settings: Say which split is wanted.
        """
        is_written = cache(is_written_by_a_command)
        files = self._without(
            "of a run, a step or a model", found, lambda file: any(map(is_written, self._folders_above(file)))
        )
        files = self._without("hidden", files, self._is_hidden)
        files = _saved_as_one(files)
        files = self._without("card, licence or metadata", files, _is_about_data)
        for suffix in sorted({_whole_suffix(file) for file in files if kind_of(file) is None}):
            same = {file for file in files if kind_of(file) is None and _whole_suffix(file) == suffix}
            files = self._without(f"{suffix or 'no suffix'} is not read", files, same.__contains__)
        if kind_of(Path(self._pattern)) != PROSE:
            beside = {folder for file in files if kind_of(file) in TABLES for folder in file.parents}
            files = self._without(
                "prose beside tables", files, lambda file: kind_of(file) == PROSE and file.parent in beside
            )
        split = None
        if settings is not None:
            files, split = self._of_split(files, settings)
        return Listing(tuple(files), split, self._passed)

    def _without(self, reason: str, files: Sequence[Path], is_passed: Callable[[Path], bool]) -> list[Path]:
        kept = []
        for file in files:
            if is_passed(file):
                self._passed.setdefault(reason, []).append(str(self._relative(file)))
            else:
                kept.append(file)
        return kept

    def _relative(self, file: Path) -> PurePosixPath:
        return PurePosixPath(file.relative_to(self._base))

    def _is_hidden(self, file: Path) -> bool:
        asked = set(PurePosixPath(self._pattern).parts)
        return any((part.startswith(".") or part == _MAC_ARCHIVE) and part not in asked for part in self._inner(file))

    def _folders_above(self, file: Path) -> list[Path]:
        """Folders that a file lies in, below the one that was named."""
        return [self._base / folder for folder in self._relative(file).parents][:-1]

    def _inner(self, file: Path) -> tuple[str, ...]:
        return self._relative(file).parts

    def _of_split(self, files: Sequence[Path], settings: TextSettings) -> tuple[list[Path], str | None]:
        labels, carded = self._labels(files, settings.config)
        if files and settings.config is not None and not carded:
            files = self._of_config(files, settings.config)
            labels = {file: labels[file] for file in files}
        known = {label for label in labels.values() if label is not None}
        if not known:
            return list(files), None
        wanted = self._wanted(settings.split)
        # A file of no split is text like any other, unless a card says what the splits are.
        takes_others = "train" in wanted and not carded
        kept = self._without("in no split", files, lambda file: labels[file] is None and not takes_others)
        kept = [file for file in kept if labels[file] in {*wanted, None}]
        for label in sorted(known - wanted):
            others = {file for file in files if labels[file] == label}
            self._without(f"split {label}", files, others.__contains__)
        if not kept or not (known & wanted or takes_others):
            raise DataError(
                f"{self._name} has the splits {', '.join(sorted(known))}, and none is {settings.split!r}; choose "
                "one with --set text.split=NAME, or in a blend with the source's own split=NAME"
            )
        beside = [str(self._relative(file)) for file in kept if labels[file] is None]
        told = f" and {_counted(beside, 'in no split')}" if beside and len(beside) < len(kept) else ""
        return kept, f"{'+'.join(sorted(wanted))}{told}"

    def _of_config(self, files: Sequence[Path], config: str) -> list[Path]:
        """Return what lies in the folder that is named after a configuration.

        Raises:
            DataError: If there is no such folder.
        """
        folder = self._base / config
        if not any(folder in file.parents for file in files):
            folders = {self._inner(file)[0] for file in files if len(self._inner(file)) > 1}
            there = f"only {', '.join(sorted(folders))}" if folders else "nor any other"
            raise DataError(
                f"{self._name} has no configuration {config!r}, which a card or a folder would tell, {there}; choose "
                "one with --set text.config=NAME, or leave it out; a source of a blend may have its own: config=NAME"
            )
        return self._without(f"not of configuration {config}", files, lambda file: folder not in file.parents)

    def _labels(self, files: Sequence[Path], config: str | None) -> tuple[dict[Path, str | None], bool]:
        card = files_of_card(self._base, config) if not self._pattern else {}
        if card and any(file in card for file in files):
            return {file: card.get(file) for file in files}, True
        return {file: _saved_split(file) or self._split_of_name(file) for file in files}, False

    def _split_of_name(self, file: Path) -> str | None:
        return _split_of(self._relative(file), self._base.name, kind_of(file))

    def _wanted(self, split: str) -> set[str]:
        asked = _split_of(PurePosixPath(self._pattern), self._base.name, kind_of(Path(self._pattern)))
        if self._pattern and asked is not None:
            return {asked}
        names = split.split("+")
        if any("[" in name for name in names):
            raise DataError(f"text.split={split} takes a slice, which files here cannot give; name whole splits")
        return {_SPLIT_OF_WORD.get(name, name) for name in names}


def _saved_as_one(files: Sequence[Path]) -> list[Path]:
    """Put the folder in the place of the files that `Dataset.save_to_disk` wrote."""
    named = {(file.parent, file.name) for file in files}
    saved = {folder for folder, name in named if name == SAVED[0] and (folder, SAVED[1]) in named}
    return sorted({file.parent if file.parent in saved else file for file in files})


def _saved_split(folder: Path) -> str | None:
    """The split of a folder that `DatasetDict.save_to_disk` wrote."""
    is_split = folder.is_dir() and (folder.parent / _SAVED_SPLITS).is_file()
    return _SPLIT_OF_WORD.get(folder.name, folder.name) if is_split else None


def _is_about_data(file: Path) -> bool:
    stem = file.name.lower()
    for suffix in reversed(file.suffixes):
        if kind_of(Path(f"a{suffix}")) is not None or suffix.lower() in COMPRESSIONS:
            stem = stem.removesuffix(suffix.lower())
    return not file.is_dir() and (file.name.lower() in _METADATA or _CARD.fullmatch(stem) is not None)


def _whole_suffix(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in COMPRESSIONS else suffixes[-1:])


def _split_of(name: PurePosixPath, base: str, kind: str | None) -> str | None:
    """Return the split that the name of a file tells, as `datasets` reads it: the file's own word before folders'."""
    if not name.parts:
        return None
    shard = _SHARD.match(name.name)
    if shard is not None and (name.parent.name or base) == "data":
        return _SPLIT_OF_WORD.get(shard["split"], shard["split"])
    first = name.name.split(".")[0] if name.name.count(".") == 1 else name.name
    for part in (first, *reversed(name.parts[:-1])):
        for word in _words(part):
            if word in _SPLIT_OF_WORD and (kind != PROSE or word not in _NOT_IN_PROSE):
                return _SPLIT_OF_WORD[word]
    return None


def _words(part: str) -> Iterator[str]:
    yield from (word.lower() for word in _WORD.findall(_HELD_OUT.sub("holdout", part)))
