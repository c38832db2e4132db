"""Fixtures of the chart tests."""

import shutil
from pathlib import Path

import pytest

from harness import binaries
from unit.chart.rendering import Chart


@pytest.fixture
def chart(helm_if_available: Path, tmp_path: Path) -> Chart:
    """The chart of this checkout."""
    return Chart(helm_if_available, tmp_path)


@pytest.fixture(scope="session")
def helm_if_available(request: pytest.FixtureRequest) -> Path:
    """The path of helm. Skips the tests if helm would have to be compiled only for unit tests, which takes minutes."""
    cluster_tests_selected = any(item.get_closest_marker("cluster") for item in request.session.items)
    if binaries.is_built() or cluster_tests_selected:
        compiled: Path = request.getfixturevalue("helm")
        return compiled
    if found := shutil.which("helm"):
        return Path(found)
    pytest.skip("helm is not available; fix: `make cluster` compiles it")
