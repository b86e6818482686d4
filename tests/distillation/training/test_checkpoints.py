"""What a checkpoint holds, and which one a training goes on from."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_nas.distillation.training.checkpoints import (
    OwnState,
    copy_weights,
    last_whole,
    load_state,
    load_weights,
    mark_whole,
    save_weights,
    step_of,
)
from minitron_nas.errors import CheckpointError
from minitron_nas.execution.deepspeed import begin_moments


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
        mark_whole(write_checkpoint(tmp_path / f"before-{step}", step), "run")
        shutil.move(tmp_path / f"before-{step}" / f"checkpoint-{step}", tmp_path)
    assert step_of(last_whole(tmp_path, "run")) == 10


class Tied(torch.nn.Module):
    """Two names for one weight, a bias, and a weight that is not trained."""

    def __init__(self, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.first = torch.nn.Parameter(torch.randn(3, 2, generator=draw))
        self.bias = torch.nn.Parameter(torch.randn(2, generator=draw).bfloat16())
        self.frozen = torch.nn.Parameter(torch.randn(2, generator=draw), requires_grad=False)
        self.second = self.first


def step(module, optimizer):
    (module.first.pow(2).sum() + module.bias.float().pow(2).sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def trained(tmp_path):
    module = Tied()
    optimizer = torch.optim.AdamW([module.first, module.bias], lr=0.1)
    for _ in range(3):
        step(module, optimizer)
    OwnState.of(module, optimizer).save(tmp_path / "checkpoint-3")
    return module, optimizer


def test_a_checkpoint_holds_each_trained_parameter_and_its_moments_once_in_float32(trained, tmp_path):
    module, optimizer = trained
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in weights.items()} == dict.fromkeys(("first", "bias"), torch.float32)
    assert torch.equal(weights["bias"], module.bias.float())
    moments = load_file(tmp_path / "checkpoint-3" / "optimizer.safetensors")
    assert sorted(moments) == ["exp_avg.bias", "exp_avg.first", "exp_avg_sq.bias", "exp_avg_sq.first"]
    assert torch.equal(moments["exp_avg_sq.first"], optimizer.state[module.first]["exp_avg_sq"])


def test_another_module_and_optimizer_go_on_from_it_to_the_bit(trained, tmp_path):
    other = Tied(seed=1)
    optimizer = torch.optim.AdamW([other.first, other.bias], lr=0.1)
    begin_moments(optimizer, 3)
    load_state(tmp_path / "checkpoint-3", other, optimizer)
    for _ in range(2):
        step(*trained)
        step(other, optimizer)
    assert torch.equal(other.first, trained[0].first)
    assert torch.equal(other.bias, trained[0].bias)


def test_moments_that_begin_at_zero_are_those_that_torch_would_begin_with():
    ready, plain = Tied(), Tied()
    optimizers = [torch.optim.AdamW([module.first, module.bias], lr=0.1) for module in (ready, plain)]
    begin_moments(optimizers[0], 0)
    for _ in range(2):
        step(ready, optimizers[0])
        step(plain, optimizers[1])
    assert torch.equal(ready.first, plain.first)


def test_weights_alone_come_back(trained, tmp_path):
    save_weights(tmp_path / "model.safetensors", trained[0], writes=True)
    other = Tied(seed=1)
    load_weights(tmp_path, other)
    assert torch.equal(other.second, trained[0].first)
    assert torch.equal(other.frozen, Tied(seed=1).frozen)


def test_a_process_that_does_not_write_leaves_nothing(trained, tmp_path):
    save_weights(tmp_path / "elsewhere" / "model.safetensors", trained[0], writes=False)
    assert not (tmp_path / "elsewhere").exists()


WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.safetensors", "trainer_state.json"
CHECKSUMS = ["model.checksums.json", "optimizer.checksums.json"]


def damage(file, how):
    """Change a file; `how` is a place of a byte to flip, counted as slices count, or a word."""
    content = file.read_bytes()
    file.unlink()
    if how == "cut short":
        file.write_bytes(content[:-2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how != "gone":
        changed = bytearray(content)
        changed[how] ^= 1
        file.write_bytes(changed)


@pytest.fixture
def whole(trained, tmp_path):
    """A checkpoint with all its files."""
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / STATE).write_text('{"log_history": []}')
    mark_whole(checkpoint, "run")
    return checkpoint


def test_a_whole_checkpoint_holds_these_files(whole):
    assert sorted(file.name for file in whole.iterdir()) == sorted([WEIGHTS, MOMENTS, STATE, "complete", *CHECKSUMS])
    assert last_whole(whole.parent, "run") == last_whole(whole.parent) == whole


@pytest.mark.parametrize("how", [0, 9, 40, -1, "cut short", "empty", "gone"])
@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS])
def test_a_damaged_file_of_tensors_is_named_and_says_what_to_delete(whole, name, how):
    damage(whole / name, how)
    other = Tied(seed=1)
    optimizer = torch.optim.AdamW([other.first, other.bias])
    begin_moments(optimizer, 3)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be used: .*; check the disk, delete the folder .*-3"):
        load_state(last_whole(whole.parent, "run"), other, optimizer)


@pytest.mark.parametrize(("old", "new"), [(b"[3,2]", b"[2,3]"), (b'"F32"', b'"I32"'), (b'"bias"', b'"bian"')])
def test_a_header_that_says_something_else_of_the_same_bytes_is_found(whole, old, new):
    content = (whole / WEIGHTS).read_bytes()
    assert old in content
    (whole / WEIGHTS).write_bytes(content.replace(old, new, 1))
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_weights(whole, Tied())


@pytest.mark.parametrize("how", [0, -1, "cut short", "empty", "gone"])
@pytest.mark.parametrize("name", ["complete", STATE, *CHECKSUMS])
def test_a_checkpoint_whose_small_files_are_damaged_is_none(whole, name, how):
    damage(whole / name, how)
    if (name, how) != ("complete", -1):  # where the last byte ends the line, and says nothing
        assert last_whole(whole.parent, "run") is last_whole(whole.parent) is None


def test_a_checkpoint_that_is_removed_while_it_is_looked_at_is_none(whole, monkeypatch):
    def removed(file):
        shutil.rmtree(whole)
        return read_bytes(file)

    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", removed)
    assert last_whole(whole.parent, "run") is None


def save_by(num_processes, module, optimizer, checkpoint):
    """Save what each of several processes would save of what all of them hold."""
    states = [OwnState.of(module, optimizer, rank, num_processes) for rank in range(num_processes)]
    for state in states:
        state.save(checkpoint)
    return [state.num_bytes for state in states]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5, 11])
def test_parts_of_any_number_of_processes_are_equal_and_read_as_one(trained, tmp_path, num_processes):
    module, optimizer = trained
    sizes = save_by(num_processes, module, optimizer, tmp_path / "parts")
    assert sum(sizes) == 8 * 12
    assert max(sizes) - min(sizes) <= 12
    other = Tied(seed=1)
    again = torch.optim.AdamW([other.first, other.bias], lr=0.1)
    begin_moments(again, 3)
    load_state(tmp_path / "parts", other, again)
    for own, its in ((module.first, other.first), (module.bias, other.bias)):
        assert torch.equal(own, its)
        assert all(
            torch.equal(optimizer.state[own][name], again.state[its][name]) for name in ("exp_avg", "exp_avg_sq")
        )


def test_parts_hold_a_tensor_without_numbers_and_one_without_dimensions(tmp_path):
    module = torch.nn.ParameterDict({"none": torch.empty(0, 3), "one": torch.tensor(5.0), "three": torch.ones(3)})
    optimizer = torch.optim.AdamW(module.parameters())
    begin_moments(optimizer, 0)
    save_by(3, module, optimizer, tmp_path)
    other = torch.nn.ParameterDict({"none": torch.empty(0, 3), "one": torch.tensor(1.0), "three": torch.zeros(3)})
    load_weights(tmp_path, other)
    assert (other["one"].item(), other["three"].tolist()) == (5, [1, 1, 1])


def test_one_module_is_copied_out_of_parts(tmp_path):
    module = torch.nn.ModuleDict({"student": Tied(), "other": Tied(seed=1)})
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])
    begin_moments(optimizer, 0)
    save_by(3, module, optimizer, tmp_path / "checkpoint-3")
    copy_weights(tmp_path / "checkpoint-3", "other", tmp_path / WEIGHTS)
    save_weights(tmp_path / "expected" / WEIGHTS, module["other"], writes=True)
    assert (tmp_path / WEIGHTS).read_bytes() == (tmp_path / "expected" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("how", [9, -1, "cut short", "empty", "gone"])
@pytest.mark.parametrize("name", ["model-1-of-3.safetensors", "optimizer-2-of-3.safetensors"])
def test_a_damaged_part_is_named(trained, tmp_path, name, how):
    save_by(3, *trained, tmp_path / "checkpoint-9")
    damage(tmp_path / "checkpoint-9" / name, how)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be used: .*; check the disk, delete the folder .*-9"):
        load_state(tmp_path / "checkpoint-9", *trained)


def test_a_part_that_is_missing_with_its_checksums_makes_no_checkpoint_and_is_named(trained, tmp_path):
    checkpoint = tmp_path / "parts" / "checkpoint-3"
    save_by(3, *trained, checkpoint)
    mark_whole(checkpoint, "run")
    assert last_whole(checkpoint.parent, "run") == checkpoint
    for file in checkpoint.glob("model-1-of-3.*"):
        file.unlink()
    assert last_whole(checkpoint.parent, "run") is None
    with pytest.raises(CheckpointError, match=r"model-1-of-3\.checksums\.json cannot be used: it is missing"):
        load_weights(checkpoint, Tied())


def test_parts_of_other_numbers_do_not_make_a_tensor(trained, tmp_path):
    save_by(2, *trained, tmp_path / "two")
    save_by(3, *trained, tmp_path / "three")
    for kind in ("safetensors", "checksums.json"):
        shutil.copy(tmp_path / "three" / f"model-0-of-3.{kind}", tmp_path / "two" / f"model-0-of-2.{kind}")
    with pytest.raises(CheckpointError, match="not all of tensor first is in the files beside it"):
        load_weights(tmp_path / "two", Tied())


def test_a_copy_stays_as_it_was_when_training_goes_on_until_another_takes_its_memory(trained, tmp_path):
    module, optimizer = trained
    before = module.first.detach().clone()
    live = OwnState.of(module, optimizer)
    copied = live.copied()
    step(module, optimizer)
    for name, state, expected in (("live", live, module.first), ("copied", copied, before)):
        state.save(tmp_path / name)
        assert torch.equal(load_file(tmp_path / name / WEIGHTS)["first"], expected)
    again = live.copied(copied)
    assert [piece.get().data_ptr() for piece in again.weights] == [piece.get().data_ptr() for piece in copied.weights]
    again.save(tmp_path / "again")
    for name in (WEIGHTS, MOMENTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "live" / name).read_bytes()


@pytest.mark.parametrize("how", [0, 50, "cut short", "gone"])
def test_weights_alone_whose_checksums_are_damaged_are_refused(trained, tmp_path, how):
    save_weights(tmp_path / WEIGHTS, trained[0], writes=True)
    damage(tmp_path / CHECKSUMS[0], how)
    with pytest.raises(CheckpointError, match=r"model\.checksums\.json cannot be used: it is missing or not what was"):
        load_weights(tmp_path, Tied())


@pytest.mark.parametrize("how", [9, -1, "cut short", "gone"])
def test_one_module_of_a_damaged_checkpoint_is_not_copied(tmp_path, how):
    save_weights(tmp_path / WEIGHTS, torch.nn.ModuleDict({"student": Tied(), "other": Tied(seed=1)}), writes=True)
    copy_weights(tmp_path, "student", tmp_path / "copied" / WEIGHTS)
    copied = Tied(seed=2)
    load_weights(tmp_path / "copied", copied)
    assert torch.equal(copied.first, Tied().first)
    damage(tmp_path / WEIGHTS, how)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        copy_weights(tmp_path, "other", tmp_path / "copied" / WEIGHTS)


def test_a_tensor_without_numbers_and_one_without_dimensions_come_back(tmp_path):
    module = torch.nn.ParameterDict({"none": torch.empty(0, 3), "one": torch.tensor(5.0)})
    save_weights(tmp_path / WEIGHTS, module, writes=True)
    other = torch.nn.ParameterDict({"none": torch.empty(0, 3), "one": torch.tensor(1.0)})
    load_weights(tmp_path, other)
    assert other["one"].item() == 5
