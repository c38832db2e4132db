"""The CustomResourceDefinition in the chart: equal to the generated one, and kept on uninstall."""

from pathlib import Path

from ruamel.yaml import YAML

from unit.chart.rendering import REPOSITORY, Chart

CRD = "finetunejobs.finetune.dev.yaml"
KEEP_ANNOTATION = {"helm.sh/resource-policy": "keep"}


def test_chart_contains_the_generated_crd(chart: Chart) -> None:
    generated, copy = REPOSITORY / "crds" / CRD, chart.folder / "files" / "crds" / CRD
    assert copy.read_text() == generated.read_text(), "the copy in the chart is stale; fix: `make generate`"


def test_chart_contains_every_generated_crd(chart: Chart) -> None:
    generated = {path.name for path in (REPOSITORY / "crds").glob("*.yaml")}
    assert {path.name for path in (chart.folder / "files" / "crds").iterdir()} == generated


def test_rendered_crd_equals_the_generated_one(chart: Chart) -> None:
    source = YAML(typ="safe").load(Path(REPOSITORY, "crds", CRD))
    assert chart.render().only("CustomResourceDefinition")["spec"] == source["spec"]


def test_crd_is_kept_on_uninstall_by_default(chart: Chart) -> None:
    assert chart.render().only("CustomResourceDefinition")["metadata"]["annotations"] == KEEP_ANNOTATION


def test_crds_keep_false_removes_the_keep_annotation(chart: Chart) -> None:
    assert "annotations" not in chart.render(crds={"keep": False}).only("CustomResourceDefinition")["metadata"]


def test_crds_enabled_false_omits_the_crd(chart: Chart) -> None:
    assert chart.render(crds={"enabled": False}).all("CustomResourceDefinition") == []
