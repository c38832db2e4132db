"""Classes of a dataset, whether a pretrained head has them, and runs that learn them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from finetune_trainer.data import Dataset as Rows
from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import PreparedRun, prepare
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.tasks.image_classification import ImageClassification
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

NAMES = list(tiny.COLOURS)
FAST: dict[str, Any] = {
    "modules": [{"name": "all", "parameters": ["*"], "optimizer": {"type": "AdamW", "learningRate": 1e-2}}],
    "training": {"batchSize": 6, "epochs": 15},
    "data": {"validation": {"fraction": 0.3}},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claims `models` (nameless, colours, animals, many; each a ViT) and `data`."""
    folder = tmp_path_factory.mktemp("pictures")
    tiny.write_image_classifier(folder / "models" / "nameless")
    tiny.write_image_classifier(folder / "models" / "colours", sorted(NAMES, reverse=True))
    tiny.write_image_classifier(folder / "models" / "animals", ["cat", "dog", "fox"])
    tiny.write_image_classifier(folder / "models" / "many", [f"thing {number}" for number in range(7)])
    squares = tiny.captioned(30)
    tiny.write_rows(folder / "data" / "numbered", squares)
    tiny.write_rows(folder / "data" / "named", [{**row, "label": NAMES[row["label"]]} for row in squares])
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)})
    (folder / "data" / "declared").mkdir()
    declared = Dataset.from_list([{key: row[key] for key in features} for row in squares], features=features)
    declared.to_parquet(folder / "data" / "declared" / "part.parquet")
    return folder


def prepare_run(pictures: Path, model: str, data: str) -> PreparedRun:
    return prepare(tiny.job(model, data), tiny.claim_paths(pictures, pictures))


def label2id(prepared_run: PreparedRun) -> dict[Any, int]:
    assert isinstance(prepared_run.task, Classification)
    return dict(prepared_run.task.label2id)


@pytest.mark.parametrize(
    ("model", "data", "expected", "names", "new_head"),
    [
        ("nameless", "numbered", {0: 0, 1: 1, 2: 2}, ["LABEL_0", "LABEL_1", "LABEL_2"], False),
        ("nameless", "declared", {0: 0, 1: 1, 2: 2}, NAMES, False),
        ("nameless", "named", {"blue": 0, "green": 1, "red": 2}, ["blue", "green", "red"], True),
        ("colours", "named", {"red": 0, "green": 1, "blue": 2}, ["red", "green", "blue"], False),
        ("colours", "declared", {0: 0, 1: 1, 2: 2}, ["red", "green", "blue"], False),
        ("animals", "named", {"blue": 0, "green": 1, "red": 2}, ["blue", "green", "red"], True),
        ("animals", "declared", {0: 0, 1: 1, 2: 2}, NAMES, True),
        ("many", "numbered", {0: 0, 1: 1, 2: 2}, ["0", "1", "2"], True),
    ],
)
def test_pretrained_head_is_kept_if_its_classes_match(
    model: str, data: str, expected: dict[Any, int], names: list[str], new_head: bool, pictures: Path
) -> None:
    prepared_run = prepare_run(pictures, model, data)
    assert label2id(prepared_run) == expected
    assert list(prepared_run.config.id2label.values()) == names
    assert prepared_run.config.label2id == {name: number for number, name in enumerate(names)}
    assert prepared_run.task.new_head is new_head


def test_pretrained_head_keeps_its_class_order(pictures: Path, tmp_path: Path) -> None:
    tiny.write_image_classifier(tmp_path / "models" / "other", ["blue", "green", "red"])
    claim_paths = tiny.ClaimPaths(pictures, {"models": tmp_path / "models", "out": tmp_path})
    prepared_run = prepare(tiny.job("other", "declared"), claim_paths)
    assert label2id(prepared_run) == {0: 2, 1: 1, 2: 0}, "numbered red, green, blue in the data"
    assert list(prepared_run.config.id2label.values()) == ["blue", "green", "red"]


def heads(pictures: Path, model: str, data: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """The weights of the head on disk and at the start of training, and the names reported as new."""
    prepared_run = prepare_run(pictures, model, data)
    torch.manual_seed(1)
    loaded, new = model_loader.load_model(prepared_run.pretrained, prepared_run.task, prepared_run.config)
    disk = AutoModelForImageClassification.from_pretrained(pictures / "models" / model)
    return (
        disk.classifier.weight.detach(),
        loaded.classifier.weight.detach(),
        [name for names in new.values() for name in names],
    )


def test_kept_head_has_its_pretrained_weights(pictures: Path) -> None:
    before, after, new = heads(pictures, "colours", "declared")
    assert torch.equal(before, after)
    assert new == []


def test_head_for_other_classes_is_reinitialized(pictures: Path) -> None:
    before, after, new = heads(pictures, "animals", "named")
    assert before.shape == after.shape
    assert not torch.isclose(before, after).any()
    assert float(after.std()) > 0
    assert new == ["classifier.bias", "classifier.weight"]


def test_head_of_another_size_is_reinitialized(pictures: Path) -> None:
    before, after, new = heads(pictures, "many", "numbered")
    assert (len(before), len(after)) == (7, 3)
    assert new == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("data", ["numbered", "named", "declared"])
def test_run_learns_and_its_output_classifies_images(data: str, pictures: Path, out: Path) -> None:
    callback = tiny.Recorder()
    model_name = "many" if data == "numbered" else "animals"
    report = run(tiny.job(model_name, data, **FAST), RunOptions(claims=tiny.claim_paths(pictures, out)), callback)
    assert report.reason == "Succeeded"
    assert callback.evaluations[-1].metrics["eval/loss"] < callback.evaluations[0].metrics["eval/loss"] / 4
    assert callback.evaluations[-1].metrics["eval/accuracy"] == 1.0
    reason = "the classes of the model are not those of the data"
    assert callback.has_message(f"newly initialized, because {reason}: classifier.bias, classifier.weight")
    model = AutoModelForImageClassification.from_pretrained(out / "result")
    processor = AutoImageProcessor.from_pretrained(out / "result")
    image = Rows.__getitem__(prepare_run(pictures, "animals", "numbered").train, 1)["image"]
    answer = int(model(**processor(image, return_tensors="pt")).logits.argmax())
    assert model.config.id2label[answer] == ("1" if data == "numbered" else "green")
    assert not list((out / "result").glob("tokenizer*"))


def test_max_length_is_rejected_for_images(pictures: Path, out: Path) -> None:
    job = tiny.job("nameless", "numbered", data={"maxLength": 64})
    with pytest.raises(UserError, match=r"data\.maxLength: 64: task ImageClassification reads no text; remove it"):
        run(job, RunOptions(claims=tiny.claim_paths(pictures, out)), tiny.Recorder())


def labelled(folder: Path, labels: Sequence[Any], kind: pa.DataType) -> Path:
    """Squares with these labels, as `data/rows` of a claim."""
    pixels = [{"bytes": tiny.png((9, 9, 9)), "path": None} for _ in labels]
    (folder / "rows").mkdir(parents=True)
    pq.write_table(pa.table({"image": pixels, "label": pa.array(labels, kind)}), folder / "rows" / "part.parquet")
    return folder


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0.5, 1.5], pa.float64(), r"expected an integer or a string, found"),
        ([1, 1, 1], pa.int64(), r"has only one class: 1"),
    ],
)
def test_invalid_labels_are_rejected(
    labels: list[Any], kind: pa.DataType, message: str, pictures: Path, tmp_path: Path
) -> None:
    data = labelled(tmp_path / "data", labels, kind)
    with pytest.raises(UserError, match=message):
        prepare(tiny.job("many", "rows"), tiny.ClaimPaths(pictures, {"data": data, "out": tmp_path}))


def test_unknown_label_is_a_bad_row(pictures: Path, tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", ["rad", "red"], pa.string())
    tiny.write_rows(data / "train", [{**row, "label": NAMES[row["label"]]} for row in tiny.captioned(12)])
    claim_paths = tiny.ClaimPaths(pictures, {"data": data, "out": tmp_path})
    validation = {"source": "pvc://data/rows"}
    job = tiny.job("nameless", "train", data={"validation": validation})
    with pytest.raises(
        UserError, match=r"data\.validation.*row 0.*unknown class 'rad'; the training set has .*mean 'red'"
    ):
        run(job, RunOptions(claims=claim_paths), tiny.Recorder())
    skipping = tiny.job("nameless", "train", data={"validation": validation, "onBadRow": "Skip"})
    assert prepare(skipping, claim_paths).plan.validation_samples == 1


def test_minus_one_is_an_unknown_class(pictures: Path, tmp_path: Path) -> None:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES), "key": Value("int64")})
    rows = [{"image": row["image"], "label": row["label"], "key": 0} for row in tiny.captioned(12)]
    (tmp_path / "data" / "rows").mkdir(parents=True)
    held_out = Dataset.from_list([*rows, {**rows[0], "label": -1}], features=features)
    held_out.to_parquet(tmp_path / "data" / "rows" / "part.parquet")
    claim_paths = tiny.ClaimPaths(pictures, {"data": tmp_path / "data", "out": tmp_path})
    with pytest.raises(UserError, match=r"row 12.*unknown class -1; the training set has"):
        run(tiny.job("nameless", "rows"), RunOptions(claims=claim_paths), tiny.Recorder())


def test_task_is_inferred_from_the_model(pictures: Path) -> None:
    assert isinstance(prepare_run(pictures, "nameless", "numbered").task, ImageClassification)


def test_language_model_as_classifier_finds_the_last_token(tmp_path: Path, out: Path) -> None:
    tiny.write_language_model(tmp_path / "models" / "llama")
    tiny.write_rows(tmp_path / "data" / "reviews", tiny.reviews(24))
    changes = tiny.merged(FAST, {"task": "SequenceClassification", "data": {"workers": 2}})
    callback = tiny.Recorder()
    run(tiny.job("llama", "reviews", **changes), RunOptions(claims=tiny.claim_paths(tmp_path, out)), callback)
    assert callback.evaluations[-1].metrics["eval/accuracy"] == 1.0
    assert callback.has_message("newly initialized, because the checkpoint does not contain them: score.weight")
    config = AutoConfig.from_pretrained(out / "result")
    assert config.pad_token_id == tiny.byte_tokenizer().eos_token_id, "its tokenizer has no other to pad with"
