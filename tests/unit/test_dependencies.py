"""Each package declares what it imports: an image installs one extra and no development dependencies."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "sklearn": "scikit-learn",
    "ruamel": "ruamel.yaml",
    "prometheus_client": "prometheus-client",
}
# pydantic requires an exact version of pydantic-core.
TRANSITIVE = {"pydantic_core": "pydantic"}


def declared(extra: str | None) -> set[str]:
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + (extras[extra] if extra else [])
    return {re.split(r"[<>=~!\[ ]", line)[0] for line in lines}


def imported(package: Path) -> Iterator[str]:
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            if isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("crds/finetune_api", None),
        ("operator/finetune_operator", "operator"),
        ("trainer/finetune_trainer", "trainer"),
    ],
)
def test_package_declares_its_imports(package: str, extra: str | None) -> None:
    names = {name for name in imported(ROOT / package) if not name.startswith("finetune_")}
    third_party = names - set(sys.stdlib_module_names)
    required = {DISTRIBUTIONS.get(name, TRANSITIVE.get(name, name)) for name in third_party}
    assert required <= declared(extra)
