"""JSON: values are what the file says, and what is not valid is a bad row with its line."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from finetune_trainer.data.readers import jsonl
from finetune_trainer.data.readers.conversion import MalformedRow
from finetune_trainer.errors import UserError
from finetune_trainer.tasks.sequence_classification import SequenceClassification
from unit.trainer.loading import first_error, load_dataset, load_table, skip_bad_rows, write_files

A = '{"text": "a"}\n'


def values(tmp_path: Path, role: str, **files: str) -> list[Any]:
    write_files(tmp_path, {f"{name}.jsonl": content for name, content in files.items()})
    return load_dataset(tmp_path, role).values(role)


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01",
        "2024-01-01T10:00:00Z",
        "2024-01-01 10:00:00",
        "10:00:00",
        "1",
        "1.0",
        "true",
        "null",
        "NaN",
        "",
        "😀",
    ],
)
def test_text_is_text(text: str, tmp_path: Path) -> None:
    assert values(tmp_path, "text", a=json.dumps({"text": text})) == [text]


def test_dates_in_one_of_two_files(tmp_path: Path) -> None:
    assert values(tmp_path, "text", a='{"text": "2024-01-01"}', b='{"text": "soon"}') == ["2024-01-01", "soon"]


def test_unused_columns_may_be_anything(tmp_path: Path) -> None:
    files = {
        "a": '{"text": "a", "when": "2024-01-01", "x": 1}\n',
        "b": '{"text": "b", "when": {"y": 1}, "x": [1, "2"]}\n{"text": "c", "when": 7}\n',
    }
    assert values(tmp_path, "text", **files) == ["a", "b", "c"]


NUMBERS = ["0", "-1", "9007199254740993", "-9223372036854775808", "9223372036854775808", "1" + "0" * 40]
OTHERS = ["1.0", "0.1", "1e300", "-0.0", "true", '"1"', "null", '{"a": 1}', "[1, 2.0]", '"\\u0000"']


@pytest.mark.parametrize("first", [*NUMBERS, *OTHERS])
@pytest.mark.parametrize("second", ["1", "1.5", "true", '"1"', "null", "[]", "1" + "0" * 40])
def test_two_values_in_one_column_stay_what_they_are(first: str, second: str, tmp_path: Path) -> None:
    found = values(tmp_path, "label", a=f'{{"label": {first}}}\n{{"label": {second}}}\n')
    assert repr(found) == repr([json.loads(first), json.loads(second)])


@pytest.mark.parametrize(
    ("first", "second"),
    [("1", "1.5"), ("1.5", "1"), ("1", "1" + "0" * 30), ("null", "1"), ('"a"', "null"), ("{}", "[]")],
)
def test_two_files_with_values_that_fit_one_column(first: str, second: str, tmp_path: Path) -> None:
    found = values(tmp_path, "label", a=f'{{"label": {first}}}', b=f'{{"label": {second}}}')
    assert repr(found) == repr([json.loads(first), json.loads(second)])


def test_two_files_with_other_types_are_rejected(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": '{"label": 1}\n', "b.jsonl": '{"label": "1"}\n'})
    assert first_error(tmp_path, "label").startswith(
        "data.train.source: pvc://data/set: b.jsonl has type string in column 'label', but a.jsonl has int64"
    )


def test_file_without_a_column_has_missing_values(tmp_path: Path) -> None:
    assert values(tmp_path, "label", a='{"label": "x"}', b='{"text": "a"}') == ["x", None]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON_VALUES, min_size=1, max_size=6), st.sampled_from([None, 2]), st.booleans(), st.booleans())
def test_values_come_back_as_written(
    tmp_path: Path, written: list[Any], indent: int | None, ascii: bool, as_list: bool
) -> None:
    rows = [{"text": value} for value in written]
    if as_list:
        content = json.dumps(rows, indent=indent, ensure_ascii=ascii)
    else:
        content = "\n".join(json.dumps(row, indent=indent, ensure_ascii=ascii) for row in rows)
    write_files(tmp_path, {"a.json": content})
    assert repr(load_dataset(tmp_path, "text").values("text")) == repr(written)


def test_conversations_have_no_invented_keys(tmp_path: Path) -> None:
    conversations = [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [{"a": {"b": 1.0}}]}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    ]
    content = "".join(json.dumps({"messages": messages}) + "\n" for messages in conversations)
    assert values(tmp_path, "messages", a=content) == conversations


# Malformed rows

MALFORMED = {
    b'{"text": "caf\xe9"}': "not UTF-8: byte 0xe9",
    b'{"text": "\\ud83d"}': "not Unicode: half of a surrogate pair",
    b'{"text": "\\ude00 \\ud83d"}': "not Unicode: half of a surrogate pair",
    b'{"text": "b", "\\ud800": 1}': "not Unicode: half of a surrogate pair",
    b'{"text": "\xed\xa0\xbd"}': "not UTF-8: byte 0xed",
    b'{"text": "b", "text": "c"}': "not valid JSON: two values for the key 'text'",
    b'{"text": "b", "x": [{"y": 1, "y": 1}]}': "not valid JSON: two values for the key 'y'",
    b'{"text": NaN}': "not valid JSON: NaN is not a number in JSON",
    b'{"text": "b", "x": [-Infinity]}': "not valid JSON: -Infinity is not a number in JSON",
    b'{"text": 1e999}': "the number 1e999 is too large",
    b'{"text": "b\x00"}': "not valid JSON: Invalid control character at column 12",
    b'{"text": "b\tc"}': "not valid JSON: Invalid control character at column 12",
    b'\xef\xbb\xbf{"text": "b"}': "not valid JSON: Expecting value at column 1",
    b'{"text": "b"} {"text": "c"}': "not valid JSON: extra data at column 14",
    b'{"text": "b"},': "not valid JSON: extra data at column 14",
    b'{"text": "b"': "not valid JSON: Expecting ',' delimiter at column 13",
    b"{'text': 'b'}": "not valid JSON: Expecting property name enclosed in double quotes at column 2",
    b'["b"]': "expected an object, found \"['b']\"",
    b"null": "expected an object, found 'None'",
    b'{"text": ' + b"1" * 5000 + b"}": "not valid JSON: an integer has too many digits",
    b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "not valid JSON: nested too deeply",
}


@pytest.mark.parametrize("line", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_line_is_a_bad_row(line: bytes, tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": A.encode() + b"\r\n" + line + b"\n" + b'{"text": "z"}'})
    assert first_error(tmp_path, "text") == f"data.train.source: a.jsonl, line 3: {MALFORMED[line]}"
    rows, locations, (note,) = skip_bad_rows(tmp_path, "text")
    assert [row["text"] for row in rows] == ["a", "z"]
    assert locations == ["a.jsonl, line 1", "a.jsonl, line 4"]
    assert "skipping 1 bad row" in note


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b"\xe9\n{\n"), ("a.csv", b"text\n\xe9\n")])
def test_only_malformed_rows(name: str, content: bytes, tmp_path: Path) -> None:
    write_files(tmp_path, {name: content})
    assert re.search(rf"{name}, line \d: not UTF-8: byte 0xe9", first_error(tmp_path, "text"))
    with pytest.raises(UserError, match=rf"all of its rows are bad, e.g. .*{name}, line \d: not UTF-8"):
        skip_bad_rows(tmp_path, "text")


@pytest.mark.parametrize("first", ['{"text": "x', '{"text": "x",', '{"text":', "{", '{"text": "\\'])
def test_malformed_first_line_does_not_swallow_the_next(first: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": f"{first}\n{A}{A}"})
    assert "a.jsonl, line 1: not valid JSON" in first_error(tmp_path, "text")
    _, locations, _ = skip_bad_rows(tmp_path, "text")
    assert locations == ["a.jsonl, line 2", "a.jsonl, line 3"]


def test_second_start_reports_the_same_bad_rows_without_parsing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"a.jsonl": A + "broken in this test only\n" + A})
    first = skip_bad_rows(tmp_path, "text")
    monkeypatch.setattr(jsonl, "_parse_lines", lambda file: pytest.fail(f"{file} was parsed again"))
    monkeypatch.setattr(jsonl, "_scan_rows", lambda rows, _: pytest.fail(f"{rows} were parsed again"))
    assert skip_bad_rows(tmp_path, "text") == first


def test_byte_order_mark_crlf_blank_lines_and_no_newline_at_the_end(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": b'\xef\xbb\xbf{"text": "a"}\r\n\r\n \t\r\n{"text": "b"}'})
    rows, locations, notes = skip_bad_rows(tmp_path, "text")
    assert [row["text"] for row in rows] == ["a", "b"]
    assert (locations, notes) == (["a.jsonl, line 1", "a.jsonl, line 4"], [])


def test_line_separators_of_unicode_are_text(tmp_path: Path) -> None:
    assert values(tmp_path, "text", a='{"text": "a\u2028b\u0085c"}\n' + A) == ["a\u2028b\u0085c", "a"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (A.encode("utf-16"), "is UTF-16; expected UTF-8: convert it, e.g. with iconv -f UTF-16 -t UTF-8"),
        (A.encode("utf-16-le"), "is UTF-16; expected UTF-8"),
        (A.encode("utf-16-be"), "is UTF-16; expected UTF-8"),
        (A.encode("utf-32"), "is UTF-32; expected UTF-8"),
        (gzip.compress(A.encode(), mtime=0), "is compressed with gzip; expected text: decompress it"),
        (b"PK\x03\x04 and more", "is compressed with zip; expected text: decompress it"),
    ],
    ids=["utf-16", "utf-16-le", "utf-16-be", "utf-32", "gzip", "zip"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_file_that_is_not_utf8_text_is_rejected(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    write_files(tmp_path, {name: content})
    assert f"data.train.source: pvc://data/set: {name} {problem}" in first_error(tmp_path, "text")


# Lists, and objects over several lines


def test_bad_elements_of_a_list(tmp_path: Path) -> None:
    elements = ['{"text": "a"}', "17", '{"text": "b", "text": "c"}', '{"text": "\\ud800"}', '{"text": 1e999}']
    content = "[" + ",\n".join([*elements, b'{"text": "caf'.decode() + 'X"}', '{"text": "z"}']) + "\n]"
    write_files(tmp_path, {"a.json": content.encode().replace(b"X", b"\xe9")})
    assert first_error(tmp_path, "text") == "data.train.source: a.json, line 2: expected an object, found '17'"
    rows, locations, (note,) = skip_bad_rows(tmp_path, "text")
    assert [row["text"] for row in rows] == ["a", "z"]
    assert locations == ["a.json, line 1", "a.json, line 7"]
    assert "skipping 5 bad rows" in note


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"text": "a"},\n{"text": "b"},\n{"text": ', 3),
        ('[{"text": "a"},\n{"text": "b"}\n', 3),
        ('[{"text": "a"},\n]', 2),
        ('[{"text": "a"}\n{"text": "b"}]', 2),
        ('[{"text": "a"}]\n[{"text": "b"}]', 2),
        ('{\n"text": "a"\n}\n{\n"text" "b"\n}', 5),
        ('{\n"text": "a"\n}\n]', 4),
    ],
)
def test_malformed_document_is_rejected_with_its_line(content: str, line: int, tmp_path: Path) -> None:
    write_files(tmp_path, {"a.json": content})
    assert f"a.json, line {line}: the file is not valid JSON, so none of its rows" in first_error(tmp_path, "text")


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@given(rows=st.lists(st.dictionaries(st.text(), JSON_VALUES), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_document_is_parsed_in_chunks(
    rows: list[dict[str, Any]], chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows, indent=1))
    parsed = list(jsonl.parse_rows(file))
    assert not [row for row in parsed if isinstance(row, MalformedRow)]
    assert repr([row.row for row in parsed if isinstance(row, jsonl.ParsedRow)]) == repr(rows)


def test_columns_of_late_rows_are_found(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": A * 10_000 + '{"text": "b", "tools": []}\n'})
    assert load_table(tmp_path).columns == ["text", "tools"]


def test_type_that_differs_in_a_late_row(tmp_path: Path) -> None:
    found = values(tmp_path, "label", a='{"label": 1}\n' * 10_000 + '{"label": "x"}\n')
    assert (found[:2], found[-1]) == ([1, 1], "x")


@pytest.mark.parametrize("labels", [["true", "1"], ["0", "1", "false"]])
def test_labels_that_python_takes_for_equal_are_rejected(labels: list[str], tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": "".join(f'{{"text": "a", "label": {label}}}\n' for label in labels)})
    data = load_dataset(tmp_path, "text", "label")
    with pytest.raises(UserError, match="column 'label': expected labels of one type, found booleans and integers"):
        SequenceClassification.build(BertConfig(), data)
