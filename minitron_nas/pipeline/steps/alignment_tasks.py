"""lm-eval's tasks of an aligned student, beside the members of the run that it joins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from minitron_nas.evaluation.paired import Row, TaskResults
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.execution.device import release_memory
from minitron_nas.execution.workers import Workers
from minitron_nas.pipeline.display import Display
from minitron_nas.pipeline.steps.task_checks import require_tasks, results_of_run
from minitron_nas.pipeline.steps.tasks import benchmark, difference_rows, task_tables
from minitron_nas.settings import plan_error
from minitron_nas.storage.lineage import read_lineage
from minitron_nas.storage.run_folder import RunFolder, run_joined_by
from minitron_nas.storage.schemas import DIFFERENCES
from minitron_nas.storage.tables import write_rows

_TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class AlignmentTasks:
    """The tasks that an aligned student is asked.

    Attributes:
        evaluation: Names them.
        seed: Of the examples in prompts.
        run: The run that the student joins; None where it joins none.
    """

    evaluation: EvaluationSettings
    seed: int
    run: RunFolder | None

    @classmethod
    def of(cls, out: Path, given: EvaluationSettings | None, seed: int) -> Self:
        """Return what was asked for, for the rest what members of the run were asked that the student joins.

        Args:
            out: The student's folder.
            given: What was asked for; of its settings only those count that were set.
            seed: Of the alignment; where the student joins a run, the run's seed draws the same examples as there.

        Raises:
            RunFolderError: If the plan of the run cannot be read.
            PlanError: If its tasks and what was asked for do not go together, or lm-eval cannot do a task here.
        """
        given, run = given or EvaluationSettings(), run_joined_by(out)
        if given.include_path is not None:  # workers begin in other folders
            given = given.model_copy(update={"include_path": str(Path(given.include_path).absolute())})
        asked = cls(given, seed, None) if run is None else cls(*_asked_with(run, given, seed), run)
        if asked.evaluation.tasks:
            require_tasks(asked.evaluation)
        return asked

    def ask(self, folder: Path, name: str, student: Path, workers: Workers, display: Display) -> Sequence[Row]:
        """Ask an aligned student, and write into its folder what members have in the tables of a run.

        Args:
            folder: The student's, whole.
            name: What the tables call it.
            student: The folder of what it was before.
            workers: Where the tasks run.
            display: Shows them.

        Returns:
            The rows of `benchmarks.parquet`; none where there is no task.
        """
        if not self.evaluation.tasks:
            return ()
        release_memory()  # of the training
        with display.stage("tasks", f"lm-eval: {', '.join(self.evaluation.tasks)}"):
            found: TaskResults = workers.call(benchmark, model=folder, settings=self.evaluation, seed=self.seed)
        for table, rows in task_tables(name, found):
            write_rows(folder, table, rows)
        size = read_lineage(student).size
        others = (difference_rows(name, other, found, theirs) for other, theirs in self._others(student))
        if against := [{"size": size, **row} for rows in others for row in rows]:
            write_rows(folder, DIFFERENCES, against)
        return found.rows

    def _others(self, student: Path) -> Iterator[tuple[str, TaskResults]]:
        """Yield by name who has answered before: the run's teacher, and the student as it was."""
        members = {} if self.run is None else results_of_run(self.run.path)
        if _TEACHER in members:
            yield _TEACHER, members[_TEACHER]
        name = student.resolve().name
        if self.run is not None and self.run.student(name).resolve() == student.resolve():
            before = members.get(name)
        else:
            before = results_of_run(student).get(name)  # where it was aligned before
        if before is not None:
            yield name, before


def _asked_with(run: RunFolder, given: EvaluationSettings, seed: int) -> tuple[EvaluationSettings, int]:
    """Return a run's evaluation with what was given in its place, and its seed."""
    plan = run.read_plan()["plan"]
    values = {**(plan.get("evaluation") or {}), **given.model_dump(include=given.model_fields_set)}
    try:
        return EvaluationSettings.model_validate(values), plan.get("seed", seed)
    except ValidationError as error:
        raise plan_error(error, EvaluationSettings, f"evaluation of {run.plan}") from None
