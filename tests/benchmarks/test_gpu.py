"""The script that measures on a GPU: what it computes, on a CPU and by hand; its figures need a GPU."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("gpu.py")


@pytest.fixture
def gpu(load: Any) -> Any:
    return load("gpu")


@pytest.fixture
def shapes(load: Any) -> Any:
    return load("gpu_shapes")


@pytest.fixture
def tables(load: Any) -> Any:
    return load("gpu_tables")


@pytest.mark.slow
def test_all_loops_learn_the_same_from_the_same_batches(gpu: Any, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--json", str(file), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found = json.loads(file.read_text())
    loops = found["students"]["tiny"]
    assert tuple(loops) == (*gpu.FIRST, *gpu.LATER)
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
    for figures in loops.values():
        assert figures["tokens_per_second"] > 0
        assert 0 < figures["utilisation"] < 1
        assert 0 < figures["above_weights_bytes"] < figures["peak_bytes"]
        assert 0 < figures["waiting_fraction"] < 1
        # A loop that did not train would be 3e-3 apart at the last.
        assert figures["losses_nats"] == pytest.approx(loops["plain loop"]["losses_nats"], rel=1e-3)
    assert len(set(loops["plain loop"]["losses_nats"])) == 4
    assert 0 < found["signal"]["utilisation"] < 1
    assert found["surgery"]["bytes_per_second"] > 0
    assert found["screening"]["seconds"]["tiny"] > 0
    assert abs(found["screening"]["own_kl_nats"]) < 1e-5
    assert found["screening"]["kl_nats"]["tiny"] > 0.1


def test_operations_of_a_step_are_those_counted_by_hand(shapes: Any) -> None:
    # Hidden 1024, 8 heads and 8 groups of 128, FFN 3584, 16 layers; a token sees 1024 others on average.
    layer = 2 * (4 * 1024 * 1024 + 3 * 1024 * 3584) + 4 * 1024 * 1024
    student = 16 * layer + 2 * 128256 * 1024
    # Hidden 4096, 32 heads and 8 groups of 128, FFN 14336, 32 layers.
    teacher = 32 * (2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4 * 1024 * 4096)
    head = 2 * 128256 * 4096
    assert shapes.FULL.teacher_flops() == teacher
    assert shapes.FULL.training_flops("0.5B", teacher_is_cached=True) == 3 * student + head
    assert shapes.FULL.training_flops("0.5B", teacher_is_cached=False) == 3 * student + head + teacher


def test_students_have_the_sizes_that_they_are_called_by(shapes: Any) -> None:
    for name in shapes.FULL.students:
        size = float(name.removesuffix("B")) * 1e9
        assert shapes.FULL.num_parameters(shapes.FULL.config(name)) == pytest.approx(size, rel=0.02)
    assert shapes.FULL.num_parameters(shapes.FULL.teacher) == 8_030_261_248


def test_a_loop_needs_its_student_sixteen_bytes_a_parameter_and_the_teacher(shapes: Any) -> None:
    student, teacher = 505_971_712, 8_030_261_248
    assert shapes.FULL.weights_bytes("0.5B", False, 2) == 16 * student + 2 * teacher
    assert shapes.FULL.weights_bytes("0.5B", True, 2) == 16 * student + 2 * 128256 * 4096


def test_a_data_sheet_speaks_of_a_whole_card_of_its_own_edition(shapes: Any) -> None:
    assert shapes.data_sheet_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert shapes.data_sheet_flops("NVIDIA H200") == 989e12
    assert shapes.data_sheet_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert shapes.data_sheet_flops("NVIDIA A100 80GB PCIe") == 312e12
    assert shapes.data_sheet_flops("NVIDIA L40S") == 362e12
    assert shapes.data_sheet_flops("NVIDIA GeForce RTX 4090") == 165e12
    others = ("H100 PCIe", "H100 NVL", "H200 NVL", "L40", "GeForce RTX 4090 Laptop GPU", "GeForce RTX 4090 D")
    for name in (*others, "A100-SXM4-40GB MIG 3g.20gb", "H200 MIG 1g.18gb"):
        assert shapes.data_sheet_flops(f"NVIDIA {name}") is None, name


def test_what_time_does_not_allow_is_skipped_and_named(
    gpu: Any, shapes: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = [0.0]

    def takes_a_minute(command: list[str], seconds: float) -> dict[str, Any]:
        passed[0] += 60
        return {"failed": "out of memory"} if "Trainer" in command else {}

    monkeypatch.setattr(gpu.time, "monotonic", lambda: passed[0])
    monkeypatch.setattr(gpu, "in_own_process", takes_a_minute)
    session = gpu.Session(shapes.FULL, Path(), 12.5 * 60, False)
    session.measure()
    found = {str(task): figures.get("failed") for task, figures in session.found.items()}
    # Device, signal, two loops of three students, three stages and one loop: twelve minutes. Half of one is left.
    assert list(found.values())[:12] == [*[None] * 11, "out of memory"]
    assert set(list(found.values())[12:]) == {"skipped: 30 s were left"}
    assert list(found)[11:] == [
        f"{loop}, {name}" for loop in (*gpu.LATER, "ours, cached, layers as written") for name in shapes.FULL.students
    ]
    assert "Trainer, 4B: skipped" in capsys.readouterr().err


def test_what_needs_something_that_failed_is_not_begun(gpu: Any, shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "in_own_process", lambda command, _: {"failed": "no room"} if "teacher" in command else {})
    session = gpu.Session(shapes.TINY, Path(), 60, True)
    session.measure()
    stages = session.figures()
    assert stages["teacher"]["failed"] == "no room"
    assert stages["surgery"]["failed"] == stages["screening"]["failed"] == "needs teacher"


def test_one_thing_alone_needs_what_others_left(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--only", "signal"], ["--only", "Trainer", "--folder", "."], ["--students", "7B"]):
        with pytest.raises(SystemExit):
            gpu.parsed(words)
    said = capsys.readouterr().err
    assert said.count("--only needs --folder, and for a loop one of --students") == 2
    assert "no student 7B; choose from 0.5B, 1.7B, 4B" in said


def test_a_process_that_prints_no_figures_says_why(gpu: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def said(program: str, seconds: float = 60) -> Any:
        return gpu.in_own_process([sys.executable, "-c", program], seconds)

    assert said("print('loading'); print('{\"a\": 1}')") == {"a": 1}
    assert said("raise ValueError('odd')") == {"failed": "ValueError: odd", "is_defect": True}
    assert said("import os; os.kill(os.getpid(), 9)") == {"failed": "killed by SIGKILL"}
    assert said("import time; time.sleep(60)", 0.1)["failed"].startswith("stopped")
    assert "Traceback" in capfd.readouterr().err


def test_figures_are_derived_from_seconds_and_bytes(shapes: Any, tables: Any) -> None:
    weights = shapes.TINY.weights_bytes("tiny", True, 2)
    measured = {"step_seconds": [3.0, 1.0, 2.0], "waiting_seconds": [0.0, 0.5, 0.1], "peak_bytes": weights + 7}
    device = {"dtype": "bfloat16", "peak_flops": 1e9}
    found = {"device": device, "signal": {"failed": ""}, "students": {"tiny": {tables.CACHED: measured}}}
    tables.fill_in(shapes.TINY, found)
    assert measured["tokens_per_second"] == 4 * 64 / 2
    assert measured["utilisation"] == 128 * shapes.TINY.training_flops("tiny", True) / 1e9
    assert measured["above_weights_bytes"] == 7
    assert measured["waiting_fraction"] == pytest.approx(0.1)


def test_the_cached_loop_is_held_against_the_fastest_other_and_losses_against_each_other(tables: Any) -> None:
    def loop(speed: float, memory: float, *losses: float) -> dict[str, Any]:
        return {
            "tokens_per_second": speed,
            "above_weights_bytes": memory,
            "utilisation": 0.5,
            "losses_nats": losses,
        }

    loops = {
        "plain loop": loop(100, 50, 2.0, 1.0),
        "Trainer": loop(200, 80, 2.0, 1.0),
        "ours, online": {"failed": "out of memory"},
        "ours, cached": loop(500, 20, 2.002, 1.1),
    }
    said = tables.verdict(loops)
    assert "differ by 1.0e-03 of them at the first step, by 1.0e-01 at the last." in said
    assert "2.50 times the fastest other loop (1.8), 0.25 of its memory" in said
    loops["ours, cached"] = loop(500, 20, 2.1, 1.1)
    assert "THEY DO NOT COMPUTE THE SAME" in tables.verdict(loops)
    alone = {"ours, cached": loops["ours, cached"], "ours, online": {"failed": "out of memory"}}
    assert tables.agree(alone)
    assert tables.verdict(alone) == "Too few loops were measured to compare."


@pytest.mark.slow
def test_a_slow_fetch_counts_as_waiting_and_slow_work_does_not(load: Any) -> None:
    contenders = load("gpu_contenders")
    clock = contenders.Clock()
    with pytest.raises(contenders.EnoughError):
        while True:
            clock.tick()
            with clock.waiting():
                time.sleep(0.03)
            time.sleep(0.06)
    found = clock.figures()
    assert len(found["step_seconds"]) == contenders.STEPS
    for step, waiting in zip(found["step_seconds"], found["waiting_seconds"], strict=True):
        assert 0.03 <= waiting <= step - 0.06


@pytest.mark.slow
def test_a_loop_that_runs_out_of_memory_is_a_line_of_the_table(
    gpu: Any, load: Any, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_out(*_: object) -> None:
        raise load("torch").OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setitem(load("gpu_contenders").CONTENDERS, "Trainer", runs_out)
    assert gpu.measure_here(shapes.TINY, "Trainer", Path()) == {"failed": "out of memory"}


@pytest.mark.slow
def test_parts_are_measured_on_a_cpu_too() -> None:
    script = SCRIPT.with_name("gpu_parts.py")
    done = subprocess.run([sys.executable, str(script), "--tiny"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == [
        "loss, hidden size 24, 256 tokens at once",
        "loss, hidden size 24, 512 tokens at once",
        "loss, hidden size 24, as many as the product takes",
    ]
    assert [line.rpartition(", ")[0].partition(" documents, ")[2].partition(":")[0] for line in lines[3:]] == [
        "sdpa",
        "sdpa, compiled",
        "by document",
        "by document, compiled",
    ]
