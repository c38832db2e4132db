"""Inputs of image builds, settings of the base image, and mounts of the host image."""

import sys
from pathlib import Path

import pytest

from harness import base_image, host_image, images

DOCKERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE} AS tools
FROM ${BASE_IMAGE}
COPY --from=tools /uv /uv
COPY --chown=1:1 pyproject.toml \\
     uv.lock ./
copy crds/api crds/api
RUN true
"""


def test_parses_copied_paths_of_a_dockerfile() -> None:
    assert images.copied_paths(DOCKERFILE) == ["pyproject.toml", "uv.lock", "crds/api"]


def test_source_files_ignores_caches(tmp_path: Path) -> None:
    for name in ("b/code.py", "a.py", "__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in images.source_files(tmp_path)]
    assert found == ["a.py", "b/code.py"]
    assert list(images.source_files(tmp_path / "a.py")) == [tmp_path / "a.py"]


def test_base_image_sets_package_index_and_ca_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://packages.example.com/simple")
    settings = base_image.environment()
    assert settings["UV_DEFAULT_INDEX"] == "https://packages.example.com/simple"
    assert settings["SSL_CERT_FILE"] == base_image.CA_BUNDLE


def test_bind_mounts_do_not_cover_usr_of_other_images(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    binds = {bind.source: bind.destination for bind in host_image.bind_mounts(tmp_path)}
    assert binds[Path("/usr")] == host_image.HOST_USR
    assert binds[tmp_path / "trainer"] == tmp_path / "trainer"
    assert tmp_path / "operator" not in binds
    if not sys.prefix.startswith("/usr"):
        assert binds[Path(sys.prefix)] == Path(sys.prefix)
    assert Path("/usr") not in binds.values()


def test_is_shadowed_by_mounts_of_a_pod(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    assert host_image.is_shadowed(str(tmp_path), repository=tmp_path)
    assert not host_image.is_shadowed(str(tmp_path / "elsewhere"), repository=tmp_path)
