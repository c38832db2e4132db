"""The definition of FineTuneJob that the chart installs is the one that was generated, and outlives the chart."""

from pathlib import Path

from ruamel.yaml import YAML

from unit.chart.rendering import REPOSITORY, Chart

CRD = "finetunejobs.finetune.dev.yaml"
KEPT = {"helm.sh/resource-policy": "keep"}


def test_the_charts_copy_is_the_generated_one(chart: Chart) -> None:
    generated, copy = REPOSITORY / "crds" / CRD, chart.folder / "files" / "crds" / CRD
    assert copy.read_text() == generated.read_text(), "the chart's copy is stale; cure: `make generate`"


def test_every_generated_definition_is_in_the_chart(chart: Chart) -> None:
    generated = {path.name for path in (REPOSITORY / "crds").glob("*.yaml")}
    assert {path.name for path in (chart.folder / "files" / "crds").iterdir()} == generated


def test_helm_changes_nothing_in_it(chart: Chart) -> None:
    source = YAML(typ="safe").load(Path(REPOSITORY, "crds", CRD))
    assert chart.render().only("CustomResourceDefinition")["spec"] == source["spec"]


def test_it_stays_when_the_chart_goes(chart: Chart) -> None:
    assert chart.render().only("CustomResourceDefinition")["metadata"]["annotations"] == KEPT


def test_it_goes_with_the_chart_where_that_is_wanted(chart: Chart) -> None:
    assert "annotations" not in chart.render(crds={"keep": False}).only("CustomResourceDefinition")["metadata"]


def test_it_is_left_out_where_somebody_else_installs_it(chart: Chart) -> None:
    assert chart.render(crds={"enabled": False}).all("CustomResourceDefinition") == []
