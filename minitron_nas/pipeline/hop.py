"""`Hop`: one step down the family."""

from dataclasses import dataclass
from pathlib import Path

from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.pipeline.engine import Done
from minitron_nas.pipeline.run import Source
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.search.costing import Costing
from minitron_nas.space.size import Size


@dataclass(frozen=True, slots=True)
class Lessons:
    """What students of a size learn from.

    Attributes:
        files: The text and what the KD teacher says over it.
        trials: The same for short trainings: with a cache of its final hidden states, unless that is large or states
            inside it are to be matched.
        signal: The stage in which it spoke.
        continuations: How it goes on greedily from the beginnings of held-out sequences, as token ids.
    """

    files: TrainingFiles
    trials: TrainingFiles
    signal: Done
    continuations: list[list[int]]

    def of_trials(self, settings: DistillationSettings) -> DistillationSettings:
        """Return the settings of a distillation as short trainings have them, whose signal may be another.

        Args:
            settings: Of a student.
        """
        return settings if self.trials is self.files else settings.model_copy(update={"teacher_signal": "hidden_cache"})


@dataclass(frozen=True, slots=True)
class Hop:
    """One step down the family: a size, the model that it is pruned from, and what its students learn from.

    Attributes:
        size: How large its students are to be.
        source: The model that it is pruned from.
        costing: What shapes that are cut from it cost.
        prepared_in: Where what makes it a prepared teacher lies, once a stage needs it.
        prepared_by: The stage that did it.
        lessons: Text and signals.
        first_signal: The stage in which the first teacher spoke, against which all are measured.
        learning_rate: Peak of its trainings: the plan's, or where that is `auto` the one that was found.
    """

    size: Size
    source: Source
    costing: Costing
    prepared_in: Path
    prepared_by: Done
    lessons: Lessons
    first_signal: Done
    learning_rate: float

    @property
    def label(self) -> str:
        """What its models, files and folders are called."""
        return self.size.label

    @property
    def prepared(self) -> PreparedTeacher:
        """The model that it is pruned from, ranked and rotated."""
        return PreparedTeacher.open(self.source.checkpoint.path, self.prepared_in)

    @property
    def needs(self) -> tuple[Done, ...]:
        """The stages whose files the search and the training of the size read, but for the text."""
        signals = [self.lessons.signal]
        if self.first_signal is not self.lessons.signal:
            signals.append(self.first_signal)
        return *self.source.made_by, self.prepared_by, *signals
