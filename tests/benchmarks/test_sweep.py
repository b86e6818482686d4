"""Scoring, rotation and repair at the size of real teachers: 8B-shaped checkpoints, layer by layer.

Prints wall time and peak memory of scoring 16 GB on 8 sequences of 512 random tokens, and of rotation and repair in
sequence of two such layers on 4 sequences: one layer is in memory at a time, so that more of them take longer, and
no more memory.
"""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

NEEDED_BYTES = 18e9
NUM_REPAIRED_LAYERS = 2
NUM_SEQUENCES, SEQ_LEN = 8, 512
MAX_RESIDENT_BYTES = 6e9

SCORE = f"""
import sys
import torch
from pathlib import Path
from minitron_nas.text.packing import pack
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.importance.passes import CalibrationPass
from minitron_nas.importance.settings import ImportanceSettings

checkpoint = open_checkpoint(Path(sys.argv[1]), read_values=False)
generator = torch.Generator().manual_seed(0)
ids = torch.randint(0, checkpoint.architecture.vocab_size, ({NUM_SEQUENCES * SEQ_LEN},), generator=generator)
along = CalibrationPass(checkpoint, pack([ids.numpy()], {SEQ_LEN}), whole=False, folder=Path(sys.argv[2]))
scores = along.score(
    ImportanceSettings(),
    lambda done, total: print(f"{{done}} of {{total}} tokens", file=sys.stderr, flush=True),
)
assert scores.neurons.shape == (32, 14336)
assert all(getattr(scores, name).isfinite().all() for name in ("hidden", "neurons", "heads", "kv_groups", "layers"))
"""

REPAIR = f"""
import sys
import torch
from pathlib import Path
from minitron_nas.text.packing import pack
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.importance.baselines import random_scores
from minitron_nas.importance.tensor_folder import TensorFolder
from minitron_nas.importance.passes import CalibrationPass
from minitron_nas.progress import silent
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.pruning.rotation import Rotation
from minitron_nas.pruning.repair_in_sequence import repair_in_sequence

teacher, work = map(Path, sys.argv[1:])
checkpoint = open_checkpoint(teacher, read_values=False)
generator = torch.Generator().manual_seed(0)
ids = torch.randint(0, checkpoint.architecture.vocab_size, ({NUM_SEQUENCES // 2 * SEQ_LEN},), generator=generator)
text = pack([ids.numpy()], {SEQ_LEN})
shape, layout = checkpoint.architecture, checkpoint.layout
order = PruningOrder.from_scores(random_scores(shape, layout, 0), shape, ())
moments = TensorFolder(work / "moments")
CalibrationPass(checkpoint, text, whole=False, folder=work).moments("norms", moments, silent)
write_prepared(work / "prepared", order, Rotation.of(moments, checkpoint.headers, shape, layout), None)
target = shape.reshaped({{"hidden_size": 3072, "intermediate_size": 9216}})
prepared = PreparedTeacher.open(teacher, work / "prepared")
headers = repair_in_sequence(
    prepared, target, text, work / "repaired",
    progress=lambda done, total: print(f"{{done}} of {{total}} tokens", file=sys.stderr, flush=True),
)
assert len(headers) == 7 * {NUM_REPAIRED_LAYERS}
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_layers_of_eight_billion_parameters_are_repaired_in_less_than_six_gigabytes(tmp_path: Path) -> None:
    _, seconds, peak = measured(REPAIR, tmp_path, NUM_REPAIRED_LAYERS)
    print(
        f"{NUM_REPAIRED_LAYERS} layers rotated and repaired on {NUM_SEQUENCES // 2} x {SEQ_LEN} tokens: {seconds:.0f} "
        f"s, peak resident {peak / 1e9:.2f} GB"
    )
    assert peak < MAX_RESIDENT_BYTES


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_billion_parameters_are_scored_in_less_than_six_gigabytes(tmp_path: Path) -> None:
    num_bytes, seconds, peak = measured(SCORE, tmp_path, 32)
    print(
        f"{num_bytes / 1e9:.1f} GB scored on {NUM_SEQUENCES} x {SEQ_LEN} tokens, layer by layer: {seconds:.0f} s, peak "
        f"resident {peak / 1e9:.2f} GB"
    )
    assert peak < MAX_RESIDENT_BYTES


def measured(script: str, folder: Path, num_hidden_layers: int) -> tuple[int, float, int]:
    """Run a script on an 8B-shaped teacher and an empty folder; return the teacher's bytes, seconds and peak bytes."""
    if shutil.disk_usage(folder).free < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of disk")
    surgery = benchmark("test_surgery")
    teacher, work = surgery.write_teacher(folder / "teacher", num_hidden_layers), folder / "work"
    work.mkdir()
    try:
        num_bytes = sum(file.stat().st_size for file in teacher.iterdir())
        seconds, peak = surgery.timed([sys.executable, "-c", script, str(teacher), str(work)], teacher)
    finally:
        shutil.rmtree(teacher)
        shutil.rmtree(work)
    return num_bytes, seconds, peak


def benchmark(name: str) -> ModuleType:
    """Import another benchmark, for what it makes and measures."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
