"""A suggestion is made for a misspelling, and for nothing that merely looks alike."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rapidfuzz.distance import OSA

from finetune_api import field_paths, foreign_fields, suggestions
from finetune_api.suggestions import closest_match, closest_matches, normalize

OPTIMIZERS = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adafactor", "NAdam", "RAdam", "Muon"]
SCHEDULES = ["Constant", "Warmup", "TimeDecay", "StepDecay", "ExponentialDecay", "CosineAnnealing", "LinearDecay"]
TASKS = ["Contrastive", "CausalLM", "SequenceClassification", "ImageClassification"]
METRICS = ["eval/loss", "eval/accuracy", "eval/recall_at_1"]


@pytest.mark.parametrize("module", [suggestions, field_paths, foreign_fields])
def test_docstring_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("sgd", OPTIMIZERS, "SGD"),
        ("SDG", OPTIMIZERS, "SGD"),
        ("adamw", OPTIMIZERS, "AdamW"),
        ("RMSProp", OPTIMIZERS, "RMSprop"),
        ("RMSpop", OPTIMIZERS, "RMSprop"),
        ("momentun", ["momentum", "dampening", "nesterov"], "momentum"),
        ("epoch", ["epochs", "steps", "batchSize"], "epochs"),
        ("batch_size", ["epochs", "batchSize", "microBatchSize"], "batchSize"),
        ("learnig_rate", ["type", "learningRate", "weightDecay"], "learningRate"),
        ("cycels", ["cycles", "minFactor"], "cycles"),
        ("Cosine", SCHEDULES, "CosineAnnealing"),
        ("Warm", SCHEDULES, "Warmup"),
        ("LinearDeacy", SCHEDULES, "LinearDecay"),
        ("sequence-classification", TASKS, "SequenceClassification"),
        ("SequenceClasification", TASKS, "SequenceClassification"),
        ("CasualLM", TASKS, "CausalLM"),
        ("eval/acc", METRICS, "eval/accuracy"),
        ("eval/recall_at1", METRICS, "eval/recall_at_1"),
        ("trian", ["train", "test"], "train"),
        ("txt", ["text", "label"], "text"),
        ("brt.*", ["bert.*", "classifier.*"], "bert.*"),
        ("vision_model.layer.*", ["vision_model.*", "vision_model.layers.*"], "vision_model.layers.*"),
    ],
)
def test_misspelled_word_is_matched(word: str, choices: list[str], expected: str) -> None:
    assert closest_match(word, choices) == expected


@pytest.mark.parametrize(
    ("word", "choices"),
    [
        ("TokenClassification", TASKS),
        ("AudioClassification", TASKS),
        ("limit", ["source", "config", "split", "revision"]),
        ("Lion", OPTIMIZERS),
        ("StepLR", SCHEDULES),
        ("eval/f1", METRICS),
        ("l3", ["l1", "l2"]),
        ("lr", ["l1", "l2"]),
        ("untilTime", ["untilStep", "untilEpoch", "fromStep", "fromEpoch"]),
        ("textual", ["visual", "temperature"]),
        ("encoder.*", ["vision_model.*", "text_model.*", "logit_scale"]),
        ("", ["a", "text"]),
        ("xyz", []),
    ],
)
def test_different_word_is_not_matched(word: str, choices: list[str]) -> None:
    assert closest_match(word, choices) is None


def test_matches_are_sorted_by_distance() -> None:
    assert closest_matches("layers.0.weight", ["layers.10.weights", "layers.0.wieght", "bias"], 2) == [
        "layers.0.wieght",
        "layers.10.weights",
    ]


words = st.text("abcdefgh", min_size=1, max_size=10)


@given(words, words)
def test_match_is_symmetric_in_edits_and_within_the_bound(word: str, choice: str) -> None:
    if closest_match(word, [choice]) is None:
        return
    left, right = normalize(word), normalize(choice)
    edits = max(1, min(suggestions.MAX_EDITS, max(len(left), len(right)) // suggestions.LETTERS_PER_EDIT))
    assert left == right or right.startswith(left) or OSA.distance(left, right) <= edits


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=20), st.data())
def test_one_edit_is_always_matched(choice: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(choice) - 2))
    letter = data.draw(st.sampled_from("xyz"))
    word = data.draw(
        st.sampled_from(
            [
                choice[:position] + letter + choice[position:],
                choice[:position] + choice[position + 1 :],
                choice[:position] + letter + choice[position + 1 :],
                choice[:position] + choice[position + 1] + choice[position] + choice[position + 2 :],
            ]
        )
    )
    assert closest_match(word, [choice]) == choice


@given(words, words, words)
def test_case_and_separators_win_over_edits(one: str, two: str, other: str) -> None:
    choice = f"{one}_{two}"
    assume(normalize(other) != normalize(choice))
    assert closest_match(f"{one}{two.capitalize()}", [other, choice]) == choice
