"""Preflight checks, and the selection of an external cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import binaries, external, preflight
from harness.errors import HarnessError
from harness.preflight import Tier, UnmetRequirement


def test_require_raises_with_reason_and_fix() -> None:
    def check() -> Iterator[UnmetRequirement]:
        yield UnmetRequirement("foo is not installed", "install foo")

    with pytest.raises(HarnessError) as raised:
        preflight.require(Tier("node", "runs pods", check))
    assert str(raised.value) == "node is unavailable: foo is not installed\n  fix: install foo"


def test_names_binaries_missing_from_kubebuilder_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("etcd", "kube-apiserver", "kubectl"):
        (tmp_path / name).touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(HarnessError, match="has no kube-controller-manager"):
        binaries.control_plane_directory()
    assert [each.fix for each in preflight.CONTROL_PLANE.unmet_requirements()]
    (tmp_path / "kube-controller-manager").touch()
    assert binaries.control_plane_directory() == tmp_path
    assert binaries.find_client("kubectl") == tmp_path / "kubectl"


def test_control_plane_requires_go_or_built_binaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (unmet,) = preflight.CONTROL_PLANE.unmet_requirements()
    assert "`go` is not on PATH" in unmet.reason
    with pytest.raises(HarnessError, match="neither `kubectl` nor `go`"):
        binaries.find_client("kubectl")


def test_external_cluster_requires_kubeconfig_and_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.touch()
    monkeypatch.setenv("KUBECONFIG", str(config))
    for name in (external.KUBECONFIG, external.CONTEXT):
        monkeypatch.delenv(name, raising=False)
    assert external.configured_cluster() is None
    monkeypatch.setenv(external.KUBECONFIG, str(config))
    with pytest.raises(HarnessError, match="only one of"):
        external.configured_cluster()
    monkeypatch.setenv(external.CONTEXT, "mine")
    assert external.configured_cluster() == (config, "mine")
    config.unlink()
    with pytest.raises(HarnessError, match="is not a file"):
        external.configured_cluster()
