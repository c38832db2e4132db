"""Classes of a pretrained head: what its config declares, which labels mean them, and that the saved model says so."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import PreparedRun, prepare
from finetune_trainer.tasks.classes import HeadClasses, declared_names, default_names, fold, match_labels
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

BY_ID = {"0": "neg", "1": "pos"}
BY_NAME = {"neg": 0, "pos": 1}
DEFAULT_BY_ID = {"0": "LABEL_0", "1": "LABEL_1"}
DEFAULT_BY_NAME = {"LABEL_0": 0, "LABEL_1": 1}


@pytest.mark.parametrize(
    "declared",
    [
        {"id2label": BY_ID, "label2id": BY_NAME},
        {"id2label": {0: "neg", 1: "pos"}, "label2id": BY_NAME},
        {"id2label": {"1": "pos", "0": "neg"}, "label2id": {"pos": 1, "neg": 0}},
        {"id2label": BY_ID},
        {"id2label": BY_ID, "label2id": None},
        {"id2label": BY_ID, "label2id": {}},
        {"id2label": BY_ID, "label2id": DEFAULT_BY_NAME},
        {"id2label": BY_ID, "label2id": {"neg": "0", "pos": "1"}},
        {"id2label": BY_ID, "label2id": {"NEG": 0, " pos ": 1}},
        {"id2label": BY_ID, "label2id": {"neg": 0}},
        {"label2id": BY_NAME},
        {"id2label": DEFAULT_BY_ID, "label2id": BY_NAME},
        {"label2id": BY_NAME, "num_labels": 2},
        {"id2label": BY_ID, "num_labels": 2},
    ],
)
def test_names_come_from_the_field_that_has_them(declared: dict[str, Any]) -> None:
    assert declared_names(declared) == ("neg", "pos")


@pytest.mark.parametrize("declared", [{}, {"id2label": None, "label2id": None}, {"num_labels": 3}])
def test_config_without_names(declared: dict[str, Any]) -> None:
    assert declared_names(declared) is None


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"id2label": BY_ID, "label2id": {"neg": 1, "pos": 0}}, "id2label calls class 1 'pos', .* calls it 'neg'"),
        ({"id2label": BY_ID, "label2id": {"neg": 0, "pos": 1, "good": 1}}, "class 1 'pos', but label2id .* 'good'"),
        ({"id2label": BY_ID, "label2id": {"neg": 0, "pos": 2}}, "calls class 2 None, but label2id calls it 'pos'"),
        ({"id2label": DEFAULT_BY_ID, "label2id": {"LABEL_0": 1, "LABEL_1": 0}}, "class 1 'LABEL_1', .* 'LABEL_0'"),
        ({"id2label": DEFAULT_BY_ID, "label2id": {"a": 0, "b": 1, "c": 2}}, "id2label has 2 classes, but label2id has"),
        ({"id2label": {"1": "neg", "2": "pos"}}, "id2label must number the classes from 0 to 1, found 1, 2"),
        ({"id2label": {"0": "neg", "2": "pos"}}, "id2label must number the classes from 0 to 1, found 0, 2"),
        ({"id2label": {"first": "neg"}}, "id2label must have a name by class number"),
        ({"id2label": ["neg", "pos"]}, "id2label must have a name by class number"),
        ({"label2id": {"neg": 0, "pos": 0}}, "label2id has two names for class 0: 'neg' and 'pos'"),
        ({"label2id": {"neg": "first"}}, "label2id must have a class number by name"),
        ({"id2label": BY_ID, "label2id": BY_NAME, "num_labels": 3}, "num_labels is 3, but 2 classes have names"),
        ({"label2id": BY_NAME, "num_labels": 5}, "num_labels is 5, but 2 classes have names: neg, pos"),
    ],
)
def test_contradictions_are_refused_by_name(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.source: config\.json: .*{message}.*; correct the config"):
        declared_names(declared)


@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=6, unique_by=fold), st.randoms())
def test_any_order_of_consistent_names_is_accepted_and_any_swap_is_refused(names: list[str], random: Any) -> None:
    if tuple(names) == default_names(len(names)):
        return
    pairs = list(enumerate(names))
    random.shuffle(pairs)
    declared = {"id2label": {str(number): name for number, name in pairs}, "label2id": {it: n for n, it in pairs}}
    assert declared_names(declared) == tuple(names)
    swapped = {**declared["label2id"], names[0]: 1, names[1]: 0}
    with pytest.raises(UserError, match="but label2id calls it"):
        declared_names({**declared, "label2id": swapped})


NAMED, UNNAMED, NUMBERED = ("neg", "neutral", "pos"), default_names(3), ("1", "2", "3")


@pytest.mark.parametrize(
    ("head", "labels", "class_names", "expected"),
    [
        (NAMED, ["neg", "neutral", "pos"], None, {"neg": 0, "neutral": 1, "pos": 2}),
        (NAMED, ["neg", "pos"], None, {"neg": 0, "pos": 2}),  # a subset
        (NAMED, ["NEG", "Pos "], None, {"NEG": 0, "Pos ": 2}),  # another spelling
        (NAMED, ["Pos", "neg", "pos"], None, None),  # two spellings in the data are two classes
        (NAMED, ["neg", "other"], None, None),
        (NAMED, [0, 1, 2], None, {0: 0, 1: 1, 2: 2}),  # numbers of named classes
        (NAMED, ["0", "1", "2"], None, {"0": 0, "1": 1, "2": 2}),
        (NAMED, [0, 2], None, None),
        (NAMED, [1, 2, 3], None, None),
        (NAMED, [], ["pos", "neg", "neutral"], {0: 2, 1: 0, 2: 1}),  # ClassLabel in another order
        (NAMED, [], ["POS", "neg"], {0: 2, 1: 0}),
        (NAMED, [], ["bad", "good", "soso"], None),
        (UNNAMED, [0, 1, 2], None, {0: 0, 1: 1, 2: 2}),
        (UNNAMED, [1, 2, 3], None, None),  # counted from 1
        (UNNAMED, [0, 1], None, None),
        (UNNAMED, ["LABEL_0", "LABEL_2"], None, {"LABEL_0": 0, "LABEL_2": 2}),
        (UNNAMED, ["neg", "neutral", "pos"], None, None),
        (UNNAMED, [], ["neg", "neutral", "pos"], {0: 0, 1: 1, 2: 2}),
        (UNNAMED, [], ["2", "1", "0"], {0: 2, 1: 1, 2: 0}),
        (UNNAMED, [], ["neg", "pos"], None),
        (NUMBERED, [1, 2, 3], None, {1: 0, 2: 1, 3: 2}),  # the names are numbers
        (NUMBERED, [1, 3], None, {1: 0, 3: 2}),
        (NUMBERED, [0, 1, 2], None, None),
        (("1", "0"), [0, 1], None, {0: 1, 1: 0}),
        (("False", "True"), [False, True], None, {False: 0, True: 1}),
        (("false", "true"), [False, True], None, {False: 0, True: 1}),
        (default_names(2), [False, True], None, {False: 0, True: 1}),
        (("001", "1"), ["1"], None, {"1": 1}),
    ],
)
def test_labels_match_the_classes_of_a_head(
    head: tuple[str, ...], labels: Sequence[Any], class_names: list[str] | None, expected: dict[Any, int] | None
) -> None:
    match = match_labels(HeadClasses(head), labels, class_names)
    known = None if match is None else {label: match.label2id[label] for label in expected or match.label2id}
    assert known == expected


@pytest.mark.parametrize(
    ("head", "labels", "class_names", "note"),
    [
        (NAMED, ["neg", "pos"], None, ""),
        (NAMED, ["NEG", "pos"], None, "labels match the model's classes except for case or spaces: 'NEG' is 'neg'"),
        (NAMED, [0, 1, 2], None, "labels are the numbers of the model's classes: 0 is 'neg', 1 is 'neutral'"),
        (UNNAMED, [0, 1, 2], None, ""),
        (UNNAMED, [], ["neg", "neutral", "pos"], "the model's classes have no names; they get those of the data"),
    ],
)
def test_what_a_match_assumes_is_said(
    head: tuple[str, ...], labels: Sequence[Any], class_names: list[str] | None, note: str
) -> None:
    match = match_labels(HeadClasses(head), labels, class_names)
    assert match is not None
    assert match.note.startswith(note) if note else not match.note


# Jobs --------------------------------------------------------------------------------------------------------------

WORDS = {"good": "pos", "bad": "neg"}
ALL_NAMES = {"id2label": {"0": "neg", "1": "pos"}, "label2id": {"neg": 0, "pos": 1}}


@pytest.fixture
def write_model(tmp_path: Path) -> Any:
    """Writes the model `head`, with these fields in its config.json, and returns its head's weights."""

    def write(**fields: Any) -> torch.Tensor:
        folder = tmp_path / "models" / "head"
        tiny.write_classifier(folder)
        config = json.loads((folder / "config.json").read_text())
        for name in ("id2label", "label2id", "num_labels", "problem_type", "architectures"):
            config.pop(name, None)
        config |= {"architectures": ["BertForSequenceClassification"], **fields}
        (folder / "config.json").write_text(json.dumps({key: it for key, it in config.items() if it is not None}))
        model = AutoModelForSequenceClassification.from_pretrained(tiny.write_classifier(tmp_path / "same"))
        return model.classifier.weight.detach()

    return write


def reviews(labels: dict[str, Any], count: int = 24) -> list[dict[str, Any]]:
    return [{"text": row["text"], "label": labels[row["text"].split()[1]]} for row in tiny.reviews(count)]


def prepare_run(tmp_path: Path, labels: dict[str, Any], **spec: Any) -> PreparedRun:
    tiny.write_rows(tmp_path / "data" / "rows", reviews(labels))
    return prepare(tiny.job("head", "rows", **spec), tiny.claim_paths(tmp_path, tmp_path / "out"))


def starting_head(prepared: PreparedRun) -> tuple[torch.Tensor, dict[str, list[str]]]:
    torch.manual_seed(5)
    model, new = model_loader.load_model(prepared.pretrained, prepared.task, prepared.config)
    return model.classifier.weight.detach(), new


@pytest.mark.parametrize(
    "fields",
    [
        ALL_NAMES,
        {"id2label": ALL_NAMES["id2label"]},
        {"label2id": ALL_NAMES["label2id"]},
        {"id2label": ALL_NAMES["id2label"], "label2id": DEFAULT_BY_NAME},
        {"id2label": DEFAULT_BY_ID, "label2id": ALL_NAMES["label2id"]},
        {**ALL_NAMES, "architectures": None},
        {**ALL_NAMES, "problem_type": "multi_label_classification"},
        {"id2label": {"0": "NEG", "1": "POS"}},
    ],
)
def test_trained_head_of_the_same_classes_is_kept(fields: dict[str, Any], write_model: Any, tmp_path: Path) -> None:
    pretrained = write_model(**fields)
    prepared = prepare_run(tmp_path, WORDS, task="SequenceClassification")
    weight, new = starting_head(prepared)
    assert torch.equal(weight, pretrained)
    assert new == {}
    assert {name.lower() for name in prepared.config.id2label.values()} == {"neg", "pos"}
    assert prepared.config.label2id == {name: number for number, name in prepared.config.id2label.items()}


@pytest.mark.parametrize(
    ("fields", "labels", "reason"),
    [
        ({"id2label": {"0": "cat", "1": "dog"}}, WORDS, "the classes of the model are not those of the data"),
        ({}, WORDS, "the classes of the model have no names, so they cannot be matched with those of the data"),
        (
            {},
            {"good": 2, "bad": 1},
            "the labels of the data (1, 2) are not the class numbers of the model (0 to 1)",
        ),
        ({**ALL_NAMES, "problem_type": "regression"}, WORDS, "the head of the model is for regression"),
        (
            {**ALL_NAMES, "architectures": ["BertForTokenClassification"]},
            WORDS,
            "the model was not trained for this task (BertForTokenClassification)",
        ),
    ],
)
def test_reason_for_a_new_head_is_true(
    fields: dict[str, Any], labels: dict[str, Any], reason: str, write_model: Any, tmp_path: Path
) -> None:
    pretrained = write_model(**fields)
    prepared = prepare_run(tmp_path, labels, task="SequenceClassification")
    weight, new = starting_head(prepared)
    assert not torch.equal(weight, pretrained)
    assert new == {reason: ["classifier.bias", "classifier.weight"]}


@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": {"0": "neg", "1": "pos"}, "label2id": {"neg": 1, "pos": 0}},
        {"label2id": {"neg": 0, "pos": 1}, "num_labels": 3},
        {**ALL_NAMES, "num_labels": 3},
        {"id2label": {"1": "neg", "2": "pos"}},
        {"id2label": ["neg", "pos"]},
    ],
)
def test_job_with_a_contradictory_config_is_refused(fields: dict[str, Any], write_model: Any, tmp_path: Path) -> None:
    write_model(**fields)
    with pytest.raises(UserError, match=r"model\.source: .*config\.json"):
        prepare_run(tmp_path, WORDS)


@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 1, "dog": 0}},
        {"id2label": {"0": "cat", "2": "dog"}},
        {"id2label": {"0": "crane", "1": "crane"}, "label2id": {"crane": 1}},  # as in ImageNet
    ],
)
def test_contradiction_in_a_head_for_other_classes_does_not_matter(
    fields: dict[str, Any], write_model: Any, tmp_path: Path
) -> None:
    write_model(**fields)
    prepared = prepare_run(tmp_path, WORDS)
    assert prepared.task.new_head_reason == "the classes of the model are not those of the data"
    assert prepared.config.id2label == {0: "neg", 1: "pos"}


def test_name_of_two_classes_is_refused_only_if_it_is_a_label() -> None:
    head = HeadClasses(("crane", "crane", "dog", "cat"))
    match = match_labels(head, ["cat", "dog"])
    assert match is not None and match.label2id["cat"] == 3
    with pytest.raises(UserError, match="id2label has several classes with the name 'crane'"):
        match_labels(head, ["cat", "crane"])


@pytest.mark.parametrize(
    ("fields", "labels", "printed"),
    [
        (ALL_NAMES, WORDS, {"good": "pos", "bad": "neg"}),
        ({"id2label": {"0": "pos", "1": "neg"}}, WORDS, {"good": "pos", "bad": "neg"}),
        ({"label2id": {"pos": 0, "neg": 1}}, WORDS, {"good": "pos", "bad": "neg"}),
        ({"id2label": {"0": "POS", "1": "NEG"}}, WORDS, {"good": "POS", "bad": "NEG"}),
        ({"id2label": {"0": "1", "1": "0"}}, {"good": 1, "bad": 0}, {"good": "1", "bad": "0"}),
        ({"id2label": {"0": "cat", "1": "dog"}}, WORDS, {"good": "pos", "bad": "neg"}),
        ({}, {"good": True, "bad": False}, {"good": "LABEL_1", "bad": "LABEL_0"}),
        ({}, {"good": 1.0, "bad": 0.0}, {"good": "LABEL_1", "bad": "LABEL_0"}),
        ({}, {"good": 2, "bad": 1}, {"good": "2", "bad": "1"}),
    ],
)
def test_saved_model_prints_the_class_it_was_trained_for(
    fields: dict[str, Any], labels: dict[str, Any], printed: dict[str, str], write_model: Any, tmp_path: Path
) -> None:
    write_model(**fields)
    tiny.write_rows(tmp_path / "data" / "rows", reviews(labels))
    module = {"name": "all", "parameters": ["*"], "optimizer": {"type": "AdamW", "learningRate": 1e-2}}
    job = tiny.job("head", "rows", modules=[module], training={"batchSize": 6, "epochs": 25})
    run(job, RunOptions(claims=tiny.claim_paths(tmp_path, tmp_path / "out")), tiny.Recorder())
    result = tmp_path / "out" / "result"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(result), AutoTokenizer.from_pretrained(result)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    assert {word: classify(f"a {word} film")[0]["label"] for word in printed} == printed
    assert model.config.label2id == {name: number for number, name in model.config.id2label.items()}


def test_notes_are_reported(write_model: Any, tmp_path: Path) -> None:
    write_model(id2label={"0": "NEG", "1": "POS"}, problem_type="multi_label_classification")
    prepared = prepare_run(tmp_path, WORDS)
    assert prepared.notes == (
        "labels match the model's classes except for case or spaces: 'neg' is 'NEG', 'pos' is 'POS'",
        "the model was trained with several classes per sample (problem_type), and is trained here with one",
    )
    assert prepared.config.problem_type == "single_label_classification"


def test_labels_that_differ_only_in_case_are_classes_of_their_own_and_said(write_model: Any, tmp_path: Path) -> None:
    write_model()
    prepared = prepare_run(tmp_path, {"good": "Yes", "bad": "yes "})
    assert prepared.notes == ("labels that differ only in case or spaces are different classes: 'Yes' and 'yes '",)
    assert prepared.task.new_head


def test_class_of_the_head_that_only_validation_has_is_known(write_model: Any, tmp_path: Path) -> None:
    write_model(id2label={"0": "neg", "1": "pos"})
    prepared = prepare_run(tmp_path, WORDS)
    assert isinstance(prepared.task, Classification)
    assert set(prepared.task.label2id) == {"neg", "pos"}
