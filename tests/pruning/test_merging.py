from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pruning.export import write_student
from minitron_nas.pruning.merging import Merge, merge_partners
from minitron_nas.pruning.parts import whole
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.student import build_student, cuts
from minitron_nas.pruning.write import surgery_key
from minitron_nas.storage.lineage import Lineage
from minitron_nas.testing import tiny_checkpoint

HEAD_DIM, IN_GROUP, GROUPS = 8, 3, 2
FEWER = {"num_attention_heads": 4}


def tensors_of(prepared, target):
    return {part.name: whole(part) for part in cuts(prepared, target)}


def query_rows(tensor, layer_order, group, rank):
    """The rows of a group's head, by its rank among the group's heads."""
    head = group * IN_GROUP + int(layer_order[group][rank - 1])
    return tensor[head * HEAD_DIM : (head + 1) * HEAD_DIM]


@pytest.mark.parametrize(
    ("ranking", "num_kept", "partners"),
    [
        ([0, 1, 2], 2, [-1, 2]),  # of three heads the second is merged with the third
        ([2, 0, 1], 2, [1, -1]),  # ... which now is the place 0, and stands first
        ([0, 1, 2, 3], 2, [3, 2]),
        ([0, 1, 2, 3, 4, 5], 4, [-1, -1, 5, 4]),
        ([0, 1, 2], 1, [1]),  # more leave than stay: the best of them is merged
        ([0, 1, 2], 3, [-1, -1, -1]),
    ],
)
def test_the_worst_that_stays_is_merged_with_the_best_that_leaves_and_so_on(ranking, num_kept, partners):
    assert merge_partners(torch.tensor([ranking]), num_kept).tolist() == [partners]


def test_the_map_doubles_what_stays_and_takes_its_partner_away():
    merge = Merge(torch.tensor([0, 2]), torch.tensor([-1, 3]), 4)
    assert merge.shape == (4, 2)
    assert merge.matrix().T.tolist() == [[1, 0, 0, 0], [0, 0, 2, -1]]


@pytest.mark.parametrize(("model_type", "name"), [("llama", "q_proj"), ("qwen2", "q_proj"), ("phi3", "qkv_proj")])
def test_query_heads_become_twice_themselves_less_their_partners(source, model_type, name):
    teacher = source(model_type)
    target = teacher.architecture.reshaped(FEWER)
    merged = tensors_of(replace(teacher.prepared, merge_heads=True), target)
    plain = tensors_of(teacher.prepared, target)
    suffixes = ("weight", "bias") if model_type == "qwen2" else ("weight",)
    changed = {key for key in plain if not torch.equal(plain[key], merged[key])}
    assert changed == {f"model.layers.{n}.self_attn.{name}.{suffix}" for n in range(4) for suffix in suffixes}
    for layer in range(4):
        for suffix in suffixes:
            key = f"model.layers.{layer}.self_attn.{name}.{suffix}"
            order, stored, found = teacher.order.group_heads[layer], teacher.tensors[key], merged[key]
            for group in range(GROUPS):
                first, second, third = (query_rows(stored, order, group, rank) for rank in (1, 2, 3))
                heads = {int(order[group][0]): first, int(order[group][1]): 2 * second - third}
                expected = torch.cat([heads[place] for place in sorted(heads)])
                own = found[group * 2 * HEAD_DIM : (group + 1) * 2 * HEAD_DIM]
                assert torch.allclose(own, expected, atol=1e-6)
            assert torch.equal(found[4 * HEAD_DIM :], plain[key][4 * HEAD_DIM :])


def test_a_head_that_is_merged_with_its_copy_stays_as_it_is(tmp_path, source):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "teacher", "llama"))
    teacher = source("llama")
    order = replace(teacher.order, group_heads=torch.arange(3).expand_as(teacher.order.group_heads).contiguous())
    model = build_student(replace(teacher.prepared, order=order), checkpoint.architecture, torch.float32)
    for layer in model.model.layers:
        weight = layer.self_attn.q_proj.weight.data.view(GROUPS, IN_GROUP, HEAD_DIM, -1)
        weight[:, 2] = weight[:, 1]
    model.save_pretrained(tmp_path / "copies")
    teacher_of_copies = replace(
        PreparedTeacher.open(tmp_path / "copies", teacher.prepared.folder), order=order, merge_heads=True
    )
    target = checkpoint.architecture.reshaped(FEWER)
    merged = tensors_of(teacher_of_copies, target)
    plain = tensors_of(replace(teacher_of_copies, merge_heads=False), target)
    assert all(torch.allclose(merged[name], plain[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("shape", [{"num_key_value_heads": 1}, {"intermediate_size": 56}, {"hidden_size": 36}], ids=str)
def test_where_no_head_leaves_a_group_that_stays_nothing_is_merged(source, shape):
    teacher = source("llama")
    target = teacher.architecture.reshaped(shape)
    merged, plain = (tensors_of(replace(teacher.prepared, merge_heads=flag), target) for flag in (True, False))
    assert all(torch.equal(merged[name], plain[name]) for name in plain)


def test_norms_over_heads_are_not_merged(source):
    teacher = source("olmo2")
    target = teacher.architecture.reshaped(FEWER)
    merged, plain = (tensors_of(replace(teacher.prepared, merge_heads=flag), target) for flag in (True, False))
    assert all(torch.equal(merged[name], plain[name]) for name in plain if "q_norm" in name)


def test_merging_and_cutting_channels_go_together(source):
    teacher = source("llama")
    prepared = replace(teacher.prepared, merge_heads=True)
    both = tensors_of(prepared, teacher.architecture.reshaped({**FEWER, "hidden_size": 36}))
    heads = tensors_of(prepared, teacher.architecture.reshaped(FEWER))
    kept = torch.sort(teacher.order.hidden[:36]).values
    name = "model.layers.2.self_attn.q_proj.weight"
    assert torch.allclose(both[name], heads[name][:, kept], atol=1e-6)


@pytest.mark.parametrize("model_type", ["qwen2", "phi3"])
def test_a_student_with_merged_heads_is_written_as_it_is_built_in_memory(tmp_path, source, model_type):
    teacher = source(model_type)
    prepared, target = replace(teacher.prepared, merge_heads=True), teacher.architecture.reshaped(FEWER)
    proof = write_student(prepared, target, tmp_path / "student", Lineage())
    assert proof is not None
    assert proof.max_abs_difference == 0
    written = load_file(tmp_path / "student" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors_of(prepared, target).items())


def test_students_that_are_merged_otherwise_are_other_surgeries(source):
    teacher = source("llama")
    target = teacher.architecture.reshaped(FEWER)
    plain, merged = (cuts(replace(teacher.prepared, merge_heads=flag), target) for flag in (False, True))
    assert len({surgery_key(plain, {}), surgery_key(merged, {})}) == 2


def test_the_choice_is_kept_with_what_was_prepared(tmp_path, source):
    teacher = source("llama")
    write_prepared(tmp_path / "prepared", teacher.order, merge_heads=True)
    assert PreparedTeacher.open(teacher.checkpoint.path, tmp_path / "prepared").merge_heads
    assert not teacher.prepared.merge_heads
