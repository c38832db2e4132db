"""CSV and TSV: a malformed record is a bad row with its line, and no row is swallowed or merged."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from finetune_trainer.data.readers import csv as csv_reader
from unit.trainer.loading import first_error, load_dataset, load_table, skip_bad_rows, write_files

HEADER = "text,label\n"


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ('"b,2', "a quoted cell has no closing quote"),
        ('b,"2', "a quoted cell has no closing quote"),
        ('"b" c,2', "characters after a closing quote"),
        ('"b"",2', "a quoted cell has no closing quote"),
        ('"b \\"c\\"",2', "characters after a closing quote"),
        ("b", "expected 2 cells, as in the header, found 1"),
        ("b,c,2", "expected 2 cells, as in the header, found 3"),
        ('"b\nc"', "expected 2 cells, as in the header, found 1"),
        ("  ", "expected 2 cells, as in the header, found 1"),
    ],
)
@pytest.mark.parametrize("after", ["c,3\nd,4\ne,5\n", 'c,3\n"d",4\ne,5\n', 'c,3\n"d, ""x""",4\ne,5'])
def test_malformed_record_swallows_nothing(record: str, problem: str, after: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": HEADER + "a,1\n" + record + "\n" + after})
    assert first_error(tmp_path, "text", "label").startswith("data.train.source: a.csv, line 3: ")
    if '"d' not in after:
        assert first_error(tmp_path, "text", "label").endswith(problem)
    rows, locations, _ = skip_bad_rows(tmp_path, "text", "label")
    extra = record.count("\n")
    assert [row["label"] for row in rows] == [1, 3, 4, 5]
    assert locations == [f"a.csv, line {line}" for line in (2, 4 + extra, 5 + extra, 6 + extra)]


def test_two_stray_quotes_around_rows(tmp_path: Path) -> None:
    rows = ["a,0", "b,1", '"c,0', "d,1", "e,0", 'f",1', "g,0"]
    write_files(tmp_path, {"a.csv": HEADER + "\n".join(rows)})
    assert "a.csv, line 4: a quoted cell spans 4 lines that are rows by themselves" in first_error(tmp_path, "text")
    found, _, _ = skip_bad_rows(tmp_path, "text", "label")
    assert texts(found) == ["a", "b", "d", "e", 'f"', "g"]


def test_texts_over_several_lines_are_valid(tmp_path: Path) -> None:
    cells = ["Dear all,\nthanks", "one, 0\ntwo, 1", '"quoted"\n\n', "a\r\nb", 'x ""y""', " ", "\t", ",", "\n"]
    write_csv(tmp_path / "data" / "set" / "a.csv", [["text", "label"], *([cell, "1"] for cell in ["a", "b", *cells])])
    data = load_dataset(tmp_path, "text", "label")
    assert data.values("text") == ["a", "b", *cells]
    lines = [3 + sum(cell.count("\n") + 1 for cell in ["b", *cells[:index]]) for index in range(len(cells))]
    assert [data.locate(index + 2).rsplit(" ")[-1] for index in range(len(cells))] == list(map(str, lines))


def write_csv(file: Path, rows: list[list[str]], **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened, **{"lineterminator": "\n", **options}).writerows(rows)


CELLS = st.text(st.sampled_from("ab,;\t\"'\n\r é😀\\0"), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(CELLS, max_size=6), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["\n", "\r\n"])
)
def test_cells_come_back_as_written(tmp_path: Path, cells: list[str], quoting: int, newline: str) -> None:
    assume(newline == "\r\n" or quoting == csv.QUOTE_ALL or "\r" not in "".join(cells))  # Python writes it unquoted
    rows = [["text", "number"], ["first", "n"], *([cell, "n"] for cell in cells)]
    write_csv(tmp_path / "data" / "set" / "a.csv", rows, quoting=quoting, lineterminator=newline)
    assert load_dataset(tmp_path, "text").values("text") == ["first", *(cell or None for cell in cells)]


@given(st.text(st.sampled_from('ab,"\n\r'), max_size=40), st.booleans())
def test_every_line_is_a_row_a_part_of_one_or_malformed(content: str, quoted: bool) -> None:
    text = io.StringIO("x,y\n" + content, newline="")
    dialect = csv_reader.Dialect(",", quoted)
    covered = []
    for record in csv_reader.iter_records(text, dialect):
        if isinstance(record, csv_reader.Record):
            covered += range(record.line, record.line + len(io.StringIO(record.text, newline="").readlines()))
        else:
            covered.append(record.number)
    lines = io.StringIO("x,y\n" + content, newline="").readlines()
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip("\r\n")]
    assert len(set(covered)) == len(covered)
    assert set(range(1, len(lines) + 1)) == set(covered) | set(blank)


def test_quoted_cell_without_an_end_reads_a_bounded_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "MAX_RECORD", 1 << 20)
    write_files(tmp_path, {"a.csv": HEADER + '"a,1\n' + "some text,2\n" * 200_000})
    rows, _, (note,) = skip_bad_rows(tmp_path, "text")
    assert len(rows) == 200_000
    assert "a.csv, line 2: a quoted cell has no closing quote within 1 MiB" in note


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_bytes_that_are_not_utf8(name: str, tmp_path: Path) -> None:
    content = b"text,label,other\na,1,x\ncaf\xe9,2,x\nb,3,\xe9\n"
    write_files(tmp_path, {name: content if name == "a.csv" else content.replace(b",", b"\t")})
    assert first_error(tmp_path, "text") == f"data.train.source: {name}, line 3: not UTF-8: byte 0xe9"
    rows, _, _ = skip_bad_rows(tmp_path, "text", "label")
    assert rows == [{"text": "a", "label": 1}, {"text": "b", "label": 3}]


def test_bad_rows_are_reported_in_the_order_of_the_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": b"text,label\n\xff,1\nb\n"})
    assert "line 2: not UTF-8" in first_error(tmp_path, "text")


# Headers


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbftext,label\na,1\n",
        b'\xef\xbb\xbf"text","label"\na,1\n',
        b"\n\r\ntext,label\na,1\n",
        b"text,label\r\na,1\r\n",
        b"text,label\ra,1\r",
        b",text,,label\n0,a,,1\n",
        b"x,text,x,label\n0,a,,1\n",
        b"label,text\n1,a",
    ],
)
def test_header(content: bytes, tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": content})
    assert [dict(row) for row in load_dataset(tmp_path, "text", "label")] == [{"text": "a", "label": 1}]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text,label,text\na,1,b\n", "a.csv has two columns named 'text'"),
        ('"text,label\na,1\n', "a.csv, line 1: the header is malformed: a quoted cell has no closing quote"),
        ('\n"text"x,label\na,1\n', "a.csv, line 2: the header is malformed: characters after a closing quote"),
        ("text;label\na;1\n", "data.train.source has no column 'text'; available: text;label"),
        ("text,label\n", "the dataset is empty: no rows in a.csv"),
        ("text,label\n\n\r\n", "the dataset is empty: no rows in a.csv"),
    ],
)
def test_header_that_is_rejected(content: str, problem: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": content})
    assert problem in first_error(tmp_path, "text")


def test_file_with_only_a_header_has_no_columns_to_compare(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": "caption\n", "b.csv": HEADER + "a,1\n"})
    assert load_table(tmp_path).columns == ["text", "label"]


# TSV


def tsv_texts(tmp_path: Path, content: str) -> tuple[list[str], list[str]]:
    write_files(tmp_path, {"a.tsv": content})
    rows, _, notes = skip_bad_rows(tmp_path, "text")
    return texts(rows), [note.replace(f"{tmp_path}/data/set/", "") for note in notes]


def test_quotes_in_tsv_are_text(tmp_path: Path) -> None:
    cells = ['"a', 'b "x" c', '5"', '"d"', 'e, "f', "'g'"]
    found, (note,) = tsv_texts(tmp_path, "text\tlabel\n" + "".join(f"{cell}\t1\n" for cell in cells))
    assert found == cells
    assert "a.tsv: a cell on line 2 begins with a quote; TSV has no quoting" in note


def test_tsv_without_quotes_at_the_start_of_a_cell_needs_no_note(tmp_path: Path) -> None:
    assert tsv_texts(tmp_path, 'text\tlabel\na "b"\t1\n') == (['a "b"'], [])


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tsv_that_was_quoted_as_csv_is_read_as_it_was_meant(quoting: int, newline: str, tmp_path: Path) -> None:
    cells = ['a "quote"', "a\ttab", "two\nlines", "plain, with comma", '"', "é"]
    write_csv(
        tmp_path / "data" / "set" / "a.tsv",
        [["text", "label"], *([cell, "x"] for cell in cells)],
        delimiter="\t",
        quoting=quoting,
        lineterminator=newline,
    )
    rows, _, (note,) = skip_bad_rows(tmp_path, "text")
    assert texts(rows) == cells
    assert "a.tsv: its cells are quoted as in CSV" in note


def test_tsv_of_a_spreadsheet(tmp_path: Path) -> None:
    found, (note,) = tsv_texts(tmp_path, 'text\tlabel\n"well, well"\t1\nno comma\t2\n')
    assert found == ["well, well", "no comma"]
    assert "its cells are quoted as in CSV, e.g. on line 2" in note


def test_quoted_cell_in_a_tsv_file_without_quoting_is_a_bad_row(tmp_path: Path) -> None:
    content = 'text\tlabel\n"a ""q"""\t1\nb "x"\t2\n"c\td"\t3\n"two\n'
    found, notes = tsv_texts(tmp_path, content)
    assert found == ['b "x"']
    assert "skipping 3 bad rows" in notes[-1]
    assert "a.tsv, line 2: a cell is quoted as in CSV, but other cells of this TSV file are not" in notes[-1]


def test_malformed_record_of_a_tsv_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.tsv": "text\tlabel\na\t1\nb\nc\t2\t3\nd\t4"})
    assert first_error(tmp_path, "text") == (
        "data.train.source: a.tsv, line 3: expected 2 cells, as in the header, found 1"
    )
    rows, locations, _ = skip_bad_rows(tmp_path, "text")
    assert (texts(rows), locations) == (["a", "d"], ["a.tsv, line 2", "a.tsv, line 5"])


# Labels


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1", "2"], [1, 2]),
        (["-1", "0"], [-1, 0]),
        (["001", "1"], ["001", "1"]),
        (["1", "01"], ["1", "01"]),
        (["+1", "1"], ["+1", "1"]),
        (["-0", "0"], ["-0", "0"]),
        ([" 1", "1"], [" 1", "1"]),
        (["1.0", "1"], ["1.0", "1"]),
        (["1e3", "1000"], ["1e3", "1000"]),
        (["١", "1"], ["١", "1"]),
        (["1_000", "1000"], ["1_000", "1000"]),
        (["9" * 18, "1"], [int("9" * 18), 1]),
        (["9" * 30, "1"], ["9" * 30, "1"]),
        (["true", "1"], ["true", "1"]),
    ],
)
def test_labels_are_integers_only_if_they_are_written_as_such(
    labels: list[str], expected: list[Any], tmp_path: Path
) -> None:
    write_files(tmp_path, {"a.csv": HEADER + "".join(f"a,{label}\n" for label in labels)})
    assert load_dataset(tmp_path, "label").values("label") == expected
