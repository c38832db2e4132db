"""Metric states: any division into batches and processes gives the same values, and NaN stays NaN."""

import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune_api.metrics import EVALUATION_METRICS, find_direction
from finetune_trainer.tasks import metrics as metric_states
from finetune_trainer.tasks.causal_lm import CausalLM
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.tasks.image_classification import ImageClassification
from finetune_trainer.tasks.metrics import (
    CausalLMMetrics,
    ClassificationMetrics,
    ContrastiveMetrics,
    Mean,
    TaskMetrics,
)
from finetune_trainer.tasks.sequence_classification import SequenceClassification

TASKS = {
    "CausalLM": CausalLM(("text",)),
    "SequenceClassification": SequenceClassification({0: 0, 1: 1}),
    "ImageClassification": ImageClassification({0: 0, 1: 1}),
    "Contrastive": Contrastive(has_labels=True),
}
DIMENSIONS = 4


def classification(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": torch.randn(count, 3, generator=generator),
        "labels": torch.randint(3, (count,), generator=generator),
    }


def tokens(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    token, targets = (torch.randint(3, (count,), generator=generator) for _ in range(2))
    return {"loss": torch.rand(count, generator=generator), "token": token, "targets": targets}


def pairs(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (normalize(torch.randn(count, DIMENSIONS, generator=generator), dim=1) for _ in range(2))
    ids, labels = (torch.randint(max(1, count // part), (count,), generator=generator) for part in (1, 3))
    return {"image_embeds": image, "text_embeds": text, "text_id": ids, "label_id": labels}


STATES: Mapping[str, tuple[Any, Any]] = {
    "classification": (ClassificationMetrics, classification),
    "causal": (CausalLMMetrics, tokens),
    "contrastive": (lambda: ContrastiveMetrics(has_labels=True), pairs),
}


def accumulate(state: TaskMetrics, items: Mapping[str, Tensor], bounds: Sequence[int]) -> TaskMetrics:
    for start, end in pairwise(bounds):
        batch = {name: values[start:end] for name, values in items.items()}
        if "image_embeds" in batch:
            batch["loss"] = torch.tensor(1.5)
        state.update(batch, batch)
    return state


def is_same(left: Mapping[str, float], right: Mapping[str, float]) -> bool:
    return left == pytest.approx(right, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", STATES)
@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 10_000), data=st.data())
def test_any_batches_in_any_processes_give_the_same_metrics(
    name: str, count: int, seed: int, data: st.DataObject
) -> None:
    new_state, make_items = STATES[name]
    items = make_items(count, seed)
    whole = accumulate(new_state(), items, [0, count]).compute()
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=6))) if count > 1 else []
    bounds = [0, *cuts, count]
    assert is_same(accumulate(new_state(), items, bounds).compute(), whole)
    processes = [accumulate(new_state(), items, part) for part in pairwise(bounds)]
    random.Random(seed).shuffle(processes)
    merged = new_state()  # may be merged before its first batch
    for state in processes:
        merged.merge(state)
    assert is_same(merged.compute(), whole)


@pytest.mark.parametrize("name", STATES)
def test_merge_leaves_the_other_state_unchanged(name: str) -> None:
    new_state, make_items = STATES[name]
    one, other = (accumulate(new_state(), make_items(5, seed), [0, 2, 5]) for seed in (1, 2))
    before = other.compute()
    one.merge(other)
    accumulate(one, make_items(4, 3), [0, 4])
    assert other.compute() == before


@pytest.mark.parametrize("name", STATES)
def test_metrics_without_samples_are_nan(name: str) -> None:
    assert all(map(math.isnan, STATES[name][0]().compute().values())), "0 would be a value"


def retrieval_at_once(items: Mapping[str, Tensor]) -> dict[str, float]:
    """All similarities in one matrix."""
    similarity = items["image_embeds"] @ items["text_embeds"].t()
    same_text = items["text_id"][:, None] == items["text_id"][None, :]
    same_label = items["label_id"][:, None] == items["label_id"][None, :]
    values = {}
    for prefix, matrix in (("", similarity), ("text_to_image_", similarity.t())):
        for k in (1, 5):
            top = matrix.topk(min(5, len(matrix)), dim=1).indices[:, :k]
            hits = (same_text | same_label).gather(1, top).any(dim=1)
            values[f"eval/{prefix}recall_at_{k}"] = float(hits.double().mean())
    classes, label = torch.unique(items["label_id"], return_inverse=True)
    means = torch.stack([items["text_embeds"][label == number].sum(dim=0) for number in range(len(classes))])
    predicted = (items["image_embeds"] @ normalize(means, dim=1).t()).argmax(dim=1)
    return values | {"eval/zero_shot_accuracy": float((predicted == label).double().mean())}


@pytest.mark.parametrize(("queries", "candidates"), [(1, 1), (7, 3), (16, 5), (64, 50), (1000, 1000)])
def test_retrieval_in_blocks_equals_one_matrix(queries: int, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_states, "QUERY_BLOCK", queries)
    monkeypatch.setattr(metric_states, "CANDIDATE_BLOCK", candidates)
    items = pairs(150, 7)
    metrics = accumulate(ContrastiveMetrics(has_labels=True), items, [0, 60, 150]).compute()
    assert metrics == {"eval/loss": 1.5, **retrieval_at_once(items)}
    assert len(set(metrics.values())) >= 5, "the values tell most of the metrics apart"


def test_retrieval_directions_differ() -> None:
    """Two of three texts are closest to image 0, and each image is closest to its own text."""
    image = normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), dim=1)
    text = normalize(torch.tensor([[1.0, 0.0], [0.95, 0.3], [0.95, -0.3]]), dim=1)
    items = {"image_embeds": image, "text_embeds": text, "text_id": torch.arange(3)}
    metrics = accumulate(ContrastiveMetrics(has_labels=False), items, [0, 3]).compute()
    assert metrics["eval/recall_at_1"] == 1.0
    assert metrics["eval/text_to_image_recall_at_1"] == pytest.approx(1 / 3)
    assert metrics["eval/text_to_image_recall_at_5"] == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("modality", ["image_embeds", "text_embeds"])
def test_retrieval_with_an_embedding_that_is_not_finite_is_nan(modality: str, value: float) -> None:
    items = pairs(6, 0)
    items[modality][3, 1] = value
    metrics = accumulate(ContrastiveMetrics(has_labels=True), items, [0, 6]).compute()
    assert metrics.pop("eval/loss") == 1.5
    assert all(map(math.isnan, metrics.values())), "ranks of NaN have no meaning"


def test_classification_of_nan_logits_is_nan_not_the_accuracy_of_one_class() -> None:
    items = {"logits": torch.full((4, 2), math.nan), "labels": torch.zeros(4, dtype=torch.int64)}
    metrics = accumulate(ClassificationMetrics(), items, [0, 2, 4]).compute()
    assert math.isnan(metrics["eval/loss"]) and math.isnan(metrics["eval/accuracy"])


def test_token_accuracy_and_perplexity_of_nan_losses_are_nan() -> None:
    items = tokens(4, 0) | {"loss": torch.tensor([1.0, math.nan, 1.0, 1.0])}
    assert all(map(math.isnan, accumulate(CausalLMMetrics(), items, [0, 4]).compute().values()))


def test_perplexity_beyond_a_float_is_infinite() -> None:
    items = tokens(2, 0)
    assert accumulate(CausalLMMetrics(), items | {"loss": torch.tensor([1e3, 1e3])}, [0, 2]).compute()[
        "eval/perplexity"
    ] == (math.inf)
    infinite = accumulate(CausalLMMetrics(), items | {"loss": torch.tensor([math.inf, 1.0])}, [0, 2]).compute()
    assert (infinite["eval/loss"], infinite["eval/perplexity"]) == (math.inf, math.inf)


def test_mean_of_many_values_does_not_lose_small_ones() -> None:
    mean = Mean()
    for _ in range(100):
        mean.update(torch.full((1000,), 1e-4))
        mean.update(torch.tensor([1e4]))
    assert mean.compute() == pytest.approx((1e5 * 1e-4 + 100 * 1e4) / (1e5 + 100), rel=1e-7)


@pytest.mark.parametrize(("name", "task"), TASKS.items())
def test_table_of_metrics_has_exactly_what_tasks_compute(name: str, task: Any) -> None:
    assert set(task.metrics().compute()) == set(task.metric_names)
    assert set(task.metric_names) == {metric for metric, it in EVALUATION_METRICS.items() if name in it.tasks}


def test_contrastive_without_labels_has_no_zero_shot_accuracy() -> None:
    task = Contrastive(has_labels=False)
    assert set(task.metrics().compute()) == set(task.metric_names)
    assert "eval/zero_shot_accuracy" not in task.metric_names


def test_direction_is_looked_up_and_not_guessed() -> None:
    assert find_direction("eval/perplexity") == "Minimize"
    assert find_direction("eval/text_to_image_recall_at_5") == "Maximize"
    assert find_direction("eval/lossless_ratio") is None
    assert find_direction("eval/wer") is None


class Operations(TorchDispatchMode):
    """Records the operations of torch and the size of the largest tensor that one returned."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func.name())
        self.largest = max([self.largest, *(it.numel() for it in tree_leaves(result) if isinstance(it, Tensor))])
        return result


@pytest.mark.parametrize("name", STATES)
def test_update_does_not_read_the_device(name: str) -> None:
    new_state, make_items = STATES[name]
    state = new_state()
    with Operations() as operations:
        accumulate(state, make_items(6, 0), [0, 3, 6])
    assert operations.names, "operations are recorded"
    assert "aten::_local_scalar_dense" not in operations.names, ".item() of a tensor synchronizes"
    with Operations() as operations:
        state.compute()
    assert "aten::_local_scalar_dense" in operations.names, "it does so at the end"


def test_retrieval_and_zero_shot_take_memory_for_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_states, "QUERY_BLOCK", 32)
    monkeypatch.setattr(metric_states, "CANDIDATE_BLOCK", 64)
    count = 1000
    items = pairs(count, 0) | {"label_id": torch.arange(count)}
    state = accumulate(ContrastiveMetrics(has_labels=True), items, [0, count])
    with Operations() as operations:
        state.compute()
    assert operations.largest <= max(count * DIMENSIONS, 32 * (64 + 5)), "not pairs * pairs, nor pairs * classes"
