"""docs/reference.md is up to date and complete; the pre-commit hook validates manifests."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from finetune_api.base import Model
from finetune_api.crd import job_crd
from finetune_api.reference import reference

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: job}
spec:
  model: {source: hf://org/model}
  data: {train: {source: hf://org/data}}
"""


def paths(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from paths(child, f"{path}.{name}")
    if "items" in schema:
        yield from paths(schema["items"], f"{path}[]")


def test_reference_is_up_to_date() -> None:
    assert reference() == PAGE, "run `make generate`"


@pytest.mark.parametrize("part", ["spec", "status"])
def test_reference_has_every_field(part: str) -> None:
    schema = job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part]
    documented = set(re.findall(r"^\| (?:\*\*)?`([^`]+)`", PAGE, re.M))
    assert set(paths(schema, part)) <= documented


def test_links_have_targets() -> None:
    anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()) for heading in re.findall(r"^#+ (.*)$", PAGE, re.M)}
    assert set(re.findall(r"\(#([^)]*)\)", PAGE)) <= anchors


def test_every_rule_is_documented() -> None:
    def models(model: type[Model]) -> Iterator[type[Model]]:
        for child in model.__subclasses__():
            yield child
            yield from models(child)

    for model in models(Model):
        if model.__module__.startswith("finetune_api"):
            assert all(f"- {rule.message}\n" in PAGE for rule in model.rules), model.__name__


def test_pre_commit_hook_validates_manifests(tmp_path: Path) -> None:
    (hook,) = YAML(typ="safe").load(ROOT / ".pre-commit-hooks.yaml")
    assert (hook["id"], hook["language"], hook["types"]) == ("finetune-validate", "python", ["yaml"])
    program, *arguments = hook["entry"].split()
    command = [str(Path(sys.executable).parent / program), *arguments]
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(JOB)
    bad.write_text(JOB.replace("train:", "trian:"))
    assert subprocess.run([*command, good], check=False, capture_output=True).returncode == 0
    refused = subprocess.run([*command, good, bad], check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "did you mean 'train'?" in refused.stdout
