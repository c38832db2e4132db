"""The shell commands and make targets in the documentation work."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.namespace import ROOT
from harness import forkserver

pytestmark = pytest.mark.timeout(600)

PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
# test_main_job trains the main example in full.
FEWER_EPOCHS = {"examples/two-optimizers/job.yaml": ["--set", "training.epochs=2"]}


def commands(*programs: str) -> Iterator[tuple[str, list[str]]]:
    """A test ID and the words of each distinct command in the shell blocks that runs one of these programs."""
    seen = set()
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in programs and tuple(words) not in seen:
                    seen.add(tuple(words))
                    yield f"{document.parent.name}: {' '.join(words[:3])}", words


@pytest.fixture(scope="module")
def checkout(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the layout of a checkout, where the commands write their output."""
    folder: Path = tmp_path_factory.mktemp("checkout")
    (folder / "examples").symlink_to(ROOT / "examples")
    claims = folder / ".finetune" / "claims"
    claims.mkdir(parents=True)
    (claims / "digits").symlink_to(inputs)
    return folder


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in commands("finetune", "python")])
def test_documented_command_succeeds(words: list[str], checkout: Path, tmp_path: Path) -> None:
    is_run = words[:2] == ["finetune", "run"]
    argv = [*words, "--claim", f"models={tmp_path}", *FEWER_EPOCHS.get(words[2], ())] if is_run else words
    result = forkserver.run(python_arguments(argv), cwd=checkout)
    assert result.returncode == 0, result.stderr
    if is_run:
        assert metric_improved(next(tmp_path.glob("*/run.json")).parent), result.stdout


def python_arguments(words: list[str]) -> list[str]:
    """The arguments of the Python interpreter for a command."""
    program, *rest = words
    return rest if program == "python" else [str(forkserver.script(program)), *rest]


def metric_improved(output: Path) -> bool:
    """Whether `evaluation.metric` is better in some evaluation than in the one before the first step."""
    evaluation = json.loads((output / "run.json").read_text())["spec"]["evaluation"]
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    values = [line["metrics"][evaluation["metric"]] for line in lines if line["type"] == "evaluation"]
    return min(values) < values[0] if evaluation["direction"] == "Minimize" else max(values) > values[0]


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    documented = {name for document in DOCUMENTS for name in re.findall(r"`make ([a-z0-9-]+)", document.read_text())}
    assert documented
    assert documented <= targets
