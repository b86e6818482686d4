"""Every check of a family gives a verdict, and a fault names its row, tensor and concept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.architecture.layout import HIDDEN, NEURONS, Axis, Dim, Layout, dim
from minitron_nas.errors import CheckpointError, PlanError, TeacherNotFoundError
from minitron_nas.families.catalog import layout_of
from minitron_nas.testing import CHECKS, USES, examination, tiny_config
from minitron_nas.testing.conformance import check_parameters, check_units
from minitron_nas.testing.examination import Verdict, examine_family, load_table, verdicts

Q_PROJ = "model.layers.{layer}.self_attn.q_proj.weight"
UP_PROJ = "model.layers.{layer}.mlp.up_proj.weight"


def with_dims(name: str, *dims: Dim) -> Layout:
    layout = layout_of("llama")
    return replace(layout, rows=tuple(replace(row, dims=dims) if row.name == name else row for row in layout.rows))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make no other checks than some."""

    def choose(*checks: Any) -> None:
        monkeypatch.setattr(examination, "CHECKS", checks)
        monkeypatch.setattr(examination, "USES", ())

    return choose


def test_every_check_says_what_holds(only: Callable[..., None]) -> None:
    only(check_parameters)
    assert list(verdicts(layout_of("llama"), tiny_config("llama"))) == [
        Verdict("tensors", "The table names every tensor with its shape."),
        Verdict("parameters", "The table counts as many parameters as the real model has."),
    ]


def test_a_tensor_of_another_shape_ends_it_and_is_named() -> None:
    (verdict,) = verdicts(with_dims(UP_PROJ, HIDDEN, NEURONS), tiny_config("llama"))
    assert (verdict.holds, verdict.check, verdict.row) == (False, "tensors", UP_PROJ)
    assert verdict.tensor == "model.layers.0.mlp.up_proj.weight"
    assert verdict.concept == "names, dimensions, config_keys"


def test_a_tensor_without_a_row_is_named() -> None:
    layout = layout_of("llama")
    missing = replace(layout, rows=tuple(row for row in layout.rows if row.name != UP_PROJ))
    (verdict,) = verdicts(missing, tiny_config("llama"))
    assert (verdict.row, verdict.tensor) == (None, "model.layers.0.mlp.up_proj.weight")


def test_wrong_axes_are_told_with_their_row_and_the_next_check_is_made(only: Callable[..., None]) -> None:
    only(check_units, check_parameters)
    wrong = with_dims(Q_PROJ, dim(Axis.GROUP_HEADS, Axis.KV_GROUPS, Axis.HEAD_DIM), HIDDEN)
    tensors, units, parameters = verdicts(wrong, tiny_config("llama"))
    assert (tensors.holds, units.holds, parameters.holds) == (True, False, True)
    assert (units.row, units.concept) == (Q_PROJ, "axes of a dimension and their order")
    assert "its axes or their order are wrong" in str(units.fault)


def test_what_stumbles_is_a_fault(only: Callable[..., None]) -> None:
    def check_parameters(subject: Any) -> None:
        """Count."""
        raise IndexError("list index out of range")

    only(check_parameters)
    *_, verdict = verdicts(layout_of("llama"), tiny_config("llama"))
    assert verdict.fault == "IndexError: list index out of range"


def test_every_check_has_a_concept() -> None:
    names = {check.__name__.removeprefix("check_") for check in (*CHECKS, *USES)}
    assert names | {"tensors"} == examination._CONCEPTS.keys()


def test_a_table_that_is_not_registered_is_imported_from_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, only: Callable[..., None]
) -> None:
    (tmp_path / "my_unregistered.py").write_text(
        "from minitron_nas.families.llama import LAYOUT as KNOWN\nLAYOUT, NO_TABLE = KNOWN, 3\n"
    )
    monkeypatch.chdir(tmp_path)
    only()
    assert [verdict.holds for verdict in examine_family("llama", "my_unregistered:LAYOUT")] == [True]
    with pytest.raises(PlanError, match=r"--table my_unregistered:NO_TABLE is a int, not a minitron_nas\.architecture"):
        load_table("my_unregistered:NO_TABLE")
    with pytest.raises(PlanError, match=r"'qwen2', the table is of 'llama'; give such a config"):
        list(examine_family("qwen2", "my_unregistered:LAYOUT"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama", r"--table 'llama' is not of the form module:attribute, such as my_package\.jais2:LAYOUT"),
        ("no_such_module:LAYOUT", r"no_such_module:LAYOUT: cannot be imported \(ModuleNotFoundError: No module named"),
        ("minitron_nas.families.llama:TABLE", r"cannot be imported \(AttributeError: module .* has no attribute"),
    ],
)
def test_a_table_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        load_table(name)


def test_a_model_that_is_nothing_is_refused() -> None:
    with pytest.raises(TeacherNotFoundError, match="nothing: no such folder or file here, no hub name"):
        list(examine_family("nothing"))


def test_a_config_of_which_no_tiny_model_can_be_made_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama", "hidden_act": "none_such"}')
    with pytest.raises(CheckpointError, match=r"transformers makes no tiny model of .*none_such.*; give a config file"):
        list(examine_family(str(file)))
