"""The chart for its tests, with a Helm that renders it."""

import shutil
from pathlib import Path

import pytest

from harness import binaries
from unit.chart.rendering import Chart


@pytest.fixture
def chart(helm_at_hand: Path, tmp_path: Path) -> Chart:
    """The chart, ready to be rendered."""
    return Chart(helm_at_hand, tmp_path)


@pytest.fixture(scope="session")
def helm_at_hand(request: pytest.FixtureRequest) -> Path:
    """helm, unless it had to be compiled for unit tests alone: that takes minutes, and unit tests take seconds."""
    cluster_tests_run_too = any(item.get_closest_marker("cluster") for item in request.session.items)
    if binaries.is_built() or cluster_tests_run_too:
        compiled: Path = request.getfixturevalue("helm")
        return compiled
    if found := shutil.which("helm"):
        return Path(found)
    pytest.skip("there is no helm yet; cure: `make cluster` compiles it")
