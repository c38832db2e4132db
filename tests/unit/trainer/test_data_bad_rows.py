"""Bad rows: the first one fails the run with its file and line, or they are skipped before rows are counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data import BadRowPolicy
from finetune_trainer.errors import UserError
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.loading import load_dataset
from unit.trainer.tiny import Recorder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the dataset `pvc://data/set`."""
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    return folder


def write_malformed_jsonl(folder: Path) -> str:
    lines = [json.dumps({"text": f"t{number}"}) for number in range(6)]
    lines[2], lines[4] = lines[2][:6], "17"
    lines.insert(1, "")
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return "a.jsonl, line 4: not valid JSON: "


def write_malformed_csv(folder: Path) -> str:
    (folder / "a.csv").write_text("text,label\nt0,0\nt1,1\nt2,one,too many\nt3,1\nt4\nt5,0\n")
    return "a.csv, line 4: expected 2 cells, as in the header, found 3"


def write_csv_with_invalid_utf8(folder: Path) -> str:
    (folder / "a.csv").write_bytes(b"text,label\nt0,0\nt1,1\nt\xff,1\nt3,0\n\xff4,0\nt5,1\n")
    return "a.csv, line 4: not UTF-8"


WRITERS = [write_malformed_jsonl, write_malformed_csv, write_csv_with_invalid_utf8]


@pytest.mark.parametrize("write", WRITERS)
def test_fail_reports_the_line(write: Callable[[Path], str], folder: Path, tmp_path: Path) -> None:
    message = write(folder)
    with pytest.raises(UserError) as raised:
        load_dataset(tmp_path, "text")
    assert f"data.train.source: {folder}/{message}" in str(raised.value)


@pytest.mark.parametrize("write", WRITERS)
def test_skip_drops_and_counts_lines(write: Callable[[Path], str], folder: Path, tmp_path: Path) -> None:
    message = write(folder)
    bad_rows = BadRowPolicy(skip=True, limit=2)
    data = load_dataset(tmp_path, "text", bad_rows=bad_rows)
    assert data.values("text") == ["t0", "t1", "t3", "t5"]
    assert data.locate(3).split(" ")[-1] == "7"
    (note,) = bad_rows.notes()
    assert "skipping 2 bad rows (data.onBadRow: Skip)" in note
    assert message in note


@pytest.mark.parametrize("write", WRITERS)
def test_more_bad_rows_than_the_limit_fail(write: Callable[[Path], str], folder: Path, tmp_path: Path) -> None:
    message = write(folder)
    with pytest.raises(UserError, match=r"at least 2 bad rows, but data\.maxBadRows is 1") as raised:
        load_dataset(tmp_path, "text", bad_rows=BadRowPolicy(skip=True, limit=1))
    assert message in str(raised.value)


def test_truncated_json_list_is_not_skippable(folder: Path, tmp_path: Path) -> None:
    (folder / "a.json").write_text('[{"text": "a"},\n{"text": "b"},\n{"text": ')
    with pytest.raises(UserError, match=r"a\.json, line 3: the file is not valid JSON"):
        load_dataset(tmp_path, "text")


def test_malformed_lines_file_beside_a_list(folder: Path, tmp_path: Path) -> None:
    (folder / "a.json").write_text('[{"text": "a"},\n\n{"text": "b"}]')
    (folder / "b.jsonl").write_text('{"text": "c"}\n{"te\n{"text": "d"}\n')
    data = load_dataset(tmp_path, "text", bad_rows=BadRowPolicy(skip=True, limit=1))
    assert data.values("text") == ["a", "b", "c", "d"]
    assert [data.locate(row).rpartition("/")[2] for row in range(4)] == [
        "a.json, line 1",
        "a.json, line 3",
        "b.jsonl, line 1",
        "b.jsonl, line 3",
    ]


def test_message_names_the_field_once(folder: Path, tmp_path: Path) -> None:
    write_malformed_jsonl(folder)
    with pytest.raises(UserError) as raised:
        load_dataset(tmp_path, "text", bad_rows=BadRowPolicy(skip=True, limit=1))
    assert str(raised.value).count("data.train.source:") == 1
    (folder / "a.jsonl").write_text('{"text": " "}\n')
    data = load_dataset(tmp_path, "text")
    with pytest.raises(UserError, match=r"all of its rows are bad, e\.g\. column 'text'") as raised:
        BadRowPolicy(skip=True, limit=9).drop_rows(data, data.invalid_texts("text"))
    assert str(raised.value).count("data.train.source:") == 1


def test_blank_texts_are_bad(folder: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("a", "", " \t\n", "b")]
    (folder / "a.jsonl").write_text("\n".join(lines))
    problems = list(load_dataset(tmp_path, "text").invalid_texts("text"))
    assert [(problem.index, problem.text) for problem in problems] == [
        (1, "the text is empty"),
        (2, "the text is empty"),
    ]


# Complete runs


def write_bad_rows(kind: str, tmp_path: Path) -> str:
    """Write 26 reviews or 30 captions, three of them bad. Returns a part of the message about the first one."""
    if kind == "reviews":
        rows: list[dict[str, Any]] = tiny.reviews(26)
        rows[3]["text"] = None
        rows[5]["label"] = None
        rows[7]["text"] = None
        message = "row 3: the value is missing"
    else:
        rows = tiny.captioned(30)
        rows[2]["image"]["bytes"] = b"GIF89a nothing"
        rows[9]["image"] = None
        rows[20]["text"] = None
        message = "the value is missing"
    tiny.write_rows(tmp_path / "data" / "set", rows)
    return message


def make_job(kind: str, **data: Any) -> Any:
    return tiny.job("bert" if kind == "reviews" else "dual", "set", data=data, training={"batchSize": 4, "epochs": 1})


@pytest.mark.parametrize(("kind", "samples"), [("reviews", 23), ("captions", 27)])
def test_run_skips_bad_rows(
    kind: str, samples: int, claims: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.data.dataset.MAX_VERIFIED_IMAGES", 1)  # Skip verifies all images
    message = write_bad_rows(kind, tmp_path)
    recorder = Recorder()
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    run(make_job(kind, onBadRow="Skip"), RunOptions(claims=claim_paths), recorder)
    assert recorder.plan is not None
    assert (recorder.plan.train_samples, recorder.plan.planned_steps) == (samples, samples // 4)
    assert len(recorder.steps) == samples // 4
    assert recorder.has_message("skipping 3 bad rows")
    assert recorder.has_message(message)


@pytest.mark.parametrize("kind", ["reviews", "captions"])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_run_skips_blank_texts(text: str, kind: str, claims: Path, out: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = tiny.reviews(26) if kind == "reviews" else tiny.captioned(26)
    rows[4]["text"] = text
    tiny.write_rows(tmp_path / "data" / "set", rows)
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    with pytest.raises(UserError, match=r"column 'text' of .*, row 4: the text is empty"):
        run(make_job(kind), RunOptions(claims=claim_paths), Recorder())
    recorder = Recorder()
    run(make_job(kind, onBadRow="Skip"), RunOptions(claims=claim_paths), recorder)
    assert recorder.plan is not None
    assert recorder.plan.train_samples == 25


def test_first_bad_row_is_the_first_in_the_files(claims: Path, out: Path, tmp_path: Path) -> None:
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})

    def run_error(*bad_values: tuple[int, str, Any]) -> str:
        rows: list[dict[str, Any]] = tiny.captioned(30)
        for index, role, value in bad_values:
            rows[index][role] = value
        tiny.write_rows(tmp_path / "data" / "set", rows)
        with pytest.raises(UserError) as raised:
            run(make_job("captions"), RunOptions(claims=claim_paths), Recorder())
        return str(raised.value)

    corrupt = {"bytes": b"GIF89a nothing", "path": None}
    assert "column 'label' of" in (message := run_error((9, "image", None), (8, "text", None), (7, "label", None)))
    assert "row 7" in message
    assert "row 2: cannot decode the image" in run_error((9, "text", ""), (2, "image", corrupt))
    assert "row 9: the text is empty" in run_error((9, "text", ""), (12, "image", corrupt))


def test_run_with_too_many_bad_rows_fails(claims: Path, out: Path, tmp_path: Path) -> None:
    write_bad_rows("captions", tmp_path)
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    with pytest.raises(UserError, match=r"at least 3 bad rows, but data\.maxBadRows is 2"):
        run(make_job("captions", onBadRow="Skip", maxBadRows=2), RunOptions(claims=claim_paths), Recorder())


def test_label_missing_in_the_training_set_is_skipped(claims: Path, out: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "data" / "set", tiny.reviews(12))
    tiny.write_rows(tmp_path / "data" / "check", [*tiny.reviews(5), {"text": "a film", "label": 5}])
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path / "data", "out": out})
    recorder = Recorder()
    job = make_job("reviews", validation={"source": "pvc://data/check"}, onBadRow="Skip")
    run(job, RunOptions(claims=claim_paths), recorder)
    assert recorder.plan is not None
    assert recorder.plan.validation_samples == 5
    assert recorder.has_message("unknown class 5; the training set has")
