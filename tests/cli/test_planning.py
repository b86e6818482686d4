"""The verbs that come before a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_nas.pipeline.plan import load_plan
from minitron_nas.resources import resource

PAPER = (
    *("plan", "--size", "8B", "--set", "space=minitron-15b-to-8b", "--set", "text.sequence_length=4096"),
    *("--set", "distillation.tokens=94B", "--set", "distillation.teacher_signal=online"),
    *("--flops-per-second", "4e14"),
)
CLUSTER = ("--devices", "128", "--device-memory", "80GB")
SHARDED = ("--set", "distillation.deepspeed=zero-3", "--set", "runner.gpus_per_trial=4")


def test_a_preset_is_planned_from_the_shape_that_it_carries(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(*PAPER, *CLUSTER, *SHARDED)
    assert (code, err) == (0, "")
    assert "15,628,775,424 parameters; a training step of this shape would take 4.4e17 FLOPs" in out
    assert "128 x a device, 80 GB and 4.0e14 FLOPs per second each" in out
    code, out, _ = run(*PAPER, *CLUSTER, *SHARDED, "--json")
    assert json.loads(out)["sizes"][0]["num_shapes"] == 15


def test_a_plan_that_cannot_run_is_refused_with_all_its_faults(run: Callable[..., tuple[int, str, str]]) -> None:
    batch = ("--set", "distillation.batch_sequences=4", "--set", "distillation.micro_batch_sequences=3")
    code, out, err = run(*PAPER, *CLUSTER, *SHARDED, *batch)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("minitron-nas: a batch of 4 sequences does not divide into micro-batches of 3")
    code, out, err = run(*PAPER, *CLUSTER, *batch)
    assert (code, out) == (2, "")
    assert err.startswith("minitron-nas: the plan has 2 faults: a batch of 4 sequences does not divide")
    assert "a trial of 8B takes at least 126 GB on each device" in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("plan",), "plan needs --size (or --plan FILE)"),
        (("plan", "x", "--plan", "y.yaml"), "--plan already says teacher, sizes and data; change them with --set"),
        (("plan", "--size", "8B"), "this space carries no source shape; name a teacher"),
        ((*PAPER, "--devices", "8", "--device-memory", "much"), "--device-memory='much' is no size of memory"),
        (("plan", "--size", "8B", "nowhere"), "there is no teacher at 'nowhere'"),
    ],
)
def test_what_is_missing_is_said(
    run: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], fault: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"minitron-nas: {fault}")


def test_a_written_plan_is_planned(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    assert run("init", "owner/name", "--size", "8B", "--size", "4B", "--out", file) == (0, f"{file}\n", "")
    assert load_plan(file).to_dict()["sizes"] == [8 * 10**9, 4 * 10**9]
    code, _, err = run("init", "owner/name", "--size", "8B", "--out", file)
    assert (code, "exists; choose another file" in err) == (2, True)


def test_the_example_of_the_runners_page_is_what_the_command_prints(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = resource("runners", "README.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("## A family, planned")
    command, shown = (block.partition("```")[0] for block in (rest.split("```sh\n")[1], rest.split("```text\n")[1]))
    words = command.replace("\\\n", " ").split()
    assert words[0] == "minitron-nas"
    code, out, err = run(*words[1:])
    assert (code, err) == (0, "")
    assert out == shown


@pytest.mark.parametrize("pace", ["0", "-1", "nan", "inf"])
def test_a_pace_that_is_none_is_refused(run: Callable[..., tuple[int, str, str]], pace: str) -> None:
    words = ("plan", "--size", "8B", "--set", "space=mistral-nemo-12b", "--devices", 1, "--flops-per-second", pace)
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "FLOPs per second are no pace; write a number above 0 such as 4e14" in err


@pytest.mark.parametrize("number", [0, -1])
def test_a_plan_for_no_devices_is_refused(run: Callable[..., tuple[int, str, str]], number: int) -> None:
    code, out, err = run("plan", "--size", "8B", "--set", "space=mistral-nemo-12b", "--devices", number)
    assert (code, out) == (2, "")
    assert "--devices" in err
