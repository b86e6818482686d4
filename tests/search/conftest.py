from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.signals.hidden_cache import write_hidden_cache
from minitron_nas.execution import runner
from minitron_nas.execution.local import LocalRunner
from minitron_nas.families.catalog import count_parameters
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.search import start
from minitron_nas.space.enumerate import Candidate
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.packing import pack


@dataclass(frozen=True)
class Arena:
    """A tiny ranked teacher, its text and what it says of that, on disk."""

    architecture: Architecture
    prepared: PreparedTeacher
    files: TrainingFiles
    calibration: Path

    def candidate(self, **shape: int) -> Candidate:
        architecture = self.architecture.reshaped(shape)
        return Candidate(architecture, count_parameters(architecture))

    @property
    def finalists(self) -> list[Candidate]:
        """Four shapes, of which the largest is by far the nearest to the teacher."""
        return [self.candidate(intermediate_size=neurons) for neurons in (20, 4, 46, 12)]


@pytest.fixture(autouse=True)
def _garbage_stays(monkeypatch):
    """Between trials garbage is collected, which takes longer than a tiny trial."""
    for module in (runner, start):
        monkeypatch.setattr(module, "release_memory", lambda: None)


@pytest.fixture(scope="session")
def arena(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    teacher = open_checkpoint(tiny_checkpoint(folder / "teacher", "llama", **sizes))
    draw = torch.Generator().manual_seed(0)
    scores = ImportanceScores(
        hidden=torch.rand(24, generator=draw),
        neurons=torch.rand(2, 48, generator=draw),
        heads=torch.rand(2, 6, generator=draw),
        kv_groups=torch.rand(2, 2, generator=draw),
        experts=torch.zeros(2, 0),
        layers=torch.rand(2, generator=draw),
    )
    write_prepared(folder / "prepared", PruningOrder.from_scores(scores, teacher.architecture, ()))
    model = load_for_inference(teacher.path)
    for name, num_sequences in (("train", 12), ("validation", 3)):
        ids = torch.randint(0, 320, (num_sequences * 16,), generator=draw).numpy()
        tokens = pack([ids[:20], ids[20:]], 16)
        tokens.save(folder / f"{name}.safetensors")
        write_hidden_cache(model, tokens, folder / name, teacher.fingerprint)
    pack([torch.randint(0, 320, (8 * 16,), generator=draw).numpy()], 16).save(folder / "calibration.safetensors")
    files = TrainingFiles(
        teacher.path,
        teacher.fingerprint,
        StreamFiles(folder / "train.safetensors", folder / "train"),
        StreamFiles(folder / "validation.safetensors", folder / "validation"),
    )
    prepared = PreparedTeacher.open(teacher.path, folder / "prepared")
    return Arena(teacher.architecture, prepared, files, folder / "calibration.safetensors")


class CountingRunner(LocalRunner):
    """A local runner that remembers the keys of the jobs it began, and may be killed before one."""

    def __init__(self, killed_before=None):
        super().__init__()
        self.keys, self._killed_before = [], killed_before

    def execute(self, function, jobs, on_outcome):
        def counted(key, **arguments):
            if key == self._killed_before:
                raise KeyboardInterrupt
            self.keys.append(key)
            return function(**arguments)

        for job in jobs:
            super().execute(lambda key=job.key, **arguments: counted(key, **arguments), [job], on_outcome)


@pytest.fixture
def counting_runner():
    return CountingRunner
