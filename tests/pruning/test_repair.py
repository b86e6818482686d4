import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_nas.errors import CheckpointError
from minitron_nas.importance.moments import second_moments
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.pruning import repair
from minitron_nas.pruning.parts import whole
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.repair import Mend, Regression, ridge_map, ridge_regression
from minitron_nas.pruning.student import cuts
from minitron_nas.text.tokens import PackedTokens


def samples(num_samples: int, size: int, seed: int = 0) -> torch.Tensor:
    """Correlated inputs, so that what leaves can be told from what stays."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(num_samples, size, generator=generator, dtype=torch.float64) @ mixing


def least_squares(inputs: torch.Tensor, outputs: torch.Tensor, start: torch.Tensor, penalty: float) -> np.ndarray:
    """numpy's minimum of |outputs - X inputs|^2 + penalty |X - start|^2, by rows that stand for the penalty."""
    size = inputs.shape[1]
    rows = np.vstack([inputs.numpy(), np.sqrt(penalty) * np.eye(size)])
    wanted = np.vstack([outputs.numpy(), np.sqrt(penalty) * start.numpy().T])
    solution, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    return solution.T


@pytest.mark.parametrize("ridge", [0.0, 0.003, 0.5])
def test_the_regression_is_numpys_least_squares(ridge):
    inputs, outputs, start = samples(60, 7), samples(60, 4, 1), samples(4, 7, 2)
    moment = inputs.T @ inputs
    expected = least_squares(inputs, outputs, start, ridge * moment.diagonal().mean().item())
    found = ridge_regression(outputs.T @ inputs, moment, start, ridge)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 1e-18])
def test_inputs_that_depend_on_each_other_are_regressed_with_a_penalty_that_suffices(ridge):
    inputs = torch.tensor([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)
    wanted, start = 3 * inputs[:, :1], torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    assert torch.linalg.cholesky_ex(inputs.T @ inputs).info == 2
    found = ridge_regression(wanted.T @ inputs, inputs.T @ inputs, start, ridge)
    assert torch.allclose(found, torch.tensor([[2.5, 0.5]], dtype=torch.float64), atol=1e-6)  # as near as 3 can be


def test_a_moment_that_rounding_made_indefinite_is_penalised_more():
    moment = torch.diag(torch.tensor([4.0, 1.0, -1e-5, 1.0], dtype=torch.float64))
    found = ridge_regression(torch.ones(1, 4, dtype=torch.float64), moment.clone(), None, 1e-7)
    expected = 1 / (moment.diagonal() + 1e-5 * moment.diagonal().mean())  # 1e-7 and 1e-6 do not suffice
    assert torch.allclose(found, expected[None])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(1, 1), (2, 1)])
def test_moments_that_are_not_finite_are_refused(value, place):
    moment = torch.eye(3, dtype=torch.float64)
    moment[place] = value
    with pytest.raises(CheckpointError, match="no finite second moments; its activations overflow on this text"):
        ridge_regression(torch.ones(1, 3, dtype=torch.float64), moment, None, 0.01)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_what_reads_nothing_stays_as_it_was(ridge):
    start, nothing = samples(4, 7), torch.zeros(7, 7, dtype=torch.float64)
    assert torch.equal(ridge_regression(torch.zeros(4, 7, dtype=torch.float64), nothing, start, ridge), start)
    kept = torch.tensor([1, 4])
    assert torch.equal(ridge_map(nothing, kept, ridge), torch.eye(7, dtype=torch.float64)[:, kept])


def test_a_regression_of_batches_is_that_of_all_of_them():
    inputs, outputs, start = samples(60, 7).float(), samples(60, 4, 1).float(), samples(3, 7, 2)
    turn = samples(3, 4, 3).float()
    regression = Regression(4, 7, torch.device("cpu"))
    for rows in (slice(0, 24), slice(24, 60)):
        regression.add(outputs[rows].view(2, -1, 4), inputs[rows].view(2, -1, 7))
    moment = inputs.T @ inputs
    expected = ridge_regression((turn @ outputs.T @ inputs).double(), moment.double(), start, 0.1)
    torch.testing.assert_close(regression.solve(start, 0.1, turn), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_the_map_predicts_what_was_cut_as_numpys_least_squares_does(ridge):
    inputs, kept = samples(80, 9), torch.tensor([0, 2, 3, 7])
    moment = inputs.T @ inputs / len(inputs)
    selection = torch.eye(9, dtype=torch.float64)[:, kept]
    penalty = ridge * moment.diagonal()[kept].mean().item() * len(inputs)
    expected = least_squares(inputs[:, kept], inputs, selection, penalty)
    np.testing.assert_allclose(ridge_map(moment, kept, ridge).numpy(), expected, rtol=1e-8, atol=1e-11)


def test_without_penalty_the_map_is_the_closed_form_of_the_projection():
    inputs, kept = samples(80, 9), torch.tensor([1, 4, 5])
    moment, weight = inputs.T @ inputs, samples(6, 9, 3)
    expected = weight @ moment[:, kept] @ torch.linalg.inv(moment[kept][:, kept])
    assert torch.allclose(weight @ ridge_map(moment, kept, 0.0), expected, rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.003, 10.0])
def test_keeping_everything_changes_nothing(ridge):
    inputs = samples(50, 6)
    found = ridge_map(inputs.T @ inputs, torch.arange(6), ridge)
    assert torch.allclose(found, torch.eye(6, dtype=torch.float64), atol=1e-12)


def test_a_large_penalty_repairs_nothing():
    inputs, kept = samples(50, 6), torch.tensor([0, 5])
    found = ridge_map(inputs.T @ inputs, kept, 1e12)
    assert torch.allclose(found, torch.eye(6, dtype=torch.float64)[:, kept], atol=1e-9)


def test_inputs_that_are_copies_of_others_can_leave_without_loss():
    inputs = samples(50, 4)
    doubled, weight = torch.cat([inputs, inputs], dim=1), samples(3, 8, 1)
    repaired = weight @ ridge_map(doubled.T @ doubled, torch.arange(4), 0.0)
    assert torch.allclose(inputs @ repaired.T, doubled @ weight.T, atol=1e-9)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prepared_with_moments(tmp_path, source, model_type):
    teacher = source(model_type)
    moments = TensorFolder(tmp_path / "moments")
    ids = torch.randint(0, 320, (8, 24), generator=torch.Generator().manual_seed(1))
    text = PackedTokens(ids, torch.arange(24).expand_as(ids))
    model = load(teacher.checkpoint.path)
    second_moments(model, teacher.checkpoint.layout, text, moments, "projections")
    write_prepared(tmp_path / "prepared", teacher.order, moments=moments.path)
    return teacher, text, PreparedTeacher.open(teacher.checkpoint.path, tmp_path / "prepared")


def inputs_of(model, name, text):
    """What a projection reads over a text, (num_tokens, size)."""
    found = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, -2)))
    with hook, torch.no_grad():
        model(input_ids=text.input_ids, position_ids=text.position_ids)
    return torch.cat(found).double()


@pytest.mark.parametrize(
    ("model_type", "down", "transposed"),
    [("llama", "model.layers.{}.mlp.down_proj", False), ("gpt2", "transformer.h.{}.mlp.c_proj", True)],
)
def test_a_student_gets_the_least_squares_solution_of_every_down_projection(
    tmp_path, source, model_type, down, transposed
):
    teacher, text, prepared = prepared_with_moments(tmp_path, source, model_type)
    target = teacher.architecture.reshaped({"intermediate_size": 56})
    parts = {part.name: whole(part) for part in cuts(prepared, target)}
    model = load(teacher.checkpoint.path)
    for layer in range(teacher.architecture.num_hidden_layers):
        name = down.format(layer)
        inputs = inputs_of(model, name, text)
        kept = torch.sort(teacher.order.neurons[layer][:56]).values
        stored = teacher.tensors[f"{name}.weight"].double()
        weight = stored.T if transposed else stored
        penalty = prepared.ridge * inputs[:, kept].square().mean(dim=0).mean().item() * len(inputs)
        expected = least_squares(inputs[:, kept], inputs @ weight.T, weight[:, kept], penalty)
        found = parts[f"{name}.weight"]
        np.testing.assert_allclose((found.T if transposed else found).numpy(), expected, atol=1e-3)


def test_only_output_projections_are_repaired(tmp_path, source):
    teacher, _, prepared = prepared_with_moments(tmp_path, source, "llama")
    target = teacher.architecture.reshaped({"intermediate_size": 56, "num_attention_heads": 4})
    repaired = {part.name: whole(part) for part in cuts(prepared, target)}
    plain = {part.name: whole(part) for part in cuts(teacher.prepared, target)}
    changed = {name for name in plain if not torch.equal(plain[name], repaired[name])}
    assert changed == {name for name in plain if "down_proj" in name or "o_proj" in name}


def test_nothing_cut_stays_the_teacher_to_the_bit(tmp_path, source):
    teacher, _, prepared = prepared_with_moments(tmp_path, source, "mixtral")
    parts = {part.name: whole(part) for part in cuts(prepared, teacher.architecture)}
    plain = {part.name: whole(part) for part in cuts(teacher.prepared, teacher.architecture)}
    assert all(torch.equal(parts[name], plain[name]) for name in plain)


def test_a_mend_says_its_shape_before_it_is_solved(tmp_path):
    mend = Mend(tmp_path, "any", np.array([0, 2]), 5, 0.1)
    assert mend.shape == (5, 2)


def solved(monkeypatch):
    """Return the list of matrices that are solved for from now on."""
    found = []

    def counted(*args):
        found.append(ridge_map(*args))
        return found[-1]

    monkeypatch.setattr(repair, "ridge_map", counted)
    return found


def test_all_threads_share_one_matrix_that_is_solved_once(tmp_path, monkeypatch):
    inputs = samples(50, 6)
    moments = TensorFolder(tmp_path)
    moments["any"] = inputs.T @ inputs
    mend, other = (Mend(tmp_path, "any", np.array(kept), 6, 0.1) for kept in ([0, 2, 5], [1, 3]))
    found = solved(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        matrices = list(pool.map(lambda _: mend.matrix(), range(8)))
    assert len(found) == 1
    assert all(matrix is found[0] for matrix in matrices)
    assert other.matrix().shape == (6, 2)
    assert torch.equal(mend.matrix(), found[0])
    assert len(found) == 3  # only the last is kept


def test_a_matrix_is_given_up_with_what_it_was_solved_for(tmp_path, monkeypatch):
    moments = TensorFolder(tmp_path)
    moments["any"] = torch.eye(6)
    mend = Mend(tmp_path, "any", np.array([0, 2]), 6, 0.1)
    matrix = weakref.ref(mend.matrix())
    assert matrix() is not None
    del mend
    gc.collect()
    assert matrix() is None


def test_experts_have_moments_of_their_own(tmp_path, source):
    teacher, _, prepared = prepared_with_moments(tmp_path, source, "mixtral")
    writers = {p.name for p in teacher.checkpoint.layout.tensors(teacher.architecture) if p.row.per_expert}
    writers = {name for name in writers if name.endswith("w2.weight")}
    assert len(writers) == 4 * teacher.architecture.num_experts
    assert writers <= set(TensorFolder(prepared.moments))
