"""Looking must be cheap: neither the import of the package nor its help may load what training needs."""

import subprocess
import sys
from pathlib import Path

import pytest

import minitron_nas

HEAVY = ("deepspeed", "gguf", "lm_eval", "optuna", "pandas", "plotly", "pyarrow", "ray", "torch", "transformers")
FEW_NEED = ("deepspeed", "gguf", "lm_eval", "ray")
LIGHT_MODULES = (
    "minitron_nas.architecture.costs",
    "minitron_nas.architecture.rules",
    "minitron_nas.pipeline.plan",
    "minitron_nas.reporting.html",
    "minitron_nas.settings",
    "minitron_nas.space.enumerate",
    "minitron_nas.storage.atomic",
)
PUBLIC_NAMES = (
    "AlignmentSettings",
    "Architecture",
    "Candidate",
    "CompareLimits",
    "Family",
    "FamilyPlan",
    "ImportanceScores",
    "LatencyModel",
    "MinitronNasError",
    "SearchSpace",
    "align",
    "build_family",
    "compare",
    "correct",
    "count_parameters",
    "distill",
    "enumerate_candidates",
    "evaluate",
    "load_plan",
    "measure_latency",
    "pareto_front",
    "prune",
    "score_importance",
    "show",
    "submit",
    "write_report",
)


def loaded_by(code: str) -> list[str]:
    """Return which heavy libraries a fresh interpreter has loaded after running the code."""
    script = f"import sys\n{code}\nprint('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(minitron_nas.__file__).parents[1],
    )
    return result.stdout.splitlines()[-1].split()[1:]


def test_the_probe_sees_a_heavy_library() -> None:
    assert loaded_by("import pyarrow") == ["pyarrow"]


@pytest.mark.parametrize("module", ["minitron_nas", "minitron_nas.cli.app"])
def test_importing_the_package_or_its_commands_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") == []


def test_showing_help_loads_nothing_heavy() -> None:
    code = (
        "from minitron_nas.cli.app import main\n"
        "sys.argv = ['minitron-nas', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code"
    )
    assert loaded_by(code) == []


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_module_for_looking_loads_neither_torch_nor_ray(module: str) -> None:
    assert not {"deepspeed", "ray", "torch", "transformers"} & set(loaded_by(f"import {module}"))


def test_the_pipeline_loads_what_few_users_need_only_when_it_is_used() -> None:
    loaded = loaded_by("import minitron_nas.pipeline.build")
    assert "torch" in loaded
    assert not set(FEW_NEED) & set(loaded)


def test_the_public_names_are_listed() -> None:
    assert sorted(minitron_nas.__all__) == sorted(PUBLIC_NAMES)
    assert set(PUBLIC_NAMES) <= set(dir(minitron_nas))


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_is_found_when_asked_for(name: str) -> None:
    assert getattr(minitron_nas, name).__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prume'"):
        minitron_nas.prume  # noqa: B018
