"""`finetune validate` parses every manifest as the real kubectl does, or reports that a value has to be quoted."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finetune_api.kubectl_yaml import YamlParseError, parse_kubectl_scalar, parse_yaml
from harness.api import Api
from harness.cluster import Cluster

pytestmark = pytest.mark.cluster

PLAIN = """
y Y yes Yes YES n N no No NO on On ON off Off OFF true True TRUE false False FALSE tRue T F t f ~ null Null
NULL nUll none None 0 00 -0 -0.0 +1 -1 010 -010 +010 0777 08 09 +08 0_1 0o10 0O10 -0o10 +0o10 0o8 0o 0o777
0x1F 0X1f +0x1F -0x1F 0xg 0x 0x_1 0b101 0B101 -0b101 +0b1 0b2 0b 0b1_0 0x1_F 1_000 1_000.5 _1 1__0 -1_0 +1_0
0.5_0 1e1_0 .5_ ._5 1e3 1E3 1e+3 1e-3 1.5E+3 1e+03 12e03 2e-5 0e0 1e0 1.0e0 0.1e1 1.e3 0.e1 1e15 1e16 1e20
1e21 1e 1e+ e5 5e 0e 1e5.5 1.0 1.5 0.0 0. 1. 5. .5 -.5 +.5 +1.5 . .. ..5 +. + -+1 0.1.2 1-2 16777216.0
123456789012345680.0 0.1e-6 1e400 -1e400 1e-400 4.9e-324 0.1234567890123456789 0xFFFFFFFFFFFFFFFFFF
9223372036854775807 9223372036854775808 18446744073709551615 18446744073709551616
123456789012345678901234567890 .inf -.inf +.inf .Inf .INF inf Infinity .nan .NaN .NAN nan NaN 1:30 190:20:30
1:30.5 12:30:45 2001-01-01 2001-1-1 2001-01-01T00:00:00Z 2001-12-14t21:59:43.10-05:00 = << 1,000 é hello
""".split()  # noqa: SIM905 - a list of 150 words is easier to read without quotes
QUOTED = ['"y"', "'010'", '"\\x41"', '"\\u263a"', '"~"', "''", '""', "'1e3'"]
SHAPES = [
    "", "[]", "{}", "[y, 1, .5]", "{a: 010}", "hello # comment", "a b", "a\tb", "|\n    x\n    y", ">-\n    x\n    y",
    "&a 5", "[&a 5, *a]", "*nobody", "{<<: {a: 1, b: 2}, b: 3}", "{<<: [{a: 1}, {a: 2, c: 3}]}", "{<<: 3}",
    "{1: x}", "{y: x}", "{~: x}", "{1.5: x}", "{'1': x}", "{a: 1, a: 2}", "{? a : b}", "{[a]: b}", "? [a]\n  : b",
    '!!str 5', '!!int "5"', "!!float 5", "!!bool yes", "!!binary aGk=", "!foo bar", "!!null x",
    "!!timestamp 2001-01-01",
    "a: b", "@x", "`x", "%x", "-", "[1", "{a", '"unfinished', "\tx", "&a [*a]",
]  # fmt: skip
WRITTEN = [*PLAIN, *QUOTED, *SHAPES]


def manifest(written: str) -> str:
    return (
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: x}\n"
        f"spec:\n  before: 1\n  field: {written}\n"
    )


@pytest.fixture(scope="module")
def kubectl_read(control_plane: Cluster, api: Api) -> dict[str, Any]:
    """The values as parsed by the real kubectl; a `YamlParseError` for a manifest that it rejects."""

    def read(written: str) -> Any:
        command = ("create", "--dry-run=client", "--validate=false", "--output=json", "--filename=-")
        result = control_plane.try_kubectl(*command, input=manifest(written))
        return YamlParseError(result.stderr) if result.returncode else json.loads(result.stdout)["spec"].get("field")

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(WRITTEN, pool.map(read, WRITTEN), strict=True))


@pytest.mark.parametrize("written", WRITTEN)
def test_value_is_parsed_as_kubectl_does_or_flagged(kubectl_read: dict[str, Any], written: str) -> None:
    expected = kubectl_read[written]
    try:
        (document,) = parse_yaml(manifest(written))
    except YamlParseError:
        return
    if not document.ambiguous:
        assert not isinstance(expected, YamlParseError), f"kubectl rejects what we parse as {document.value['spec']}"
        assert with_types(document.value["spec"]["field"]) == with_types(expected)


@pytest.mark.parametrize("written", PLAIN)
def test_plain_scalar_is_parsed_as_kubectl_does(kubectl_read: dict[str, Any], written: str) -> None:
    """Also checked for flagged scalars, because their message states the value that kubectl parses."""
    expected = kubectl_read[written]
    if not isinstance(expected, YamlParseError):
        assert with_types(parse_kubectl_scalar(written)) == with_types(expected)


@pytest.mark.parametrize("written", ["hello", "a b", "true", "1", "1.5", "2e-5", "1e3", ".5", "2001-01-01", "'y'", "~"])
def test_portable_scalar_is_not_flagged(kubectl_read: dict[str, Any], written: str) -> None:
    assert parse_yaml(manifest(written))[0].ambiguous == ()


def with_types(value: Any) -> Any:
    """A value with its types, so that 1, true and 1.0 differ; integers beyond 64 bits become floats."""
    if isinstance(value, dict):
        return {key: with_types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_types(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        value = float(value)
    return type(value).__name__, value
