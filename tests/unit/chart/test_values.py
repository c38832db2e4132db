"""Values of the chart: effect on the rendered objects, and validation by values.schema.json."""

from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from finetune_operator import config
from unit.chart.rendering import Chart, Object
from unit.test_versions import VERSION

DIGEST = f"sha256:{'0a' * 32}"


def test_helm_lint_passes(chart: Chart) -> None:
    done = chart.lint()
    assert done.returncode == 0, done.stdout + done.stderr


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, f"finetune-operator:{VERSION}"),
        ({"repository": "registry.example.com/operator", "tag": "1.2"}, "registry.example.com/operator:1.2"),
        ({"tag": "1.2", "digest": DIGEST}, f"finetune-operator@{DIGEST}"),
    ],
)
def test_operator_image_reference(chart: Chart, image: Object, reference: str) -> None:
    assert chart.render(image=image).pod["containers"][0]["image"] == reference


def test_trainer_image_is_written_to_the_operator_configuration(chart: Chart) -> None:
    rendered = chart.render(trainer={"image": {"repository": "r.example.com/trainer", "digest": DIGEST}})
    assert YAML(typ="safe").load(rendered.config)["trainer"]["image"] == f"r.example.com/trainer@{DIGEST}"


# -- operator configuration ------------------------------------------------------------------------------------------


def test_default_configuration_sets_every_field_of_the_operator(chart: Chart) -> None:
    file = chart.scratch / "config.yaml"
    file.write_text(chart.render().config)
    loaded = config.load(file).model_dump(by_alias=True, mode="json")
    assert YAML(typ="safe").load(file) == loaded


def test_configuration_contains_the_values(chart: Chart) -> None:
    values = chart.defaults()
    settings = YAML(typ="safe").load(chart.render().config)
    assert settings["outputClaim"] == values["outputClaim"]
    assert settings["trainer"] == {
        **values["trainer"],
        "image": f"finetune-trainer:{VERSION}",
        "imagePullPolicy": "IfNotPresent",
    }


def test_trainer_pod_settings_are_loaded_by_the_operator(chart: Chart) -> None:
    preference = {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}
    settings: Object = {
        "envFrom": [{"prefix": "X_", "configMapRef": {"name": "proxy", "optional": True}}],
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": preference}]
            }
        },
        "priorityClassName": "low",
        "schedulerName": "volcano",
        "serviceAccountName": "trainer",
    }
    file = chart.scratch / "config.yaml"
    file.write_text(chart.render(trainer=settings).config)
    loaded = config.load(file).trainer.model_dump(by_alias=True, mode="json", exclude_none=True)
    assert {key: loaded[key] for key in settings} == settings


def required_node_affinity(term: Object) -> Object:
    """A required node affinity with one term."""
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [term]}}}}


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
AFFINITY_TERM: Object = {
    "labelSelector": {
        "matchLabels": {"app": "x"},
        "matchExpressions": [{"key": "a", "operator": "In", "values": [""]}],
    },
    "topologyKey": "zone",
}
VALID_TRAINER: list[Object] = [
    {"tolerations": [{"operator": "Exists"}]},
    {"tolerations": [{"key": "a.b/c", "value": "x"}]},
    {"tolerations": [{"key": "gpu", "operator": "Equal", "value": "", "effect": "NoExecute", "tolerationSeconds": 0}]},
    {"envFrom": [{"secretRef": {"name": "proxy"}}]},
    {"env": [{"name": "A", "value": ""}, {"name": "my.b-c", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]},
    {"nodeSelector": {"kubernetes.io/arch": "amd64", "empty": ""}},
    {"runAsUser": 2_147_483_647, "fsGroup": 1},
    {"priorityClassName": "a.b", "schedulerName": None},
    {"resources": {"cpu": 0, "memory": ".5Gi", "ephemeralStorage": "1e9", "sharedMemory": None}},
    {"resources": {"cpu": 1.0, "memory": 9_007_199_254_740_991}, "terminationGracePeriodSeconds": 10_000_000},
    {"affinity": {}},
    required_node_affinity({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]}),
    required_node_affinity({"matchExpressions": [{"key": "a.b/c", "operator": "Gt", "values": ["1"]}]}),
    {
        "affinity": {
            "podAffinity": {
                REQUIRED: [AFFINITY_TERM],
                PREFERRED: [{"weight": 100, "podAffinityTerm": AFFINITY_TERM}],
            }
        }
    },
    {"affinity": {"podAntiAffinity": {REQUIRED: [{"labelSelector": {}, "topologyKey": "zone"}], PREFERRED: []}}},
]
INVALID_TRAINER: list[Object] = [
    {"tolerations": [{}]},
    {"tolerations": [{"value": "x"}]},
    {"tolerations": [{"operator": "Equal"}]},
    {"tolerations": [{"key": "not a key"}]},
    {"tolerations": [{"key": "gpu", "operator": "Exists", "value": "x"}]},
    {"tolerations": [{"key": "gpu", "tolerationSeconds": 1}]},
    {"tolerations": [{"key": "gpu", "effect": "NoSchedule", "tolerationSeconds": 1}]},
    {"tolerations": [{"key": "gpu", "value": "not a value"}]},
    {"envFrom": [{"prefix": "X_"}]},
    {"envFrom": [{"secretRef": {"name": "a"}, "configMapRef": {"name": "b"}}]},
    {"envFrom": [{"prefix": "1", "secretRef": {"name": "a"}}]},
    {"envFrom": [{"secretRef": {"name": "A_b"}}]},
    {"env": [{"value": "x"}]},
    {"env": [{"name": "a=b"}]},
    {"env": [{"name": "A", "value": "x", "valueFrom": {}}]},
    {"imagePullSecrets": [{"name": "Not_a_name"}]},
    {"nodeSelector": {"pool": "not a value"}},
    {"nodeSelector": {"-pool-": "x"}},
    {"runAsUser": 2_147_483_648},
    {"fsGroup": 0},
    {"priorityClassName": "High"},
    {"serviceAccountName": ""},
    {"resources": {"cpu": "-1"}},
    {"resources": {"memory": "16 GB"}},
    {"resources": {"cpu": True}},
    {"runAsUser": "5"},
    {"affinity": {"nodeAffinity": {"required": {}}}},
    {"affinity": {"podAffinity": {PREFERRED: [{"weight": 101, "podAffinityTerm": AFFINITY_TERM}]}}},
    {"affinity": {"podAffinity": {REQUIRED: [{**AFFINITY_TERM, "namespaces": ["other"]}]}}},
    {"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone"}]}}},
    {"affinity": {"podAntiAffinity": {PREFERRED: [AFFINITY_TERM]}}},
    required_node_affinity({}),
    required_node_affinity({"matchExpressions": []}),
    required_node_affinity({"matchExpressions": [{"key": "a", "operator": "In"}]}),
    required_node_affinity({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}),
    required_node_affinity({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["x"]}]}),
    required_node_affinity({"matchExpressions": [{"key": "a", "operator": "Near"}]}),
    required_node_affinity({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a", "b"]}]}),
]
INVALID_OTHER: list[Object] = [
    {"outputClaim": {"size": "20 GB"}},
    {"outputClaim": {"accessModes": ["RWO"]}},
    {"outputClaim": {"accessModes": []}},
    {"watchNamespaces": ["Team_A"]},
    {"watchNamespaces": "team-a"},
    {"scrapeIntervalSeconds": 0},
    {"scrapeIntervalSeconds": "5"},
]


@pytest.mark.parametrize("trainer", VALID_TRAINER, ids=str)
def test_helm_and_operator_accept_valid_values(chart: Chart, trainer: Object) -> None:
    file = chart.scratch / "config.yaml"
    file.write_text(chart.render(trainer=trainer).config)
    config.load(file)


@pytest.mark.parametrize("values", [*({"trainer": each} for each in INVALID_TRAINER), *INVALID_OTHER], ids=str)
def test_helm_and_operator_reject_invalid_values(chart: Chart, values: Object) -> None:
    field = next(iter(values.get("trainer", values)))
    assert field in chart.render_error(**values)
    with pytest.raises(ValidationError, match=field):
        config.Config.model_validate(values)


def test_lease_name_is_unique_per_release(chart: Chart) -> None:
    assert "--lease-name=finetune-finetune-operator" in chart.render().pod["containers"][0]["args"]


def test_configuration_change_changes_the_pod_template_checksum(chart: Chart) -> None:
    def checksum(**values: object) -> str:
        metadata = chart.render(**values).only("Deployment")["spec"]["template"]["metadata"]
        return str(metadata["annotations"]["finetune.dev/config-checksum"])

    assert checksum() == checksum(replicas=2)
    assert checksum() != checksum(scrapeIntervalSeconds=7)


# -- pod -------------------------------------------------------------------------------------------------------------


def test_scheduling_and_environment_are_set_on_the_pod(chart: Chart) -> None:
    settings: Object = {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "registry"}],
    }
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}
    pod = chart.render(**settings, env=[proxy]).pod
    assert {key: pod[key] for key in settings} == settings
    assert proxy in pod["containers"][0]["env"]


def test_several_replicas_create_a_pod_disruption_budget(chart: Chart) -> None:
    assert chart.render().all("PodDisruptionBudget") == []
    assert chart.render(replicas=2).only("PodDisruptionBudget")["spec"]["minAvailable"] == 1


def test_selectors_of_service_monitor_and_service_match(chart: Chart) -> None:
    rendered = chart.render(serviceMonitor={"enabled": True, "labels": {"release": "prometheus"}})
    monitor, service = rendered.only("ServiceMonitor"), rendered.only("Service")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    template = rendered.only("Deployment")["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in {each["name"] for each in template["spec"]["containers"][0]["ports"]}


# -- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"replica": 2}, ["replica", "not allowed"]),
        ({"trainer": {"resource": {"cpu": 1}}}, ["/trainer", "resource", "not allowed"]),
        ({"replicas": "two"}, ["/replicas", "integer"]),
        ({"image": {"digest": "sha256:1234"}}, ["/image/digest"]),
        ({"trainer": {"image": {"pullPolicy": None}}}, ["/trainer/image", "pullPolicy"]),
        ({"trainer": {"runAsUser": 0}}, ["/trainer/runAsUser", "minimum"]),
        ({"trainer": {"resources": {"memory": "16 GB"}}}, ["/trainer/resources/memory"]),
        ({"watchNamespaces": ["Team_A"]}, ["/watchNamespaces/0"]),
        ({"trainer": {"env": [{"key": "TOKEN"}]}}, ["/trainer/env/0", "name"]),
        ({"trainer": {"tolerations": [{"effect": "NoRun"}]}}, ["/trainer/tolerations/0/effect"]),
        ({"trainer": {"imagePullSecrets": ["registry"]}}, ["/trainer/imagePullSecrets/0"]),
        ({"trainer": {"affinity": {"nodes": {}}}}, ["/trainer/affinity", "nodes"]),
    ],
)
def test_error_names_the_invalid_field(chart: Chart, values: Object, fragments: list[str]) -> None:
    error = chart.render_error(**values)
    assert all(fragment in error for fragment in fragments), error


def test_readme_documents_every_value(chart: Chart) -> None:
    readme = (chart.folder / "README.md").read_text()
    missing = [path for path in paths(chart.defaults()) if f"`{path}`" not in readme]
    assert not missing, f"values missing in the README of the chart: {missing}"


def paths(values: Object, prefix: str = "") -> Iterator[str]:
    """The paths of all values, in the syntax of `--set`."""
    for key, value in values.items():
        if isinstance(value, dict) and value and prefix + key != "resources":
            yield from paths(value, f"{prefix}{key}.")
        else:
            yield prefix + key
