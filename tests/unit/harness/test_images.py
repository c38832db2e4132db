"""An image is built again when what it copies changes, and hides nothing of its own under what is bound into it."""

import sys
from pathlib import Path

import pytest

from harness import baseimage, hostos, images

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


def test_the_copied_paths_are_read_from_the_dockerfile() -> None:
    assert images.copied(DOCKERFILE) == ["pyproject.toml", "uv.lock", "crds/api"]


def test_files_that_tools_leave_behind_do_not_matter(tmp_path: Path) -> None:
    for name in ("b/code.py", "a.py", "__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in images.source_files(tmp_path)]
    assert found == ["a.py", "b/code.py"]
    assert list(images.source_files(tmp_path / "a.py")) == [tmp_path / "a.py"]


def test_the_base_tells_pip_and_uv_of_the_package_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://packages.example.com/simple")
    settings = baseimage.environment()
    assert settings["UV_DEFAULT_INDEX"] == "https://packages.example.com/simple"
    assert settings["SSL_CERT_FILE"] == baseimage.AUTHORITIES


def test_the_machine_is_bound_beside_what_an_image_has(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    binds = {bind.source: bind.destination for bind in hostos.binds(tmp_path)}
    assert binds[Path("/usr")] == hostos.USR
    assert binds[tmp_path / "trainer"] == tmp_path / "trainer"
    assert tmp_path / "operator" not in binds
    if not sys.prefix.startswith("/usr"):
        assert binds[Path(sys.prefix)] == Path(sys.prefix)
    assert Path("/usr") not in binds.values()


def test_a_checkout_that_a_pods_own_mounts_would_hide_is_known(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    assert hostos.hidden_below(str(tmp_path), repository=tmp_path)
    assert not hostos.hidden_below(str(tmp_path / "elsewhere"), repository=tmp_path)
