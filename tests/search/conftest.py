from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import StreamFiles, TrainingFiles
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import write_hidden_cache
from minitron_nas.execution import runner
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Outcome
from minitron_nas.families.catalog import count_parameters, layout_of
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.pruning.order import PruningOrder
from minitron_nas.pruning.prepare import PreparedTeacher, write_prepared
from minitron_nas.search import start
from minitron_nas.search.costing import Costing, Deployment
from minitron_nas.search.objectives import Constraint
from minitron_nas.search.pool import Pool
from minitron_nas.space.axes import SearchSpace, load_space
from minitron_nas.space.enumerate import Candidate, enumerate_candidates
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


SMOLLM2_AXES = {
    "num_hidden_layers": {"values": list(range(20, 31))},
    "hidden_size": {"values": [432, 504, 576]},
    "intermediate_size": {"values": list(range(640, 1537, 128))},
    "num_attention_heads": {"values": [6, 9]},
    "num_key_value_heads": {"values": [2, 3]},
}


@dataclass(frozen=True)
class Landscape:
    """A pool, and an untrained KL for each of its shapes that is shaped like SmolLM2's: each axis does its own harm,
    pairs a little more, and no two shapes are equal."""

    pool: Pool
    kls: np.ndarray

    def measure(self, candidates):
        by_id = {candidate.id: kl for candidate, kl in zip(self.pool.candidates, self.kls, strict=True)}
        return {each.id: Outcome(each.id, "completed", {"kl_nats": by_id[each.id]}, None, 0.0) for each in candidates}


def smollm2_pool(size=94_000_000, axes=SMOLLM2_AXES, tolerance=0.025, constraints=(), latency=None):
    source = load_space("smollm2-135m").source_architecture()
    space = SearchSpace.model_validate({"axes": axes, "tolerance": tolerance})
    layout = layout_of(source.model_type)
    found = enumerate_candidates(space, size, source, layout)
    bounds = [Constraint.parse(text) for text in constraints]
    return Pool.of(found, Costing(source, layout, 128, Deployment(1, 4096), latency), bounds)


def harm(pool):
    columns, source = pool.columns, pool.source
    lost = {name: 1 - columns[name] / getattr(source, name) for name in source.sizes()}
    depth, width, neurons = lost["num_hidden_layers"] ** 1.15, lost["hidden_size"], lost["intermediate_size"] ** 1.6
    heads = lost["num_attention_heads"] + lost["num_key_value_heads"]
    alone = 4.2 * depth + 4.1 * width + 1.6 * neurons + 0.36 * heads
    return 0.08 + alone + 1.5 * depth * width + 1.4 * neurons * (depth + width) + 0.3 * heads * (depth + neurons)


@pytest.fixture(scope="session")
def landscape():
    pool = smollm2_pool()
    return Landscape(pool, harm(pool))


@pytest.fixture(scope="session")
def make_pool():
    return smollm2_pool


@pytest.fixture(scope="session")
def make_landscape():
    def make(size):
        pool = smollm2_pool(size, load_space("default").model_dump(mode="json")["axes"], tolerance=0.05)
        return Landscape(pool, harm(pool) * np.exp(np.random.default_rng(size).normal(0, 0.02, len(pool))))

    return make


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
        write_hidden_cache(model, SignalPlace(folder / name, teacher.fingerprint, tokens))
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
