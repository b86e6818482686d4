"""How the memory of the process that drives a run grows with candidates and with trials, each in a process of its own.

With tokens it grows as `test_text_memory.py` prints. The figures go to `reports/benchmarks.md`. Run with
`pytest -m slow -s tests/benchmarks/test_driver_memory.py`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

MOST_BYTES = 1.5e9

GROWTH = """
import sys
from pathlib import Path

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
"""

CANDIDATES = """
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.catalog import layout_of
from minitron_nas.search.costing import Costing, Deployment
from minitron_nas.search.pool import Pool
from minitron_nas.search.proposals import PoolSampler
from minitron_nas.space.axes import SearchSpace
from minitron_nas.space.enumerate import enumerate_candidates

steps = int(sys.argv[1])
space = SearchSpace.model_validate({
    "axes": {
        "num_hidden_layers": {"values": list(range(16, 33))},
        "hidden_size": {"min_fraction": 0.5, "step_fraction": 1 / 128},
        "intermediate_size": {"min_fraction": 0.25, "step_fraction": 1 / steps},
        "num_attention_heads": {"values": list(range(16, 33))},
        "num_key_value_heads": {"values": list(range(4, 9))},
    },
    "window": ("3.5B", "4.3B"),
})
source, layout = Architecture("llama", 32, 4096, 14336, 32, 8, 128, 128256), layout_of("llama")
before = peak()
found = enumerate_candidates(space, 4_000_000_000, source, layout)
pool = Pool.of(found, Costing(source, layout, 1024, Deployment(8, 32_000)))
sampler, measured = PoolSampler(pool, ("memory_bytes",), seed=0), {}
for _ in range(3):
    measured |= {index: 1.0 + index % 7 for index in sampler.propose(measured, 8)}
print(len(pool), before, peak())
"""

TRIALS = """
from minitron_nas.execution.ray_tune import RayTuneRunner  # sets what Ray reads when it is imported
from minitron_nas.execution.runner import Job, Jobs
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.pipeline.display import default_display

default_display()  # silences Ray
count, folder = int(sys.argv[1]), Path(sys.argv[2])
runner = RayTuneRunner(RunnerSettings(cpus_per_trial=1, gpus_per_trial=0), folder)
with runner.held():
    Jobs(runner, folder / "warm", max_failures=0).run(dict, [Job("one", {"kl_nats": 1.0})])
    before = peak()
    told = {"kl_nats": 1.0, "sequence_kl_nats": [1.0] * 128}
    outcomes = Jobs(runner, folder / "all", max_failures=0).run(dict, [Job(f"{n}", told) for n in range(count)])
    print(len(outcomes), before, peak())
"""


def grown(script: str, *arguments: object) -> tuple[int, float, float]:
    """Return of how many things, the peak before, and the peak after them."""
    command = [sys.executable, "-c", GROWTH + script, *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    num, before, after = output.strip().splitlines()[-1].split()
    return int(num), float(before), float(after)


def tell(what: str, num: int, before: float, after: float) -> None:
    print(f"{num:,} {what}: peak resident set {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_candidates_of_a_search_take_little_of_the_driver() -> None:
    """Print the peak with pools of three sizes, two objectives and three rounds of proposals."""
    for steps in (2, 160, 1600):
        num, before, after = grown(CANDIDATES, steps)
        tell("candidates", num, before, after)
        assert after < MOST_BYTES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_trials_of_a_search_take_little_of_the_driver(tmp_path: Path) -> None:
    """Print the peak with trials on Ray that return as many figures as real ones."""
    for count in (100, 1_000):
        num, before, after = grown(TRIALS, count, tmp_path / str(count))
        tell("trials on Ray", num, before, after)
        assert num == count
        assert after < MOST_BYTES
