"""The map for people who carry on tells the floors that import-linter holds."""

import re
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
MAP = (CHECKOUT / "minitron_nas" / "README.md").read_text(encoding="utf-8")


def floors_held(container: str) -> list[set[str]]:
    """The floors of a package in `pyproject.toml`, the highest first."""
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (found,) = (one for one in contracts["contracts"] if one.get("containers") == [container])
    return [set(floor.split(" | ")) for floor in found["layers"]]


def test_the_floors_of_the_whole_are_those_that_are_held() -> None:
    told = [
        set(re.findall(r"`(\w+)`", floor)) for floor in re.findall(r"^\| ((?:`\w+`(?: \\\| )?)+) \|", MAP, re.MULTILINE)
    ]
    whole = floors_held("minitron_nas")
    assert [floor for floor in told if floor in whole] == whole


def test_the_floors_within_packages_are_those_that_are_held() -> None:
    (block,) = (block for block in re.findall(r"^```\n(.*?)^```", MAP, re.MULTILINE | re.DOTALL) if " > " in block)
    packages = re.split(r"^(\w+) ", block, flags=re.MULTILINE)[1:]
    assert packages[::2] == ["distillation", "pipeline", "execution"]
    for package, floors in zip(packages[::2], packages[1::2], strict=True):
        told = [set(re.split(r"\s*\|\s*", floor.strip())) for floor in floors.split(">")]
        assert told == floors_held(f"minitron_nas.{package}")
