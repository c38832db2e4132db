"""Fingerprints of data, tokenizer and model: what changes them, and what a run does when they have changed."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from finetune_api import FineTuneJob
from finetune_trainer.callbacks import StepRecord
from finetune_trainer.errors import UserError
from finetune_trainer.training.checkpoint import Fingerprints
from finetune_trainer.training.checkpoint.fingerprints import fingerprint_model
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.tiny import Recorder


class CrashError(Exception):
    pass


class Crash(Recorder):
    """Crashes after step 5."""

    def on_step_end(self, record: StepRecord) -> None:
        super().on_step_end(record)
        if record.step == 5:
            raise CrashError


def job(**changes: Any) -> FineTuneJob:
    base = {
        "checkpoint": {"everySteps": 2},
        "data": {"validation": {"source": "pvc://data/more-colours", "fraction": None}},
    }
    return tiny.contrastive_job(**tiny.merged(base, changes))


@pytest.fixture
def copied(claims: Path, tmp_path: Path) -> Path:
    """The claims, to be changed."""
    shutil.copytree(claims, tmp_path / "claims")
    return tmp_path / "claims"


def go(spec: FineTuneJob, claims: Path, out: Path, recorder: Recorder | None = None, **options: Any) -> Recorder:
    recorder = recorder or Recorder()
    run(spec, RunOptions(claims=tiny.claim_paths(claims, out), **options), recorder)
    return recorder


def change_train(claims: Path) -> None:
    tiny.write_rows(claims / "data" / "colours", tiny.captioned(30)[::-1])


def change_validation(claims: Path) -> None:
    tiny.write_rows(claims / "data" / "more-colours", tiny.captioned(9, seed=7))


def change_tokenizer(claims: Path) -> None:
    path = claims / "models" / "dual" / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    path.write_text(json.dumps(document))


def change_image_processor(claims: Path) -> None:
    path = claims / "models" / "dual" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.1, 0.2, 0.3]}))


def change_config(claims: Path) -> None:
    path = claims / "models" / "dual" / "config.json"
    document = json.loads(path.read_text())
    document["vision_config"]["hidden_dropout_prob"] = 0.2
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "words", "remedy"),
    [
        (change_train, r"data.train: the content of the training set has changed", "restore the data"),
        (change_validation, r"data.validation: the content of the validation set has changed", "restore the data"),
        (change_tokenizer, r"model.source: the content of the tokenizer or image processor", "restore the model"),
        (change_image_processor, r"model.source: the content of the tokenizer or image processor", "restore the model"),
        (change_config, r"model.source: the content of the model has changed", "restore the model"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_resume_with_other_content_is_refused(
    change: Callable[[Path], None], words: str, remedy: str, resume: bool, copied: Path, out: Path
) -> None:
    with pytest.raises(CrashError):
        go(job(), copied, out, Crash())
    change(copied)
    with pytest.raises(UserError, match=rf"{words}.* \(\w{{12}} -> \w{{12}}\)") as raised:
        go(job(), copied, out, resume=resume)
    assert raised.value.exit_code == 2
    assert remedy in str(raised.value)
    assert "--fresh" in str(raised.value)
    assert go(job(), copied, out, fresh=True).resumed_step == 0


def test_test_set_that_changed_is_refused(copied: Path, out: Path) -> None:
    spec = job(data={"validation": {"source": None, "fraction": 0.3}, "test": {"source": "pvc://data/more-colours"}})
    with pytest.raises(CrashError):
        go(spec, copied, out, Crash())
    change_validation(copied)
    with pytest.raises(UserError, match=r"data.test: the content of the test set has changed"):
        go(spec, copied, out)


def test_files_that_were_copied_or_touched_are_the_same_content(copied: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), copied, out, Crash())
    for path in copied.rglob("*"):
        os.utime(path, (time.time() + 100, time.time() + 100))
    (copied / "data" / "colours" / "part-0.parquet").rename(copied / "data" / "colours" / "renamed.parquet")
    assert go(job(), copied, out).resumed_step == 4


def test_same_data_elsewhere_resumes_with_the_option_resume(copied: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), copied, out, Crash())
    (copied / "data" / "colours").rename(copied / "data" / "moved")
    moved = job(data={"train": {"source": "pvc://data/moved"}})
    with pytest.raises(
        UserError, match=r"data.train.source: pvc://data/colours -> pvc://data/moved: changed .*--resume"
    ):
        go(moved, copied, out)
    assert go(moved, copied, out, resume=True).resumed_step == 4


def test_fingerprints_are_in_the_checkpoint_and_in_run_json(copied: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), copied, out, Crash())
    (state_file,) = out.glob("result/.checkpoints/*/step-00000004/state.json")
    in_checkpoint = json.loads(state_file.read_text())["run"]["fingerprints"]
    go(job(), copied, out)
    in_run = json.loads((out / "result" / "run.json").read_text())["fingerprints"]
    assert in_checkpoint == in_run
    assert {name for name, value in in_run.items() if value} == {"train", "validation", "tokenizer", "model"}


def test_settings_of_the_job_are_not_part_of_the_tokenizer(copied: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(), copied, out, Crash())
    assert go(job(data={"maxLength": 12}), copied, out, resume=True).resumed_step == 4


# Model -----------------------------------------------------------------------------------------------------------


def test_model_of_the_hub_is_its_commit(tmp_path: Path) -> None:
    assert fingerprint_model("org/model", "3d74acf9") == "3d74acf9"
    assert fingerprint_model("org/model", None) is None


def test_model_folder_changes_with_names_shapes_types_and_sizes(claims: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dual"
    shutil.copytree(claims / "models" / "dual", folder)
    before = fingerprint_model(str(folder), None)
    weights = load_file(folder / "model.safetensors")
    assert before == fingerprint_model(str(claims / "models" / "dual"), None), "the path does not count"
    for changed in (
        {name: tensor.half() for name, tensor in weights.items()},
        {**weights, "more": weights["logit_scale"].clone()},
        {f"model.{name}": tensor for name, tensor in weights.items()},
    ):
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        assert fingerprint_model(str(folder), None) != before
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert fingerprint_model(str(folder), None) == before
    (folder / "README.md").write_text("other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert fingerprint_model(str(folder), None) == before


def test_what_only_one_has_is_no_difference() -> None:
    assert not Fingerprints(train="a", test="b").describe_differences(Fingerprints(train="a", validation="c"))
    differences = Fingerprints(train="a" * 64).describe_differences(
        Fingerprints(train="b" * 64), {"train": 9}, {"train": 8}
    )
    assert differences == {
        "train": "data.train: the training set has 8 samples, but had 9 (aaaaaaaaaaaa -> bbbbbbbbbbbb)"
    }


# Earlier versions ------------------------------------------------------------------------------------------------


def write_earlier_checkpoint(folder: Path) -> None:
    """A checkpoint as it was before runs had a record."""
    state = {
        "step": 4,
        "epoch": 1,
        "batch": 1,
        "train_samples": 21,
        "history": [],
        "elapsed": 1.0,
        "skipped_steps": 0,
        "loss_scale": [1.0, 0],
        "rng_state": {},
        "spec": {},
        "attempt": 1,
        "weights": {},
        "optimizer": {},
    }
    checkpoint = folder / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps(state))
    from finetune_trainer.training.checkpoint import write_manifest

    write_manifest(checkpoint)


@pytest.mark.parametrize(("uid", "name"), [("one", "one"), (None, "local-0123456789ab"), (None, "local-tiny")])
def test_checkpoint_of_an_earlier_version_is_refused_by_name(
    uid: str | None, name: str, claims: Path, out: Path
) -> None:
    write_earlier_checkpoint(out / "result" / ".checkpoints" / name)
    with pytest.raises(UserError, match=rf"checkpoint .*{name}/step-00000004 was written by another version .*--fresh"):
        go(job(uid=uid), claims, out)
    assert go(job(uid=uid), claims, out, fresh=True).resumed_step == 0


def test_checkpoints_of_other_runs_are_named(claims: Path, out: Path) -> None:
    with pytest.raises(CrashError):
        go(job(name="earlier"), claims, out, Crash())
    recorder = go(job(), claims, out)
    assert recorder.resumed_step == 0
    assert recorder.has_message("also has checkpoints of 1 other run: local-earlier (job 'earlier', step 4, ")
    assert recorder.has_message("finetune clean JOB.yaml")
    assert list((out / "result" / ".checkpoints").iterdir()) == [out / "result" / ".checkpoints" / "local-earlier"]
