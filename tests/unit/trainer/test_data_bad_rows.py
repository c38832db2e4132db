"""A row that cannot be used ends the run with its file and line, or is left out before anything is counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data import BadRows
from finetune_trainer.errors import UserError
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.reading import opened
from unit.trainer.tiny import Recorder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data set `pvc://data/set`."""
    made = tmp_path / "data" / "set"
    made.mkdir(parents=True)
    return made


def tear_jsonl(folder: Path) -> str:
    lines = [json.dumps({"text": f"t{number}"}) for number in range(6)]
    lines[2], lines[4] = lines[2][:6], "17"
    lines.insert(1, "")
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return "a.jsonl, line 4: not JSON: "


def tear_csv(folder: Path) -> str:
    (folder / "a.csv").write_text("text,label\nt0,0\nt1,1\nt2,one,too many\nt3,1\nt4\nt5,0\n")
    return "a.csv, row 4: expected 2 cells, as in the header, found 3"


def spoil_csv(folder: Path) -> str:
    (folder / "a.csv").write_bytes(b"text,label\nt0,0\nt1,1\nt\xff,1\nt3,0\n\xff4,0\nt5,1\n")
    return "a.csv, row 4: not UTF-8"


TORN = [tear_jsonl, tear_csv, spoil_csv]


@pytest.mark.parametrize("tear", TORN)
def test_fail_names_the_line(tear: Callable[[Path], str], folder: Path, tmp_path: Path) -> None:
    words = tear(folder)
    with pytest.raises(UserError) as raised:
        opened(tmp_path, "text")
    assert f"data.train.source: {folder}/{words}" in str(raised.value)


@pytest.mark.parametrize("tear", TORN)
def test_skip_leaves_lines_out_and_counts_them(tear: Callable[[Path], str], folder: Path, tmp_path: Path) -> None:
    words = tear(folder)
    bad_rows = BadRows(skip=True, limit=2)
    data = opened(tmp_path, "text", bad_rows=bad_rows)
    assert data.values("text") == ["t0", "t1", "t3", "t5"]
    assert data.where(3).split(" ")[-1] == "7"
    (note,) = bad_rows.notes()
    assert "2 rows cannot be used and left out (data.onBadRow: Skip)" in note
    assert words in note


@pytest.mark.parametrize("tear", TORN)
def test_more_than_allowed(tear: Callable[[Path], str], folder: Path, tmp_path: Path) -> None:
    words = tear(folder)
    with pytest.raises(UserError, match=r"2 rows or more cannot be used, but data\.maxBadRows is 1") as raised:
        opened(tmp_path, "text", bad_rows=BadRows(skip=True, limit=1))
    assert words in str(raised.value)


def test_a_list_that_is_torn_cannot_be_skipped(folder: Path, tmp_path: Path) -> None:
    (folder / "a.json").write_text('[{"text": "a"},\n{"text": "b"},\n{"text": ')
    with pytest.raises(UserError, match=r"a\.json, line 3: the file is torn"):
        opened(tmp_path, "text")


def test_a_torn_file_beside_a_list(folder: Path, tmp_path: Path) -> None:
    (folder / "a.json").write_text('[{"text": "a"},\n\n{"text": "b"}]')
    (folder / "b.jsonl").write_text('{"text": "c"}\n{"te\n{"text": "d"}\n')
    data = opened(tmp_path, "text", bad_rows=BadRows(skip=True, limit=1))
    assert data.values("text") == ["a", "b", "c", "d"]
    assert [data.where(row).rpartition("/")[2] for row in range(4)] == [
        "a.json, line 1",
        "a.json, line 3",
        "b.jsonl, line 1",
        "b.jsonl, line 3",
    ]


def test_the_field_is_named_once(folder: Path, tmp_path: Path) -> None:
    tear_jsonl(folder)
    with pytest.raises(UserError) as raised:
        opened(tmp_path, "text", bad_rows=BadRows(skip=True, limit=1))
    assert str(raised.value).count("data.train.source:") == 1
    (folder / "a.jsonl").write_text('{"text": " "}\n')
    data = opened(tmp_path, "text")
    with pytest.raises(UserError, match=r"none of its rows can be used, e\.g\. column 'text'") as raised:
        BadRows(skip=True, limit=9).drop(data, data.text_problems("text"))
    assert str(raised.value).count("data.train.source:") == 1


def test_texts_that_say_nothing(folder: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("a", "", " \t\n", "b")]
    (folder / "a.jsonl").write_text("\n".join(lines))
    problems = list(opened(tmp_path, "text").text_problems("text"))
    assert [(problem.index, problem.text) for problem in problems] == [
        (1, "the text is empty"),
        (2, "the text is empty"),
    ]


# -- whole runs


def spoiled(kind: str, tmp_path: Path) -> str:
    """26 reviews or 30 captions, three of them bad; what the first is called."""
    if kind == "reviews":
        rows: list[dict[str, Any]] = tiny.reviews(26)
        rows[3]["text"] = None
        rows[5]["label"] = None
        rows[7]["text"] = None
        words = "row 3: the value is missing"
    else:
        rows = tiny.captioned(30)
        rows[2]["image"]["bytes"] = b"GIF89a nothing"
        rows[9]["image"] = None
        rows[20]["text"] = None
        words = "the value is missing"
    tiny.write_rows(tmp_path / "data" / "set", rows)
    return words


def spoiled_job(kind: str, **data: Any) -> Any:
    return tiny.job("bert" if kind == "reviews" else "dual", "set", data=data, training={"batchSize": 4, "epochs": 1})


@pytest.mark.parametrize(("kind", "samples"), [("reviews", 23), ("captions", 27)])
def test_a_run_without_its_bad_rows(
    kind: str, samples: int, claims: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.data.dataset.VERIFIED_IMAGES", 1)  # with Skip all are opened all the same
    words = spoiled(kind, tmp_path)
    recorder = Recorder()
    place = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    run(spoiled_job(kind, onBadRow="Skip"), RunOptions(claims=place), recorder)
    assert recorder.plan is not None
    assert (recorder.plan.train_samples, recorder.plan.planned_steps) == (samples, samples // 4)
    assert len(recorder.steps) == samples // 4
    assert recorder.said("3 rows cannot be used and left out")
    assert recorder.said(words)


@pytest.mark.parametrize("kind", ["reviews", "captions"])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_run_without_its_empty_texts(text: str, kind: str, claims: Path, out: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = tiny.reviews(26) if kind == "reviews" else tiny.captioned(26)
    rows[4]["text"] = text
    tiny.write_rows(tmp_path / "data" / "set", rows)
    place = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    with pytest.raises(UserError, match=r"column 'text' of .*, row 4: the text is empty"):
        run(spoiled_job(kind), RunOptions(claims=place), Recorder())
    recorder = Recorder()
    run(spoiled_job(kind, onBadRow="Skip"), RunOptions(claims=place), recorder)
    assert recorder.plan is not None
    assert recorder.plan.train_samples == 25


def test_the_first_bad_row_is_the_first_of_the_files(claims: Path, out: Path, tmp_path: Path) -> None:
    place = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})

    def refused(*spoiled: tuple[int, str, Any]) -> str:
        rows: list[dict[str, Any]] = tiny.captioned(30)
        for index, role, value in spoiled:
            rows[index][role] = value
        tiny.write_rows(tmp_path / "data" / "set", rows)
        with pytest.raises(UserError) as raised:
            run(spoiled_job("captions"), RunOptions(claims=place), Recorder())
        return str(raised.value)

    torn = {"bytes": b"GIF89a nothing", "path": None}
    assert "column 'label' of" in (said := refused((9, "image", None), (8, "text", None), (7, "label", None)))
    assert "row 7" in said
    assert "row 2: not an image" in refused((9, "text", ""), (2, "image", torn))
    assert "row 9: the text is empty" in refused((9, "text", ""), (12, "image", torn))


def test_a_run_with_too_many_bad_rows(claims: Path, out: Path, tmp_path: Path) -> None:
    spoiled("captions", tmp_path)
    place = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    with pytest.raises(UserError, match=r"3 rows or more cannot be used, but data\.maxBadRows is 2"):
        run(spoiled_job("captions", onBadRow="Skip", maxBadRows=2), RunOptions(claims=place), Recorder())


def test_a_label_that_training_does_not_know_is_left_out(claims: Path, out: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", tiny.reviews(12))
    tiny.write_rows(tmp_path / "data" / "check", [*tiny.reviews(5), {"text": "a film", "label": 5}])
    place = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    recorder = Recorder()
    job = spoiled_job("reviews", validation={"source": "pvc://data/check"}, onBadRow="Skip")
    run(job, RunOptions(claims=place), recorder)
    assert recorder.plan is not None
    assert recorder.plan.validation_samples == 5
    assert recorder.said("5 is no class of the training set")
