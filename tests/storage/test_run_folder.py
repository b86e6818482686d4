import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from minitron_nas.errors import MinitronNasError, RunFolderError
from minitron_nas.pipeline.plan import deciding
from minitron_nas.storage.run_folder import LAYOUT, RunFolder, new_folder, require_new_folder

PLAN = {
    "teacher": "owner/teacher",
    "sizes": (110_000_000, 94_000_000),
    "distillation": {"tokens": 1000, "learning_rate": 1e-4},
    "runner": {"kind": "ray", "cpus_per_trial": None},
}
ABOUT = {
    "versions": {"torch": "2.6"},
    "teacher": {"source": "owner/teacher", "fingerprint": "abc"},
    "data": {"fingerprint": "text"},
}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def begun(folder):
    """A run whose first stage has finished."""
    folder.write_plan(PLAN, ABOUT, deciding)
    folder.ledger.touch()
    return folder


def test_everything_has_its_place(folder):
    root = folder.path
    assert folder.plan == root / "plan.yaml"
    assert folder.ledger == root / "ledger.jsonl"
    assert folder.report == root / "report.html"
    assert folder.signal("teacher", "train") == root / "signals" / "teacher" / "train"
    assert folder.importance("teacher") == root / "importance" / "teacher"
    assert folder.prepared("110M") == root / "prepared" / "110M"
    assert folder.trials("110M") == root / "trials" / "110M"
    assert folder.screened("110M") == root / "screened" / "110M.json"
    assert folder.rows("110M distil") == root / "rows" / "110M-distil"
    assert folder.study == root / "study.journal"
    assert folder.given.parent == folder.work == root / "work"
    assert folder.student("110M") == root / "students" / "110M"
    assert folder.baseline("110M-depth-only") == root / "baselines" / "110M-depth-only"
    assert folder.checkpoints("110M") == root / "checkpoints" / "110M"
    assert not root.exists()


def test_the_plan_is_written_with_what_it_is_about(folder):
    folder.write_plan(PLAN, ABOUT, deciding)
    written = yaml.safe_load(folder.plan.read_text())
    assert written == {"layout": LAYOUT, "plan": {**PLAN, "sizes": [110_000_000, 94_000_000]}, **ABOUT}


def test_the_same_plan_goes_on_and_leaves_the_file_as_it_was(begun):
    before = begun.plan.read_bytes()
    begun.write_plan(PLAN, {**ABOUT, "versions": {"torch": "2.7"}}, deciding)
    assert begun.plan.read_bytes() == before


def test_how_work_is_done_may_change_and_is_written(begun):
    distillation = {**PLAN["distillation"], "deepspeed": "zero-3"}
    other = {**PLAN, "runner": {"kind": "local"}, "distillation": distillation, "evaluation": {"tasks": ["a"]}}
    begun.write_plan(other, {**ABOUT, "versions": {"torch": "2.7"}}, deciding)
    written = yaml.safe_load(begun.plan.read_text())
    assert written == {"layout": LAYOUT, "plan": {**other, "sizes": [110_000_000, 94_000_000]}, **ABOUT}


def test_until_a_stage_has_finished_another_plan_takes_the_place_of_the_first(folder):
    folder.write_plan(PLAN, ABOUT, deciding)
    folder.write_plan(PLAN | {"seed": 1}, ABOUT, deciding)
    assert yaml.safe_load(folder.plan.read_text())["plan"]["seed"] == 1


@pytest.mark.parametrize(
    ("plan", "about", "difference"),
    [
        ({"distillation": {"tokens": 2000, "learning_rate": 1e-4}}, {}, "distillation.tokens was 1000 and is now 2000"),
        ({"sizes": (94_000_000,)}, {}, "sizes was [110000000, 94000000] and is now [94000000]"),
        ({"seed": 1}, {}, "seed was None and is now 1"),
        ({}, {"teacher": {"fingerprint": "xyz"}}, "teacher fingerprint was 'abc' and is now 'xyz'"),
        (
            {},
            {"data": {"fingerprint": "new"}},
            "fingerprint of the text (size, time of change and samples of its files) was 'text' and is now 'new'",
        ),
        (
            {"distillation": {"tokens": 2000, "learning_rate": 2e-4}},
            {},
            "distillation.learning_rate was 0.0001 and is now 0.0002; distillation.tokens was 1000 and is now 2000",
        ),
    ],
)
def test_another_plan_is_refused_with_every_difference(begun, plan, about, difference):
    before = begun.plan.read_bytes()
    with pytest.raises(RunFolderError) as caught:
        begun.write_plan(PLAN | plan, ABOUT | about, deciding)
    assert str(caught.value) == (
        f"{begun.path} was begun with another plan: {difference}; go back to the plan that it was begun with, or "
        "choose another --out"
    )
    assert begun.plan.read_bytes() == before


def test_another_commit_of_the_hub_is_named_where_it_has_other_weights(folder):
    about = ABOUT | {"teacher": {"fingerprint": "abc", "revision": "1" * 40}}
    folder.write_plan(PLAN | {"teacher": "owner/tiny@main"}, about, deciding)
    folder.ledger.touch()
    moved = ABOUT | {"teacher": {"fingerprint": "xyz", "revision": "2" * 40}}
    message = rf"was 'abc' and is now 'xyz' \(commit {'1' * 40} of the hub, now {'2' * 40}\); "
    with pytest.raises(RunFolderError, match=message):
        folder.write_plan(PLAN | {"teacher": "owner/tiny@main"}, moved, deciding)


def test_a_folder_with_other_files_is_refused_and_left_alone(folder):
    folder.path.mkdir()
    for name in ("thesis.tex", "b.txt", "a.txt", "c.txt"):
        (folder.path / name).touch()
    with pytest.raises(
        RunFolderError, match=r"holds other files \(a\.txt, b\.txt, c\.txt\) but no plan\.yaml of a run"
    ):
        folder.write_plan(PLAN, ABOUT, deciding)
    assert not folder.plan.exists()


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".plan.yaml.partial", "work"]])
def test_a_new_folder_or_one_that_was_killed_at_once_is_taken(folder, left):
    folder.path.mkdir()
    for name in left:
        (folder.path / name).touch()
    folder.refuse_foreign()
    folder.write_plan(PLAN, ABOUT, deciding)


def test_a_folder_that_does_not_exist_is_not_made_by_looking(folder):
    folder.refuse_foreign()
    assert not folder.path.exists()


def test_a_file_is_no_folder(folder):
    folder.path.touch()
    with pytest.raises(RunFolderError, match=r"run is a file; choose another --out"):
        folder.refuse_foreign()


@pytest.mark.parametrize("lies_there", [lambda path: path.touch(), lambda path: (path / "a").mkdir(parents=True)])
def test_where_something_lies_nothing_new_is_written(tmp_path, lies_there):
    lies_there(tmp_path / "out")
    with pytest.raises(RunFolderError, match=r"out exists and is not empty; choose an empty or new --out"):
        require_new_folder(tmp_path / "out")


def test_an_empty_or_absent_folder_is_new(tmp_path):
    require_new_folder(tmp_path)
    require_new_folder(tmp_path / "absent")


@pytest.mark.parametrize("is_there", [True, False])
def test_the_new_folder_is_what_a_link_stands_for(tmp_path, is_there):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    (real if is_there else real.parent).mkdir(parents=True)
    link.symlink_to(real)
    assert require_new_folder(link) == real
    with new_folder(link) as temporary:
        assert temporary.parent == real.parent
        assert [entry.name for entry in tmp_path.iterdir() if entry != real.parent] == ["link"]
        for other in (link, real) if is_there else (real,):
            with pytest.raises(RunFolderError, match="is in use by"), RunFolder(other).lock():
                pytest.fail("a run begins in a folder that a command makes")
    assert link.is_symlink()
    real.mkdir(exist_ok=True)
    (real / "a").touch()
    with pytest.raises(RunFolderError, match=r"link exists and is not empty; choose an empty or new --out"):
        require_new_folder(link)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("plan: {}\nteacher: {}\n", r"another version .*does not say layout: 2\), and cannot be gone on with"),
        ("layout: 1\nplan: {}\nteacher: {}\n", "laid out by another version"),
        ("teacher: x\nsizes: [90k]\n", "is a plan that no build has written; choose an empty or new --out"),
        ("layout: 2\nplan: {}\n", r"plan\.yaml lacks teacher, data; restore it, or choose another --out"),
        ("layout: 2\nplan: [\n", r"plan\.yaml cannot be read \(.*\); restore it, or choose another --out"),
        ("[]", "plan.yaml says nothing of a plan; restore it"),
    ],
)
def test_a_plan_of_another_layout_or_that_was_damaged_is_refused_by_name(folder, content, message):
    folder.path.mkdir()
    folder.plan.write_text(content)
    folder.ledger.touch()
    for ask in (folder.refuse_foreign, lambda: folder.write_plan(PLAN, ABOUT, deciding)):
        with pytest.raises(RunFolderError, match=message):
            ask()
    assert folder.plan.read_text() == content


def test_a_run_remembers_whose_it_is(begun):
    assert begun.has_begun_with("abc")
    assert not begun.has_begun_with("xyz")
    assert not RunFolder(begun.path / "elsewhere").has_begun_with("abc")


def test_what_is_temporary_goes_at_the_end_and_when_the_next_process_begins(folder):
    with folder.lock():
        with folder.temporary() as work:
            assert work.parent == folder.work
            (work / "moments").write_text("28 GB")
        assert not work.exists()
        (folder.work / "left").write_text("by a killed process")
        kept = folder.work / "left"
        os.link(kept, folder.path / "again")
    assert not folder.work.exists()
    folder.work.mkdir()
    os.link(folder.path / "again", kept)
    with folder.lock():
        assert not kept.exists()


def test_only_what_stages_left_counts_as_written(folder):
    for name in ("a.bin", "work/b.bin", "students/.110M.partial/c.bin", ".d.json.partial", "checkpoints/110M/e.bin"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(b"1234")
    assert folder.written_bytes() == 8


def test_the_lock_makes_the_folder_and_a_run_of_it(folder):
    with folder.lock():
        folder.write_plan(PLAN, ABOUT, deciding)
    folder.refuse_foreign()


def test_a_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            RunFolderError, match=r"file/run cannot be created or written to \(Not a directory\); choose anot"
        ),
        RunFolder(tmp_path / "file" / "run").lock(),
    ):
        pass


IN_USE = r"run is in use by process \d+ \(.*\) on .*; wait for it or choose another --out"


def test_a_second_process_is_kept_out_until_the_first_has_ended(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=IN_USE) as caught, folder.lock():
            pytest.fail("two processes hold the folder")
        assert isinstance(caught.value, MinitronNasError)
        holder.kill()
    with folder.lock():
        pass


HOLD = """
import sys
from pathlib import Path
from minitron_nas.pipeline.plan import deciding
from minitron_nas.storage.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_in_the_same_process_is_kept_out_too(folder):
    with folder.lock(), pytest.raises(RunFolderError, match=IN_USE), RunFolder(Path(folder.path)).lock():
        pytest.fail("two runs hold the folder")


def test_the_lock_goes_with_an_error(folder):
    with pytest.raises(ValueError, match="a defect"), folder.lock():
        raise ValueError("a defect")
    with folder.lock():
        pass


NEW = """
import sys
from pathlib import Path
from minitron_nas.storage.run_folder import new_folder
with new_folder(Path(sys.argv[1])) as temporary:
    (temporary / "half").touch()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_is_being_made_is_nobody_elses_and_a_kill_leaves_nothing_in_the_way(tmp_path):
    out = tmp_path / "deep" / "out"
    maker = subprocess.Popen(
        [sys.executable, "-c", NEW, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with maker:
        assert maker.stdout.readline() == "held\n"
        in_use = rf"out is in use by process {maker.pid} \(-c\) on .*; wait for it or choose another --out"
        with pytest.raises(RunFolderError, match=in_use), new_folder(out):
            pytest.fail("two commands make the folder")
        with pytest.raises(RunFolderError, match=in_use), RunFolder(out).lock():
            pytest.fail("a run begins in a folder that another command makes")
        shutil.rmtree(out)
        maker.kill()
    with new_folder(out) as temporary:
        assert list(temporary.iterdir()) == []
    assert list(out.parent.iterdir()) == []


def test_a_folder_that_was_made_meanwhile_is_refused_and_left(tmp_path):
    out = tmp_path / "out"
    with new_folder(out):
        out.mkdir()
        (out / "result").touch()
    with pytest.raises(RunFolderError, match="exists and is not empty"), new_folder(out):
        pytest.fail("what another command has made is made again")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_run_cannot_be_replaced_by_a_folder_that_is_made(folder):
    with folder.lock(), pytest.raises(RunFolderError, match="exists and is not empty"), new_folder(folder.path):
        pytest.fail("the run is replaced")


def test_who_tells_waits_for_who_writes(folder):
    story = []

    def tell():
        with folder.telling():
            story.append("told")

    with folder.telling():
        thread = threading.Thread(target=tell)
        thread.start()
        thread.join(0.2)
        story.append("written")
    thread.join(20)
    assert story == ["written", "told"]
    assert list(folder.path.iterdir()) == []
