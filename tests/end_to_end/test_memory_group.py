"""Work in a cgroup of the system's that kills what takes more memory than it allows."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from minitron_nas.testing import tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LIMIT = 1_000_000_000
"""The command itself takes 0.35 GB once it has imported torch and transformers, the model 0.2 GB in bfloat16."""
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "head_dim": 64,
}


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup, of version 1 or 2, with a limit of its memory."""
    root = Path("/sys/fs/cgroup")
    first, second = root / "memory" / f"test-{os.getpid()}", root / f"test-{os.getpid()}"
    folder, name = (first, "memory.limit_in_bytes") if (root / "memory").is_dir() else (second, "memory.max")
    try:
        folder.mkdir()
        (folder / name).write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield folder
    folder.rmdir()


@pytest.mark.parametrize(
    "shape",
    ["hidden_size=768", "intermediate_size=2048", "hidden_size=768,num_hidden_layers=4"],
)
def test_a_model_is_pruned_within_its_group_s_memory(group: Path, tmp_path: Path, text_file: Path, shape: str) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", "llama", dtype=torch.bfloat16, **WIDE)
    text = ["--set=text.calibration_samples=4", "--set=text.sequence_length=256"]
    command = [
        sys.executable,
        "-m",
        "minitron_nas",
        "prune",
        str(teacher),
        "--data",
        str(text_file),
        "--shape",
        shape,
        *text,
    ]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "student")],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: (group / "cgroup.procs").write_text("0"),
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "repaired layer after layer" in ended.stderr
    assert "logits differ by 0" in ended.stderr + ended.stdout
