"""The committed Go module is the one that versions.py asks for."""

from harness import gomodule
from harness.versions import HELM, KUBERNETES

UPSTREAM = """\
module k8s.io/kubernetes

go 1.99.0

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/kubectl => ./staging/src/k8s.io/kubectl
)
"""


def test_a_module_names_a_release_of_each_library_of_kubernetes() -> None:
    text = gomodule.render(UPSTREAM, "1.35.4", "4.1.4")
    assert "\ngo 1.99.0\n" in text
    assert "\tk8s.io/api => k8s.io/api v0.35.4\n\tk8s.io/kubectl => k8s.io/kubectl v0.35.4\n" in text


def test_the_committed_module_is_up_to_date() -> None:
    committed = (gomodule.MODULE / "go.mod").read_text()
    assert f"k8s.io/kubernetes v{KUBERNETES}\n" in committed, "run `python -m harness lock`"
    assert f"helm.sh/helm/v4 v{HELM} // indirect\n" in committed, "run `python -m harness lock`"
    assert f"=> k8s.io/client-go v0.{KUBERNETES.partition('.')[2]}\n" in committed, "run `python -m harness lock`"


def test_the_programs_know_their_version() -> None:
    assert f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES}" in gomodule.flags()[1]
