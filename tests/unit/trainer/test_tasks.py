"""Losses against their plainest formula, metrics on cases small enough to count by hand."""

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
from finetune_trainer.tasks import TASKS
from finetune_trainer.tasks.contrastive import Contrastive, contrastive_loss
from finetune_trainer.tasks.sequence_classification import SequenceClassification
from finetune_trainer.training.run import prepare
from unit.trainer import tiny


def naive(logits: torch.Tensor, group: list[int]) -> float:
    """The loss, pair by pair."""
    total, count = 0.0, len(group)
    for matrix in (logits, logits.t()):
        for row in range(count):
            chances = matrix[row].softmax(dim=0)
            right = [column for column in range(count) if group[column] == group[row]]
            total -= sum(float(chances[column].log()) for column in right) / len(right)
    return total / (2 * count)


@pytest.mark.parametrize("group", [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 0], [5, 7, 5, 7]])
def test_contrastive_loss_shares_the_weight_among_the_pairs_of_a_group(group: list[int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 4) * 3
    assert float(contrastive_loss(logits, torch.tensor(group))) == pytest.approx(naive(logits, group), rel=1e-5)


def test_with_all_pairs_different_it_is_clips_loss() -> None:
    logits, diagonal = torch.randn(6, 6), torch.arange(6)
    cross = nn.functional.cross_entropy
    expected = (cross(logits, diagonal) + cross(logits.t(), diagonal)) / 2
    torch.testing.assert_close(contrastive_loss(logits, diagonal), expected)


class Embeddings(nn.Module):
    """A dual encoder that was given its answers."""

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> Any:
        return SimpleNamespace(image_embeds=image, text_embeds=text, logits_per_image=image @ text.t())


def embedded(image: list[list[float]], text: list[list[float]], **ids: list[int]) -> Iterator[Batch]:
    """The same in batches of three, the last of which is smaller."""
    for first in range(0, len(image), 3):
        part = slice(first, first + 3)
        vectors = {"image": torch.tensor(image[part]), "text": torch.tensor(text[part])}
        yield vectors | {key: torch.tensor(values[part]) for key, values in ids.items()}


EAST, NORTH, WEST, SOUTH = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]


def test_retrieval_counts_hits_among_the_nearest() -> None:
    image, text = [EAST, NORTH, WEST, SOUTH], [EAST, NORTH, SOUTH, WEST]
    found = Contrastive(has_labels=False).evaluate(Embeddings(), embedded(image, text, text_id=[1, 2, 3, 4]))
    assert found["eval/recall_at_1"] == 0.5
    assert found["eval/recall_at_5"] == 1.0
    assert "eval/zero_shot_accuracy" not in found


def test_the_same_text_or_label_is_as_good_as_the_own() -> None:
    image, text = [EAST, NORTH], [NORTH, EAST]
    by_text = Contrastive(has_labels=False).evaluate(Embeddings(), embedded(image, text, text_id=[1, 1]))
    assert by_text["eval/recall_at_1"] == 1.0
    batches = embedded(image, text, text_id=[1, 2], label_id=[7, 7])
    assert Contrastive(has_labels=True).evaluate(Embeddings(), batches)["eval/recall_at_1"] == 1.0


def test_zero_shot_compares_with_the_mean_text_of_each_class() -> None:
    image, text = [EAST, EAST, NORTH, EAST], [EAST, [0.6, 0.8], NORTH, NORTH]
    batches = embedded(image, text, text_id=[1, 2, 3, 4], label_id=[1, 1, 2, 2])
    assert Contrastive(has_labels=True).evaluate(Embeddings(), batches)["eval/zero_shot_accuracy"] == 0.75


def test_evaluation_loss_weighs_batches_by_their_size() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(5, 2).tolist(), torch.randn(5, 2).tolist()
    found = Contrastive(has_labels=False).evaluate(Embeddings(), embedded(image, text, text_id=list(range(5))))
    logits = torch.tensor(image) @ torch.tensor(text).t()
    first, second = naive(logits[:3, :3], [0, 1, 2]), naive(logits[3:, 3:], [0, 1])
    assert found["eval/loss"] == pytest.approx((3 * first + 2 * second) / 5, rel=1e-5)


def test_classification_counts_and_averages_over_all_samples() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return SimpleNamespace(logits=x)

    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1])
    batches = [{"x": logits[:2], "labels": labels[:2]}, {"x": logits[2:], "labels": labels[2:]}]
    found = SequenceClassification({0: 0, 1: 1}).evaluate(Fixed(), iter(batches))
    assert found["eval/accuracy"] == pytest.approx(2 / 3)
    assert found["eval/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_each_task_of_the_language_has_an_implementation() -> None:
    assert set(TASKS) == set(TaskName.__args__) - set(UNSUPPORTED_TASKS)  # type: ignore[attr-defined]


def test_classes_come_from_the_data_or_from_the_head_that_knows_them(claims: Path, tmp_path: Path) -> None:
    rows = [{"text": "the film", "label": name} for name in ("sad", "glad", "mad")] * 4
    tiny.write_rows(tmp_path / "named", rows)
    place = tiny.ClaimPaths(claims, {"data": tmp_path, "out": tmp_path})
    prepared = prepare(tiny.job("bert", "named", training={"batchSize": 4}), place)
    assert isinstance(prepared.task, SequenceClassification)
    assert prepared.task.classes == {"glad": 0, "mad": 1, "sad": 2}
    assert prepared.config.id2label == {0: "glad", 1: "mad", 2: "sad"}
    known = prepare(tiny.job("bert", "reviews"), tiny.claim_paths(claims, tmp_path))
    assert isinstance(known.task, SequenceClassification)
    assert known.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_a_model_that_cannot_compare_is_refused(claims: Path, out: Path) -> None:
    with pytest.raises(UserError, match=r"Contrastive needs a model with an image and a text encoder.*bert"):
        prepare(tiny.job("bert", "colours", task="Contrastive"), tiny.claim_paths(claims, out))


def test_small_micro_batches_would_change_the_negatives(claims: Path, out: Path) -> None:
    with pytest.raises(UserError, match=r"microBatchSize is 3.*gradient caching is not yet supported"):
        prepare(tiny.contrastive_job(training={"microBatchSize": 3}), tiny.claim_paths(claims, out))


def test_parameters_of_a_skeleton_are_those_of_the_model(claims: Path, out: Path) -> None:
    prepared = prepare(tiny.contrastive_job(), tiny.claim_paths(claims, out))
    bare = model_loader.parameters_of(model_loader.skeleton(prepared.task.auto_class, prepared.config))
    model, new = model_loader.load_model(prepared.pretrained, prepared.task, prepared.config)
    assert bare == model_loader.parameters_of(model)
    assert new == {}
