"""The demo: the whole job on a small real teacher, with nothing to fetch but what pip delivers."""

from pathlib import Path
from typing import Any

from minitron_nas.models.source import demo_teacher
from minitron_nas.pipeline.build import run_plan
from minitron_nas.pipeline.display import Display, default_display
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.plan import make_plan, with_overrides
from minitron_nas.text.sources import EMBEDDED

DEMO_SETTINGS: dict[str, Any] = {
    "sizes": ["110M", "94M"],
    "data": EMBEDDED,
    "text": {"sequence_length": 256, "calibration_samples": 48, "validation_samples": 12},
    "search": {"max_screened": 16, "screen_sequences": 4, "num_finalists": 2, "num_rungs": 1, "tokens": "4k"},
    "distillation": {
        "tokens": "16k",
        "batch_sequences": 4,
        "micro_batch_sequences": 4,
        "num_evaluations": 3,
    },
    "baselines": ["depth_only"],
    "evaluation": {"prompt_tokens": 256, "decode_tokens": 32, "texts": {"benchmarks": "embedded-benchmarks"}},
    "card": {"license": "apache-2.0"},
}
"""Small enough for two cores and less than half an hour; a real run would raise every number."""


def run_demo(out: str | Path, overrides: tuple[str, ...] = (), display: Display | None = None) -> Family:
    """Build a family of two from SmolLM2-135M-Instruct and the documentation on this machine.

    Args:
        out: The run folder.
        overrides: `key.subkey=value` strings, for a longer or different demo.
        display: Shows progress; on stderr by default.

    Raises:
        MinitronNasError: If the teacher cannot be fetched or the folder cannot be used.
    """
    display = display or default_display()
    with display.stage("teacher", "fetch and check the demo's") as progress:
        source = demo_teacher(Path(out), progress)[1]
    return run_plan(make_plan(with_overrides({"teacher": source, **DEMO_SETTINGS}, overrides)), out, display=display)
