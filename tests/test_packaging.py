import tomllib
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
RESOURCES = {f"minitron_nas._resources.{folder}": folder for folder in ("reports", "runners", "search_spaces")}


def pyproject() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_folder_with_modules_is_packaged() -> None:
    folders = {module.parent.relative_to(CHECKOUT) for module in (CHECKOUT / "minitron_nas").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == packages | set(RESOURCES)


def test_resource_folders_are_packaged_below_the_one_top_level_name() -> None:
    mapped = pyproject()["tool"]["setuptools"]["package-dir"]
    assert mapped == RESOURCES | {"minitron_nas": "minitron_nas"}


def test_every_resource_folder_holds_files() -> None:
    """Git keeps no empty folder, and setuptools refuses to build without it."""
    held = {f for f in RESOURCES.values() if any(p.is_file() for p in (CHECKOUT / f).rglob("*"))}
    assert held == set(RESOURCES.values())


def test_resource_folders_are_no_python_packages() -> None:
    assert [path for folder in RESOURCES.values() for path in (CHECKOUT / folder).rglob("__init__.py")] == []


def test_every_resource_has_a_suffix_that_the_wheel_ships_but_for_the_example() -> None:
    shipped = pyproject()["tool"]["setuptools"]["package-data"]
    excluded = pyproject()["tool"]["setuptools"]["exclude-package-data"]
    assert excluded == {"minitron_nas._resources.reports": ["example/*"]}
    example = CHECKOUT / "reports" / "example"
    left_out = [
        str(path.relative_to(CHECKOUT))
        for package, folder in RESOURCES.items()
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file()
        and example not in path.parents
        and not any(path.match(pattern) for pattern in shipped[package])
    ]
    assert left_out == []
