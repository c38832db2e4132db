"""Losses against a direct implementation of their formula, metrics on cases counted by hand."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.job import UNSUPPORTED_TASKS
from finetune_api.job import Task as TaskName
from finetune_trainer.data import Batch
from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.tasks import TASKS
from finetune_trainer.tasks.contrastive import Contrastive, contrastive_loss
from finetune_trainer.tasks.sequence_classification import SequenceClassification
from unit.trainer import tiny


def naive_loss(logits: torch.Tensor, group: list[int]) -> float:
    """The contrastive loss, pair by pair."""
    total, count = 0.0, len(group)
    for matrix in (logits, logits.t()):
        for row in range(count):
            probabilities = matrix[row].softmax(dim=0)
            positives = [column for column in range(count) if group[column] == group[row]]
            total -= sum(float(probabilities[column].log()) for column in positives) / len(positives)
    return total / (2 * count)


@pytest.mark.parametrize("group", [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 0], [5, 7, 5, 7]])
def test_contrastive_loss_shares_the_target_among_the_pairs_of_a_group(group: list[int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 4) * 3
    assert float(contrastive_loss(logits, torch.tensor(group))) == pytest.approx(naive_loss(logits, group), rel=1e-5)


def test_contrastive_loss_of_distinct_pairs_equals_clip() -> None:
    logits, diagonal = torch.randn(6, 6), torch.arange(6)
    cross_entropy = nn.functional.cross_entropy
    expected = (cross_entropy(logits, diagonal) + cross_entropy(logits.t(), diagonal)) / 2
    torch.testing.assert_close(contrastive_loss(logits, diagonal), expected)


class Embeddings(nn.Module):
    """A dual encoder whose inputs are the embeddings."""

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> Any:
        return SimpleNamespace(image_embeds=image, text_embeds=text, logits_per_image=image @ text.t())


def embedding_batches(image: list[list[float]], text: list[list[float]], **ids: list[int]) -> Iterator[Batch]:
    """The embeddings in batches of three; the last one may be smaller."""
    for first in range(0, len(image), 3):
        part = slice(first, first + 3)
        vectors = {"image": torch.tensor(image[part]), "text": torch.tensor(text[part])}
        yield vectors | {key: torch.tensor(values[part]) for key, values in ids.items()}


EAST, NORTH, WEST, SOUTH = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]


def test_recall_counts_hits_among_the_most_similar_texts() -> None:
    image, text = [EAST, NORTH, WEST, SOUTH], [EAST, NORTH, SOUTH, WEST]
    metrics = Contrastive(has_labels=False).evaluate(Embeddings(), embedding_batches(image, text, text_id=[1, 2, 3, 4]))
    assert metrics["eval/recall_at_1"] == 0.5
    assert metrics["eval/recall_at_5"] == 1.0
    assert "eval/zero_shot_accuracy" not in metrics


def test_recall_accepts_an_equal_text_or_label() -> None:
    image, text = [EAST, NORTH], [NORTH, EAST]
    by_text = Contrastive(has_labels=False).evaluate(Embeddings(), embedding_batches(image, text, text_id=[1, 1]))
    assert by_text["eval/recall_at_1"] == 1.0
    batches = embedding_batches(image, text, text_id=[1, 2], label_id=[7, 7])
    assert Contrastive(has_labels=True).evaluate(Embeddings(), batches)["eval/recall_at_1"] == 1.0


def test_zero_shot_accuracy_uses_the_mean_text_of_each_class() -> None:
    image, text = [EAST, EAST, NORTH, EAST], [EAST, [0.6, 0.8], NORTH, NORTH]
    batches = embedding_batches(image, text, text_id=[1, 2, 3, 4], label_id=[1, 1, 2, 2])
    assert Contrastive(has_labels=True).evaluate(Embeddings(), batches)["eval/zero_shot_accuracy"] == 0.75


def test_evaluation_loss_weights_batches_by_size() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(5, 2).tolist(), torch.randn(5, 2).tolist()
    metrics = Contrastive(has_labels=False).evaluate(
        Embeddings(), embedding_batches(image, text, text_id=list(range(5)))
    )
    logits = torch.tensor(image) @ torch.tensor(text).t()
    first, second = naive_loss(logits[:3, :3], [0, 1, 2]), naive_loss(logits[3:, 3:], [0, 1])
    assert metrics["eval/loss"] == pytest.approx((3 * first + 2 * second) / 5, rel=1e-5)


def test_classification_metrics_over_all_samples() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return SimpleNamespace(logits=x)

    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1])
    batches = [{"x": logits[:2], "labels": labels[:2]}, {"x": logits[2:], "labels": labels[2:]}]
    metrics = SequenceClassification({0: 0, 1: 1}).evaluate(Fixed(), iter(batches))
    assert metrics["eval/accuracy"] == pytest.approx(2 / 3)
    assert metrics["eval/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_every_supported_task_has_an_implementation() -> None:
    assert set(TASKS) == set(TaskName.__args__) - set(UNSUPPORTED_TASKS)  # type: ignore[attr-defined]


def test_classes_come_from_the_data_or_from_a_matching_head(claims: Path, tmp_path: Path) -> None:
    rows = [{"text": "the film", "label": name} for name in ("sad", "glad", "mad")] * 4
    tiny.write_rows(tmp_path / "named", rows)
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path, "out": tmp_path})
    prepared = prepare(tiny.job("bert", "named", training={"batchSize": 4}), claim_paths)
    assert isinstance(prepared.task, SequenceClassification)
    assert prepared.task.label2id == {"glad": 0, "mad": 1, "sad": 2}
    assert prepared.config.id2label == {0: "glad", 1: "mad", 2: "sad"}
    known = prepare(tiny.job("bert", "reviews"), tiny.claim_paths(claims, tmp_path))
    assert isinstance(known.task, SequenceClassification)
    assert known.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_contrastive_rejects_a_model_that_is_no_dual_encoder(claims: Path, out: Path) -> None:
    with pytest.raises(UserError, match=r"Contrastive needs a model with an image and a text encoder.*bert"):
        prepare(tiny.job("bert", "colours", task="Contrastive"), tiny.claim_paths(claims, out))


def test_contrastive_rejects_micro_batches(claims: Path, out: Path) -> None:
    with pytest.raises(UserError, match=r"microBatchSize: 3 is less than .*gradient caching is not yet supported"):
        prepare(tiny.contrastive_job(training={"microBatchSize": 3}), tiny.claim_paths(claims, out))


def test_meta_model_has_the_parameters_of_the_loaded_model(claims: Path, out: Path) -> None:
    prepared = prepare(tiny.contrastive_job(), tiny.claim_paths(claims, out))
    bare = model_loader.list_parameters(model_loader.build_meta_model(prepared.task.auto_class, prepared.config))
    model, new = model_loader.load_model(prepared.pretrained, prepared.task, prepared.config)
    assert bare == model_loader.list_parameters(model)
    assert new == {}
