"""What the documentation tells people to type works."""

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
# The whole training of the main example is what test_main_job runs; here it only has to go.
SHORT = {"examples/two-optimizers/job.yaml": ["--set", "training.epochs=2"]}


def commands(*programs: str) -> Iterator[tuple[str, list[str]]]:
    """The commands in the documents' shell blocks that call one of these programs; what two show, once."""
    seen = set()
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in programs and tuple(words) not in seen:
                    seen.add(tuple(words))
                    yield f"{document.parent.name}: {' '.join(words[:3])}", words


@pytest.fixture(scope="module")
def desk(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout, in which commands leave what they write."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "examples").symlink_to(ROOT / "examples")
    claims = desk / ".finetune" / "claims"
    claims.mkdir(parents=True)
    (claims / "digits").symlink_to(inputs)
    return desk


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in commands("finetune", "python")])
def test_a_command_works(words: list[str], desk: Path, tmp_path: Path) -> None:
    is_run = words[:2] == ["finetune", "run"]
    argv = [*words, "--claim", f"models={tmp_path}", *SHORT.get(words[2], ())] if is_run else words
    done = forkserver.run(arguments(argv), cwd=desk)
    assert done.returncode == 0, done.stderr
    if is_run:
        assert learned(next(tmp_path.glob("*/run.json")).parent), done.stdout


def arguments(words: list[str]) -> list[str]:
    """What the interpreter is told, for a command that starts it."""
    program, *rest = words
    return rest if program == "python" else [str(forkserver.script(program)), *rest]


def learned(output: Path) -> bool:
    """Whether the metric that the job is judged by got better since before the first step."""
    evaluation = json.loads((output / "run.json").read_text())["spec"]["evaluation"]
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    values = [line["metrics"][evaluation["metric"]] for line in lines if line["type"] == "evaluation"]
    return min(values) < values[0] if evaluation["direction"] == "Minimize" else max(values) > values[0]


def test_every_make_target_that_is_mentioned_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    mentioned = {name for document in DOCUMENTS for name in re.findall(r"`make ([a-z0-9-]+)", document.read_text())}
    assert mentioned
    assert mentioned <= targets
