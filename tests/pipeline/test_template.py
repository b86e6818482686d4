"""A plan to begin with."""

from pathlib import Path

import pytest
import yaml

from minitron_nas.errors import PlanError
from minitron_nas.pipeline.listing import list_known
from minitron_nas.pipeline.plan import load_plan, make_plan
from minitron_nas.pipeline.template import GIVEN, OFFERED, write_template


def test_a_written_plan_is_the_plan_of_what_was_given(tmp_path: Path) -> None:
    data = [{"path": "a.txt", "weight": 0.3}, {"path": "b.txt", "weight": 0.7, "column": "body"}]
    for name, text in (("one", "embedded"), ("blend", data)):
        file = tmp_path / f"{name}.yaml"
        write_template(file, "owner/name", ["8B", "4B"], text)
        given = {"teacher": "owner/name", "sizes": ["8B", "4B"], "data": text}
        assert load_plan(file) == make_plan(given)


def test_each_setting_stands_there_with_its_default_below_its_words(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    write_template(file, "owner/name", ["8B"], "embedded")
    rows = {row["name"]: row for row in list_known("settings")}
    content, lines = yaml.safe_load(file.read_text()), file.read_text().splitlines()
    for name in OFFERED:
        value = content
        for part in name.split("."):
            value = value[part]
        assert value == rows[name]["default"], name
    place = lines.index("  learning_rate: auto")
    assert lines[place - 1] == "  # " + rows["distillation.learning_rate"]["about"].partition(". ")[0] + "."
    assert max(map(len, lines)) <= 120
    assert set(GIVEN) | {name.partition(".")[0] for name in OFFERED} == set(content)


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("mine")
    with pytest.raises(PlanError, match=r"plan\.yaml exists; choose another file"):
        write_template(file, "owner/name", ["8B"], "embedded")
    assert file.read_text() == "mine"


def test_what_is_no_plan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="'huge' is not a count"):
        write_template(tmp_path / "plan.yaml", "owner/name", ["huge"], "embedded")
    assert not (tmp_path / "plan.yaml").exists()
