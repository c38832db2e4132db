"""pyproject.toml is the source of the version: everything else that states it must agree."""

import re
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def chart() -> dict[str, str]:
    loaded: dict[str, str] = YAML(typ="safe").load((ROOT / "helm/finetune-operator/Chart.yaml").read_text())
    return loaded


@pytest.mark.parametrize("field", ["version", "appVersion"])
def test_chart_version(field: str) -> None:
    assert chart()[field] == VERSION


@pytest.mark.parametrize("file", ["operator/Dockerfile", "trainer/Dockerfile"])
def test_image_tag_in_dockerfile(file: str) -> None:
    assert re.findall(r"finetune-(?:operator|trainer):(\S+)", (ROOT / file).read_text()) == [VERSION]


def test_pre_commit_revision_in_readme() -> None:
    assert re.findall(r"rev: v(\S+)", (ROOT / "README.md").read_text()) == [VERSION]


def test_locked_version() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    assert [it["version"] for it in packages if it["name"] == "finetune-operator"] == [VERSION]
