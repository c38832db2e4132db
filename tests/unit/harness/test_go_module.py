"""The generated Go module, and whether the committed one matches versions.py."""

from harness import go_module
from harness.versions import HELM, KUBERNETES

UPSTREAM = """\
module k8s.io/kubernetes

go 1.99.0

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/kubectl => ./staging/src/k8s.io/kubectl
)
"""


def test_replaces_staging_modules_with_released_versions() -> None:
    text = go_module.render(UPSTREAM, "1.35.4", "4.1.4")
    assert "\ngo 1.99.0\n" in text
    assert "\tk8s.io/api => k8s.io/api v0.35.4\n\tk8s.io/kubectl => k8s.io/kubectl v0.35.4\n" in text


def test_committed_module_is_up_to_date() -> None:
    committed = (go_module.MODULE / "go.mod").read_text()
    assert f"k8s.io/kubernetes v{KUBERNETES}\n" in committed, "run `python -m harness lock`"
    assert f"helm.sh/helm/v4 v{HELM} // indirect\n" in committed, "run `python -m harness lock`"
    assert f"=> k8s.io/client-go v0.{KUBERNETES.partition('.')[2]}\n" in committed, "run `python -m harness lock`"


def test_build_flags_set_the_version() -> None:
    assert f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES}" in go_module.flags()[1]
