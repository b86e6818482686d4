"""How long ten million combinations of a space take, and how much memory, in a process of its own.

The narrow window is a search's; the open one keeps whatever the rules let through. The figures go to
`reports/benchmarks.md`. Run with `pytest -m slow -s tests/benchmarks/test_enumeration.py`.
"""

import json
import subprocess
import sys

import pytest

# Llama-3.1-8B on a grid far finer than any preset's.
ENUMERATION = """
import json, sys, time
from pathlib import Path
from minitron_nas.architecture.spec import Architecture
from minitron_nas.families.catalog import layout_of
from minitron_nas.space.axes import SearchSpace
from minitron_nas.space.enumerate import enumerate_candidates

space = SearchSpace.model_validate({
    "axes": {
        "num_hidden_layers": {"values": list(range(1, 33))},
        "hidden_size": {"min_fraction": 0.5, "step_fraction": 1 / 128},
        "intermediate_size": {"min_fraction": 0.25, "step_fraction": 1 / 1024},
        "num_key_value_heads": {"values": list(range(1, 9))},
    },
    "window": sys.argv[1:],
})
source = Architecture("llama", 32, 4096, 14336, 32, 8, 128, 128256)
started = time.perf_counter()
found = enumerate_candidates(space, 4_000_000_000, source, layout_of("llama"))
seconds = time.perf_counter() - started
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({
    "combinations": len(found.candidates) + sum(found.excluded.values()),
    "survivors": len(found.candidates),
    "seconds": seconds,
    "peak_bytes": int(line.split()[1]) * 1024,
    "torch": "torch" in sys.modules,
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("window", [("3.8B", "4.2B"), ("1", "8.1B")], ids=["narrow", "open"])
def test_ten_million_combinations_take_seconds_and_little_memory(window: tuple[str, str]) -> None:
    """Print combinations, survivors, seconds and peak memory; less than 5 s and 1 GB are what must hold."""
    command = [sys.executable, "-c", ENUMERATION, *window]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(output.stdout.strip().splitlines()[-1])
    print(
        f"{figures['combinations']:,} combinations, {figures['survivors']:,} survivors: "
        f"{figures['seconds']:.2f} s, peak {figures['peak_bytes'] / 1e6:.0f} MB"
    )
    assert figures["combinations"] >= 10**7
    assert figures["seconds"] < 5
    assert figures["peak_bytes"] < 10**9
    assert not figures["torch"]
