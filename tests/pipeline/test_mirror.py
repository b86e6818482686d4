"""Runs that are kept at a URI: what goes there and when, what stays on scratch, and who may go on with them."""

import json
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from minitron_nas.distillation.training.checkpoints import last_whole, mark_whole
from minitron_nas.errors import MachineError, PlanError, PreemptedError, RunFolderError
from minitron_nas.pipeline.build import run_plan
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.engine import Engine, Left, Stage
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.mirror import Mirror
from minitron_nas.pipeline.plan import make_plan
from minitron_nas.pipeline.push import push
from minitron_nas.pipeline.show import show
from minitron_nas.pipeline.steps.compare import compare
from minitron_nas.reporting.html import write_report
from minitron_nas.storage.cache import scratch_folder
from minitron_nas.storage.remote import Store
from minitron_nas.storage.schemas import EXCLUSIONS, RUN_TABLES
from minitron_nas.storage.sealed import write_sealed
from minitron_nas.storage.tables import read_frame

URI = "memory://bucket/run"
STAYS = ("tokens/", "signals/", "prepared/", "trials/", "checkpoints/", ".")


class Listening(Quiet):
    """Remembers what was finished before and what was noted."""

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self.notes: list[str] = []

    def skip(self, stage: str) -> None:
        self.skipped.append(stage)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store of this process, and a machine without scratch or cache."""
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def names(files: Any) -> list[str]:
    return [path.removeprefix("/bucket/run/") for path in files.find("/bucket/run")]


def lose_scratch() -> None:
    shutil.rmtree(scratch_folder())


@dataclass
class Work:
    """Three stages, each of which needs the one before: text and a preparation stay on scratch, a student does not."""

    made: list[str] = field(default_factory=list)
    rounding: str = ""
    student: int = 1
    after: Callable[[Mirror], object] = lambda _: None

    def run(self) -> Listening:
        """Carry them out as a new process would."""
        display = Listening()
        mirror = Mirror(URI, display)
        folder = mirror.folder
        with folder.lock(), mirror.held():
            folder.plan.write_text("layout: 2\nplan: {}\nteacher: {}\ndata: {}\n")
            engine = Engine(folder, display, mirror)

            def action(name: str, file: Path) -> Callable[[Any], Left]:
                def act(progress: Any) -> Left:
                    self.made.append(name)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(name + (self.rounding if name == "prepare" else ""))
                    row = {"size": "90k", "rule": name, "num_shapes": 1}
                    return Left(name, rows=((EXCLUSIONS, [row]),) if name == "student" else ())

                return act

            needs = []
            for name, file in (("text", "tokens/a"), ("prepare", "prepared/b"), ("student", "students/90k/weights")):
                inputs = {"student": self.student} if name == "student" else {}
                stage = Stage(name, name, inputs, needs=needs[-1:], outputs=[folder.path / file], costly=True)
                needs.append(engine.run(stage, action(name, folder.path / file)))
            self.after(mirror)
            engine.finish()
        return display


def test_files_of_a_stage_go_to_the_uri_before_the_ledger_that_names_them(memory: Any, monkeypatch: Any) -> None:
    order: list[str] = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, file, name: order.append(name) or put(self, file, name))
    Work().run()
    assert order.index("plan.yaml") == 0
    last = max(place for place, name in enumerate(order) if name == "ledger.jsonl")
    assert order.index("students/90k/weights") < order.index("rows/student/exclusions.parquet") < last
    assert names(memory) == [
        "exclusions.parquet", "ledger.jsonl", "plan.yaml", "rows/student/exclusions.parquet", "students/90k/weights",
    ]  # fmt: skip


def test_what_stays_on_scratch_is_made_again_only_where_it_is_needed(memory: Any) -> None:
    work = Work()
    work.run()
    lose_scratch()
    assert work.run().skipped == ["text", "prepare", "student"]
    assert work.made == ["text", "prepare", "student"]
    lose_scratch()
    work.student = 2
    work.run()
    assert work.made[3:] == ["student", "text", "prepare"] or work.made[3:] == ["text", "prepare", "student"]
    lose_scratch()
    assert work.run().skipped == ["text", "prepare", "student"]


def test_what_another_machine_makes_in_other_rounding_leaves_what_was_built_on_it(memory: Any) -> None:
    work = Work()
    work.run()
    lose_scratch()
    work.student, work.rounding = 2, " in other rounding"
    told = work.run()
    assert "prepare: made again here, it differs from what another machine has built on" in told.notes
    lose_scratch()
    assert work.run().skipped == ["text", "prepare", "student"]


def test_a_changed_object_is_refused_by_name_and_a_removed_one_made_again(memory: Any) -> None:
    work = Work()
    work.run()
    memory.pipe_file("/bucket/run/students/90k/weights", b"STUDENT")
    assert work.run().skipped == ["text", "prepare", "student"]  # what is on scratch is whole
    lose_scratch()
    with pytest.raises(RunFolderError, match=f"{URI}/students/90k/weights is not what the stage 'student' wrote"):
        work.run()
    memory.rm_file("/bucket/run/students/90k/weights")
    work.run()
    assert work.made[3:] == ["text", "prepare", "student"]
    assert memory.cat_file("/bucket/run/students/90k/weights") == b"student"


def test_a_store_that_fails_is_told_with_what_is_kept_and_the_same_command_goes_on(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, put = Work(), type(memory).put_file

    def fail(self: Any, file: str, path: str, **more: Any) -> None:
        if path.endswith("students/90k/weights"):
            raise TimeoutError("the line is dead")
        put(self, file, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", fail)
        with pytest.raises(MachineError) as told:
            work.run()
    assert f"{URI}/students/90k/weights cannot be written (the line is dead)" in str(told.value)
    assert "3 finished stages" in str(told.value)
    assert str(scratch_folder()) in str(told.value)
    assert "student" not in memory.cat_file("/bucket/run/ledger.jsonl").decode()
    assert work.run().skipped == ["text", "prepare", "student"]
    assert "students/90k/weights" in names(memory)
    assert work.made == ["text", "prepare", "student"]


def test_scratch_that_another_machine_has_overtaken_is_fetched_anew(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    monkeypatch.setenv("MINITRON_NAS_SCRATCH", str(tmp_path / "one"))
    work.run()
    monkeypatch.setenv("MINITRON_NAS_SCRATCH", str(tmp_path / "two"))
    work.student = 2
    work.run()
    monkeypatch.setenv("MINITRON_NAS_SCRATCH", str(tmp_path / "one"))
    made = len(work.made)
    assert work.run().skipped == ["text", "prepare", "student"]
    assert len(work.made) == made
    (ledger,) = (tmp_path / "one").rglob("ledger.jsonl")
    assert ledger.read_bytes() == memory.cat_file("/bucket/run/ledger.jsonl")


def test_a_run_that_was_removed_from_its_uri_begins_anew(memory: Any) -> None:
    work = Work()
    work.run()
    memory.store.clear()
    work.run()
    assert work.made == ["text", "prepare", "student"] * 2


def test_a_uri_that_holds_something_else_is_refused(memory: Any) -> None:
    memory.pipe_file("/bucket/run/notes.txt", b"notes")
    with pytest.raises(RunFolderError, match=r"holds other objects \(notes.txt\) but no plan.yaml of a run"):
        Work().run()
    assert names(memory) == ["notes.txt"]


def test_a_second_command_is_refused_and_a_killed_one_is_not(memory: Any) -> None:
    process = {"pid": 2**22 + 1, "started": 1.0, "machine": platform.node(), "command": "build"}
    memory.pipe_file("/bucket/run/.owners/killed.json", json.dumps({"process": process, "beat": 0}).encode())

    def second(mirror: Mirror) -> None:
        with pytest.raises(RunFolderError, match=f"{URI} is in use by process"), Mirror(URI, Quiet()).held():
            pass

    Work(after=second).run()
    assert not [name for name in names(memory) if name.startswith(".owners")]


def checkpoint(folder: Path, step: int) -> Path:
    """A whole checkpoint of a training, and its best weights so far."""
    for place, file in ((f"checkpoint-{step}", "model"), (f"checkpoint-{step}", "optimizer"), ("best-1", "model")):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / f"{file}.safetensors").write_text(f"{file} {step}")
        write_sealed(folder / place / f"{file}.checksums.json", {"a": "b"})
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    mark_whole(folder / f"checkpoint-{step}", "this")
    return folder / f"checkpoint-{step}"


def test_what_is_under_way_outlives_the_machine(memory: Any) -> None:
    def stop(mirror: Mirror) -> None:
        folder = mirror.folder
        checkpoint(folder.checkpoints("90k"), 2)
        checkpoint(folder.starts("90k") / "key", 2)
        checkpoint(folder.trials("90k") / "key" / "checkpoints" / "shape", 1)
        write_sealed(folder.trials("90k") / "key" / "screen" / "shape.json", {"kl": 1.0})
        (folder.checkpoints("90k") / "checkpoint-3").mkdir()
        (folder.checkpoints("90k") / "checkpoint-3" / "model.safetensors").write_text("half")
        raise PreemptedError("it goes on")

    with pytest.raises(PreemptedError):
        Work(after=stop).run()
    under_way = [name for name in names(memory) if name.startswith(("checkpoints", "trials"))]
    files = ("complete", "model.checksums.json", "model.safetensors", "optimizer.checksums.json",
             "optimizer.safetensors", "trainer_state.json")  # fmt: skip
    best = ["checkpoints/90k/best-1/model.checksums.json", "checkpoints/90k/best-1/model.safetensors"]
    result = ["trials/90k/key/screen/shape.json"]
    assert under_way == [*best, *(f"checkpoints/90k/checkpoint-2/{name}" for name in files), *result]
    memory.pipe_file("/bucket/run/checkpoints/90k/checkpoint-4/model.safetensors", b"an upload that was killed")
    lose_scratch()

    def go_on(mirror: Mirror) -> None:
        folder = mirror.folder.checkpoints("90k")
        found = last_whole(folder, "this")
        assert found is not None
        assert (found.name, (found / "model.safetensors").read_text()) == ("checkpoint-2", "model 2")
        assert not (folder / "checkpoint-4").exists()
        checkpoint(folder, 5)
        raise PreemptedError("it goes on")

    with pytest.raises(PreemptedError):
        Work(after=go_on).run()
    later = [f"checkpoints/90k/checkpoint-5/{name}" for name in files]
    assert [name for name in names(memory) if name.startswith(("checkpoints", "trials"))] == [*best, *later, *result]

    def end(mirror: Mirror) -> None:
        shutil.rmtree(mirror.folder.path / "checkpoints")
        shutil.rmtree(mirror.folder.trials("90k"))

    Work(after=end).run()
    assert not [name for name in names(memory) if name.startswith(("checkpoints", "trials"))]


def test_several_nodes_need_scratch_that_all_of_them_see(
    monkeypatch: pytest.MonkeyPatch, trained_teacher: Path, text_file: Path
) -> None:
    monkeypatch.setattr("minitron_nas.pipeline.build.count_nodes", lambda settings, folder: 3)
    values = {"teacher": str(trained_teacher), "sizes": ["90k"], "data": str(text_file)}
    plan = make_plan({**values, "runner": {"kind": "ray", "address": "auto"}})
    with pytest.raises(PlanError, match="the cluster has 3 nodes.*set MINITRON_NAS_SCRATCH"):
        run_plan(plan, URI, display=Quiet())


def test_a_build_goes_on_elsewhere_and_is_read_from_its_uri_by_all_that_take_a_run(
    repeat: Callable[..., Family], begun: Callable[[Path, str], Path], finished: Path, memory: Any, tmp_path: Path
) -> None:
    half = begun(tmp_path / "half", "90k distil")
    for file in sorted(half.rglob("*")):
        name = str(file.relative_to(half))
        if file.is_file() and not name.startswith(STAYS):
            memory.put_file(str(file), f"/bucket/run/{name}")
    before = [entry["stage"] for entry in ledger_of(memory)]
    display = Listening()
    repeat(URI, display=display)
    assert [stage for stage in display.skipped if stage in before] == before
    assert display.notes[-1].startswith(f"{URI} holds the run (")
    there = names(memory)
    assert {"report.html", "evaluations.parquet", "study.journal", "students/90k/README.md"} <= {*there}
    assert not [name for name in there if name.startswith(STAYS)]
    lose_scratch()
    again = Listening()
    repeat(URI, display=again)
    assert again.skipped == [*before, "90k distil", "90k evaluate", "study"]
    assert not list(scratch_folder().rglob("tokens"))
    lose_scratch()
    read = Family(URI)
    assert not list(read.path.rglob("students/*/model.safetensors"))
    (member,) = read.members
    weights = "students/90k/model.safetensors"
    assert (member.path / "model.safetensors").read_bytes() == (finished / weights).read_bytes()
    for table in RUN_TABLES:
        ours, theirs = (
            frame.drop(columns=[name for name in frame if "seconds" in name])
            for frame in (read_frame(path, table) for path in (read.path, finished))
        )
        pd.testing.assert_frame_equal(ours, theirs)
    memory.rm_file("/bucket/run/report.html")
    assert write_report(URI).read_bytes() == memory.cat_file("/bucket/run/report.html")
    assert show(URI).facts["finished"] is True
    assert show(f"{URI}/students/90k").facts["proof_holds"] is True
    assert compare(URI, str(finished), display=Quiet()).passes
    assert "model.safetensors" in push(URI, "someone/family", "90k", dry_run=True).files
    content = memory.cat_file("/bucket/run/students/90k/model.safetensors")
    memory.pipe_file("/bucket/run/students/90k/model.safetensors", content[:-1] + b"\x55")
    with pytest.raises(
        RunFolderError, match=r"students/90k/model.safetensors is not what the stage '90k distil' wrote"
    ):
        _ = read.members[0].path


def ledger_of(files: Any) -> list[dict[str, Any]]:
    lines = files.cat_file("/bucket/run/ledger.jsonl").decode().splitlines()
    return [json.loads(line) for line in lines]
