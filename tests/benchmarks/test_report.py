"""How long the report of a very large run takes, how much memory, and how large it is, in a process of its own.

The figures go to `reports/benchmarks.md`. Run with `pytest -m slow -s tests/benchmarks/test_report.py`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPORT = """
import json, sys, time
from pathlib import Path
started = time.perf_counter()
from minitron_nas.reporting.html import write_report
path = write_report(sys.argv[1])
seconds = time.perf_counter() - started
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({
    "seconds": seconds,
    "cpu_seconds": time.process_time(),
    "peak_bytes": int(line.split()[1]) * 1024,
    "page_bytes": path.stat().st_size,
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_screened", [20_000, 1_000_000])
def test_a_million_candidates_and_ten_thousand_trials_are_told_in_seconds_and_few_bytes(
    load: Any, tmp_path: Path, num_screened: int
) -> None:
    """Print seconds, peak memory and bytes; 30 s of CPU, 2 GB and 8 MB must hold."""
    load("large_run").make_run(tmp_path / "run", 1_000_000, num_screened, 10_000)
    output = subprocess.run(
        [sys.executable, "-c", REPORT, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    figures = json.loads(output.stdout.strip().splitlines()[-1])
    print(
        f"{num_screened:,} of 1,000,000 screened: {figures['seconds']:.1f} s, {figures['cpu_seconds']:.1f} s of CPU "
        f"(limit 30), peak {figures['peak_bytes'] / 1e6:.0f} MB (limit 2,000), page {figures['page_bytes'] / 1e6:.2f} "
        "MB (limit 8)"
    )
    assert figures["cpu_seconds"] < 30
    assert figures["peak_bytes"] < 2 * 10**9
    assert figures["page_bytes"] < 8 * 10**6
