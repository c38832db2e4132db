"""What cannot run is explained, with a cure; and no cluster is ever used that was not named twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import doctor, external, programs
from harness.doctor import Obstacle, Tier
from harness.errors import HarnessError


def test_a_tier_that_cannot_run_says_why_and_what_to_do() -> None:
    def find() -> Iterator[Obstacle]:
        yield Obstacle("there is no moon", "wait for the night")

    with pytest.raises(HarnessError) as raised:
        doctor.require(Tier("tide", "water", find))
    assert str(raised.value) == "the tide cannot run here: there is no moon\n  cure: wait for the night"


def test_missing_assets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("etcd", "kube-apiserver", "kubectl"):
        (tmp_path / name).touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(HarnessError, match="has no kube-controller-manager"):
        programs.for_control_plane()
    assert [each.cure for each in doctor.CONTROL_PLANE.obstacles()]
    (tmp_path / "kube-controller-manager").touch()
    assert programs.for_control_plane() == tmp_path
    assert programs.locate("kubectl") == tmp_path / "kubectl"


def test_no_go_and_nothing_built_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (obstacle,) = doctor.CONTROL_PLANE.obstacles()
    assert "no Go" in obstacle.reason
    with pytest.raises(HarnessError, match="no `kubectl` on PATH"):
        programs.locate("kubectl")


def test_the_users_current_context_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.touch()
    monkeypatch.setenv("KUBECONFIG", str(config))
    for name in (external.KUBECONFIG, external.CONTEXT):
        monkeypatch.delenv(name, raising=False)
    assert external.named() is None
    monkeypatch.setenv(external.KUBECONFIG, str(config))
    with pytest.raises(HarnessError, match="only one of"):
        external.named()
    monkeypatch.setenv(external.CONTEXT, "mine")
    assert external.named() == (config, "mine")
    config.unlink()
    with pytest.raises(HarnessError, match="is not a file"):
        external.named()
