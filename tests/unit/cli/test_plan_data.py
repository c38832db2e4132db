"""`finetune plan` without access to a dataset on the Hugging Face Hub, and its notes about the data."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

HUB_DATA = "hf://nobody/reviews"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


REASONS = {
    "offline": "data.train.source: hf://nobody/reviews: not in the cache",
    "unreachable": "data.train.source: hf://nobody/reviews: the Hugging Face Hub (http://127.0.0.1:9) is unreachable",
}


@pytest.mark.parametrize("state", REASONS)
def test_plan_without_the_hub_shows_the_parameters(state: str, changed: Any, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(state)
    work = changed("pvc://tiny/train", HUB_DATA)
    result = work.on_job("plan")
    assert result.exit_code == 0, result.output
    assert re.search(r"── bert +39 .* body\n", result.output)
    assert "unknown: the number of steps" in result.output
    found = json.loads(work.on_job("plan", "--output", "json").stdout)
    assert [module["elements"] > 0 for module in found["modules"]] == [True, True]
    assert found["plannedSteps"] is None
    assert found["error"] is None
    (gap,) = found["unknown"]
    assert gap.startswith(f"the number of steps ({REASONS[state]}")


@pytest.mark.parametrize("state", REASONS)
def test_plan_without_model_and_hub(state: str, changed: Any, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(state)
    result = changed("pvc://tiny/train", HUB_DATA).on_job("plan", claims=False)
    assert result.exit_code == 0, result.output
    assert "unknown: which parameters each module owns (model.source" in result.output
    assert "unknown: the number of steps (data.train.source" in result.output


@pytest.mark.parametrize("state", REASONS)
def test_plan_without_the_test_set_of_the_hub(state: str, work: Any, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(state)
    result = work.on_job("plan", "--set", f"data.test.source={HUB_DATA}", "--output", "json")
    assert result.exit_code == 0, result.output
    assert "data.test.source: hf://nobody/reviews" in json.loads(result.stdout)["unknown"][0]


@pytest.mark.usefixtures("empty_hub")
def test_missing_repository_is_an_error(changed: Any) -> None:
    result = changed("pvc://tiny/train", HUB_DATA).on_job("plan")
    assert result.exit_code == 2
    assert "the dataset 'nobody/reviews' was not found on the Hugging Face Hub" in result.output
    assert re.search(r"── bert +39 .* body\n", result.output)


def test_files_that_are_left_out_are_noted(work: Any, tmp_path: Path) -> None:
    claim = shutil.copytree(work.claim, tmp_path / "copy")
    (claim / "train" / "notes.txt").write_text("")
    result = work.finetune("plan", work.job, "--claim", f"tiny={claim}", "--output", "json")
    (note,) = json.loads(result.stdout)["notes"]
    assert "not read: of unknown type: 1 file (notes.txt)" in note
    assert (
        "note: data.train.source: pvc://tiny/train: reading"
        in work.finetune("plan", work.job, "--claim", f"tiny={claim}").output
    )
