"""Which checkpoint a training goes on from."""

from minitron_nas.distillation.checkpoints import last_whole, mark_whole, step_of


def write_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").touch()
    return checkpoint


def test_an_empty_or_missing_folder_holds_no_checkpoint(tmp_path):
    assert last_whole(tmp_path, "run") is None
    assert last_whole(tmp_path / "nothing", "run") is None


def test_the_step_is_in_the_name(tmp_path):
    assert step_of(tmp_path / "checkpoint-1200") == 1200


def test_a_checkpoint_without_its_mark_is_not_used(tmp_path):
    write_checkpoint(tmp_path, 5)
    assert last_whole(tmp_path, "run") is None


def test_a_checkpoint_of_something_else_is_not_used(tmp_path):
    mark_whole(write_checkpoint(tmp_path, 5), "another run")
    assert last_whole(tmp_path, "run") is None


def test_the_newest_mark_removes_every_other_checkpoint(tmp_path):
    for step in (9, 10):
        mark_whole(write_checkpoint(tmp_path, step), "run")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert last_whole(tmp_path, "run") == tmp_path / "checkpoint-10"


def test_of_two_whole_checkpoints_the_later_step_counts(tmp_path):
    # A process that is killed between marking and removing leaves both; 9 sorts after 10 by name.
    for step in (9, 10):
        checkpoint = write_checkpoint(tmp_path, step)
        (checkpoint / "complete").write_text("run")
    assert step_of(last_whole(tmp_path, "run")) == 10
