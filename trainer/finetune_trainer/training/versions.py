"""Versions of the packages that determine the result of a run."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("finetune-operator", "torch", "transformers", "safetensors", "datasets", "pyarrow", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine the result."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
