"""The versions that go into every lineage and plan."""

from importlib.metadata import version

_PACKAGES = ("minitron-nas", "torch", "transformers", "ray", "optuna", "datasets", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a result."""
    return {package: version(package) for package in _PACKAGES}
