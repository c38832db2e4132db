"""Every error in a spec, a model or the data ends with exit code 2 and a message that says what to change."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.errors import OutOfGPUMemory, UserError
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.tiny import Recorder

Rows = list[dict[str, Any]]


def run_error(job: Any, claim_paths: tiny.ClaimPaths) -> str:
    """The message with which a job fails before its first step."""
    recorder = Recorder()
    with pytest.raises(UserError) as raised:
        run(job, RunOptions(claims=claim_paths), recorder)
    assert raised.value.exit_code == 2
    assert recorder.report is not None
    assert recorder.report.reason == "InvalidJob"
    assert recorder.steps == []
    return str(raised.value)


@pytest.fixture
def data_error(claims: Path, out: Path, tmp_path: Path) -> Callable[[Rows], str]:
    """Runs a contrastive job on rows and returns its error message."""

    def run_with_rows(rows: Rows) -> str:
        tiny.write_rows(tmp_path / "data" / "colours", rows)
        claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
        return run_error(tiny.contrastive_job(data={"workers": 2}), claim_paths)

    return run_with_rows


def test_pattern_with_a_typo(claims: Path, out: Path) -> None:
    modules = [dict(module) for module in tiny.TWO_MODULES]
    modules[0]["parameters"] = ["visoin_model.*", "visual_projection.*"]
    message = run_error(tiny.contrastive_job(modules=modules), tiny.claim_paths(claims, out))
    assert "modules[0].parameters (visual): 'visoin_model.*' matches no parameter" in message
    assert "did you mean 'vision_model.*'" in message


def test_missing_claim(claims: Path, out: Path) -> None:
    job = tiny.contrastive_job(data={"train": {"source": "pvc://dta/colours"}})
    message = run_error(job, tiny.claim_paths(claims, out))
    assert f"data.train.source: pvc://dta/colours: claim 'dta' not found: {claims / 'dta'} is not a folder" in message
    assert "available claims: data, models, out; did you mean 'data'?" in message


def test_missing_claims_folder(tmp_path: Path) -> None:
    message = run_error(tiny.contrastive_job(), tiny.ClaimPaths(tmp_path / "none", {"out": tmp_path}))
    assert "claim 'models' not found" in message
    assert "--claim models=DIR" in message


def test_missing_folder(claims: Path, out: Path) -> None:
    message = run_error(
        tiny.contrastive_job(data={"train": {"source": "pvc://data/colors"}}), tiny.claim_paths(claims, out)
    )
    assert "claim 'data' has no colors; it contains colours, more-colours, reviews" in message


def test_folder_without_a_model(claims: Path, out: Path) -> None:
    message = run_error(tiny.contrastive_job(model={"source": "pvc://data/colours"}), tiny.claim_paths(claims, out))
    assert "contains no model: there is no config.json" in message


def test_model_without_weights(claims: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(claims / "models" / "dual", tmp_path / "dual")
    (tmp_path / "dual" / "model.safetensors").unlink()
    message = run_error(tiny.contrastive_job(), tiny.ClaimPaths(claims, {"models": tmp_path, "out": out}))
    assert "model.source: pvc://models/dual: cannot load the weights" in message


def test_weights_other_than_safetensors_are_not_loaded(claims: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(claims / "models" / "dual", tmp_path / "dual")
    (tmp_path / "dual" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "dual" / "pytorch_model.bin")
    message = run_error(tiny.contrastive_job(), tiny.ClaimPaths(claims, {"models": tmp_path, "out": out}))
    assert "cannot load the weights" in message


def test_model_without_image_processor(claims: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(claims / "models" / "dual", tmp_path / "dual")
    (tmp_path / "dual" / "preprocessor_config.json").unlink()
    message = run_error(tiny.contrastive_job(), tiny.ClaimPaths(claims, {"models": tmp_path, "out": out}))
    assert "cannot load the image processor" in message


def test_model_without_tokenizer(claims: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(claims / "models", tmp_path / "models")
    for file in tmp_path.glob("models/*/tokenizer*"):
        file.unlink()
    job = tiny.job("bert", "reviews", task="SequenceClassification")
    message = run_error(job, tiny.ClaimPaths(claims, {"models": tmp_path / "models", "out": out}))
    assert "tokenizer" in message


def test_truncated_weights(claims: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(claims / "models", tmp_path / "models")
    for file in tmp_path.glob("models/*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    message = run_error(tiny.contrastive_job(), tiny.ClaimPaths(claims, {"models": tmp_path / "models", "out": out}))
    assert "cannot load the weights" in message


def test_max_length_beyond_the_model_limit(claims: Path, out: Path) -> None:
    message = run_error(tiny.contrastive_job(data={"maxLength": 100_000}), tiny.claim_paths(claims, out))
    assert "data.maxLength: 100000 is more than the" in message


def test_uncached_model_in_offline_mode(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = run_error(tiny.contrastive_job(model={"source": "hf://org/absent"}), tiny.claim_paths(claims, out))
    assert "model.source: hf://org/absent: not in the cache" in message
    assert "HF_HUB_OFFLINE disables downloads" in message


def test_folder_without_data(claims: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "colours").mkdir(parents=True)
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    assert "it is empty" in run_error(tiny.contrastive_job(), claim_paths)
    (tmp_path / "data" / "colours" / "rows.xlsx").write_text("a,b")
    assert "or a folder of images, found .xlsx files" in run_error(tiny.contrastive_job(), claim_paths)


def test_truncated_data_file(claims: Path, out: Path, tmp_path: Path) -> None:
    file = tiny.write_rows(tmp_path / "data" / "colours", tiny.captioned(9)) / "part-0.parquet"
    file.write_bytes(file.read_bytes()[:500])
    message = run_error(tiny.contrastive_job(), tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out}))
    assert f"{file} is not a valid parquet file" in message


def test_data_set_without_rows(claims: Path, out: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data" / "colours").mkdir(parents=True)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "data" / "colours" / "a.parquet")
    message = run_error(tiny.contrastive_job(), tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out}))
    assert "data.train.source: pvc://data/colours: the dataset is empty: no rows in" in message


def test_missing_column(claims: Path, out: Path) -> None:
    message = run_error(tiny.contrastive_job(data={"columns": {"text": "txt"}}), tiny.claim_paths(claims, out))
    assert (
        "data.columns.text: data.train.source has no column 'txt'; available: image, text, label; did you mean 'text'?"
        in message
    )


def test_missing_optional_column_that_is_mapped(claims: Path, out: Path) -> None:
    message = run_error(tiny.contrastive_job(data={"columns": {"label": "klass"}}), tiny.claim_paths(claims, out))
    assert "data.columns.label: data.train.source has no column 'klass'; available: image, text, label" in message


def test_validation_set_without_the_columns(claims: Path, out: Path) -> None:
    job = tiny.job("dual", "colours", data={"validation": {"source": "pvc://data/reviews"}})
    assert "data.validation.source has no column 'image'" in run_error(job, tiny.claim_paths(claims, out))


@pytest.mark.parametrize("field", ["validation", "test"])
@pytest.mark.parametrize("way", ["source", "split", "file", "link"])
def test_evaluation_on_training_files(field: str, way: str, claims: Path, out: Path, tmp_path: Path) -> None:
    folder = tiny.write_rows(tmp_path / "data" / "colours", tiny.captioned(12), "train.parquet")
    other = {"source": "pvc://data/colours"}
    if way == "file":
        other = {"source": "pvc://data/colours/train.parquet"}
    if way == "split":
        other = {"source": "pvc://data/colours", "split": "train"}
        tiny.write_rows(folder, tiny.captioned(12), f"{field}.parquet")
    if way == "link":
        other = {"source": "pvc://data/linked"}
        (tmp_path / "data" / "linked").mkdir()
        (tmp_path / "data" / "linked" / "a.parquet").symlink_to(folder / "train.parquet")
    job = tiny.job("dual", "colours", data={field: other})
    message = run_error(job, tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out}))
    assert f"data.{field}.source: {other['source']} reads" in message
    assert f"which is also training data: {folder}/train.parquet of data.train.source (pvc://data/colours)" in message
    assert "evaluating on training data overestimates quality" in message


def test_evaluation_on_training_images(claims: Path, out: Path, tmp_path: Path) -> None:
    for number, row in enumerate(tiny.captioned(12)):
        file = tmp_path / "data" / "pictures" / str(row["label"]) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"]["bytes"])
    tiny.write_image_classifier(tmp_path / "models" / "vit")
    job = tiny.job("vit", "pictures", data={"validation": {"source": "pvc://data/pictures/1"}})
    message = run_error(job, tiny.ClaimPaths(tmp_path, {"out": out}))
    assert "data.validation.source: pvc://data/pictures/1 reads" in message


def test_corrupt_image(data_error: Callable[[Rows], str], tmp_path: Path) -> None:
    rows = tiny.captioned(12)
    rows[7]["image"]["bytes"] = rows[7]["image"]["bytes"][:40]
    message = data_error(rows)
    file = tmp_path / "data" / "colours" / "part-0.parquet"
    assert f"data.train.source: column 'image' of {file}, row 7: cannot decode the image" in message


def test_corrupt_image_found_during_training(
    data_error: Callable[[Rows], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.data.dataset.MAX_VERIFIED_IMAGES", 0)
    rows = tiny.captioned(12)
    for row in rows[2:]:
        row["image"]["bytes"] = b"GIF89a nothing"
    message = data_error(rows)
    assert "cannot decode the image" in message
    assert "Traceback" not in message


def test_missing_image(data_error: Callable[[Rows], str]) -> None:
    rows = tiny.captioned(12)
    rows[3]["image"] = None
    assert "part-0.parquet, row 3: the value is missing" in data_error(rows)


def test_missing_image_file(data_error: Callable[[Rows], str]) -> None:
    rows = [row | {"image": "gone.png"} for row in tiny.captioned(12)]
    assert "row 0: cannot decode the image" in data_error(rows)


def test_text_of_another_type(data_error: Callable[[Rows], str]) -> None:
    rows = [row | {"text": 17} for row in tiny.captioned(12)]
    assert "column 'text' of" in (message := data_error(rows))
    assert "expected text, found 17 (int)" in message


def test_missing_text(data_error: Callable[[Rows], str]) -> None:
    rows = tiny.captioned(12)
    rows[4]["text"] = None
    assert "part-0.parquet, row 4: the value is missing" in data_error(rows)


def test_training_set_smaller_than_a_batch(claims: Path, out: Path) -> None:
    message = run_error(tiny.contrastive_job(training={"batchSize": 64}), tiny.claim_paths(claims, out))
    assert "training.batchSize: 64 is more than the 21 samples of the training set" in message


def test_class_missing_in_the_training_set(claims: Path, out: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "train", tiny.reviews(12))
    tiny.write_rows(tmp_path / "data" / "check", [{"text": "a film", "label": 5}])
    job = tiny.job("bert", "train", data={"validation": {"source": "pvc://data/check"}})
    message = run_error(job, tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out}))
    assert "data.validation.source: column 'label'" in message
    assert "unknown class 5; the training set has 0, 1" in message


def test_labels_of_another_type(claims: Path, out: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "train", [{"text": "a film", "label": 0.5 + n} for n in range(12)])
    message = run_error(tiny.job("bert", "train"), tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out}))
    assert "column 'label': expected an integer or a string, found" in message


def test_unknown_metric(claims: Path, out: Path) -> None:
    message = run_error(tiny.contrastive_job(evaluation={"metric": "eval/recal_at_1"}), tiny.claim_paths(claims, out))
    assert "evaluation.metric: unknown metric 'eval/recal_at_1'; available: eval/loss" in message
    assert "did you mean 'eval/recall_at_1'?" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_not_available(claims: Path, out: Path) -> None:
    message = run_error(tiny.contrastive_job(resources={"gpusPerNode": 1}), tiny.claim_paths(claims, out))
    assert "resources.device: CUDA, but no usable GPU was found" in message
    assert "--set resources.gpusPerNode=0" in message


def test_out_of_gpu_memory(claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(self: Contrastive, model: Any, batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB. GPU 0 has ...")

    monkeypatch.setattr(Contrastive, "loss", out_of_memory)
    recorder = Recorder()
    with pytest.raises(OutOfGPUMemory) as raised:
        run(tiny.contrastive_job(), RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    assert raised.value.exit_code == 77
    assert "out of GPU memory with micro-batches of 6 samples: lower training.batchSize (try 3)" in str(raised.value)
    assert recorder.report is not None
    assert recorder.report.reason == "OutOfGPUMemory"
