"""A pytest plugin: clusters as fixtures, the fork server, and the distribution of tests to pytest-xdist workers.

If a test environment is unavailable, its tests are skipped with the reason and how to fix it; in CI they fail.
Enable with `pytest_plugins = ["harness.plugin"]` in the top-level conftest.py.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import NoReturn

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from harness import binaries, external, preflight
from harness.cluster import Cluster
from harness.control_plane import ControlPlane
from harness.errors import HarnessError
from harness.external import ExternalCluster
from harness.forkserver import ForkServer
from harness.node import Node
from harness.preflight import Tier

MAX_WORKERS = 6
UNAVAILABLE = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and start the fork server."""
    config.addinivalue_line("markers", "cluster: needs a real API server (started by the harness, no root)")
    config.addinivalue_line("markers", "e2e: needs a real node (started by the harness, as root)")
    config.stash[UNAVAILABLE] = {}
    if not hasattr(config, "workerinput"):
        # pytest-xdist workers use the server of the process that started them.
        stack = ExitStack()
        config.add_cleanup(stack.close)
        stack.enter_context(ForkServer())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more worker than CPUs, because tests also wait; a worker uses 1 GB of memory."""
    return min(len(os.sched_getaffinity(0)) + 1, MAX_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Distribute files in the order of the command line, so that slow tests can be started first."""
    config.option.loadscopereorder = False
    return FileScheduling(config, log)


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Assigns whole files to workers, because their tests share fixtures, and the directory `node` to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name == "node" else file)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List the unavailable test environments, with reasons and fixes."""
    if unavailable := config.stash[UNAVAILABLE]:
        terminalreporter.section("unavailable test environments")
        for tier, reasons in unavailable.items():
            terminalreporter.line(f"{tier}: {reasons}")


@pytest.fixture(scope="session")
def require_tier(request: pytest.FixtureRequest) -> Callable[[Tier], None]:
    """A function that skips the test if a tier is unavailable; in CI it fails the test."""

    def require(tier: Tier) -> None:
        if unmet := tier.unmet_requirements():
            _skip_or_fail(request.config, tier.name, "; ".join(map(str, unmet)))

    return require


@pytest.fixture(scope="session")
def cluster_binaries(request: pytest.FixtureRequest) -> None:
    """Compile the Kubernetes binaries unless they are cached; pytest does not capture the progress."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():
            binaries.find_client("kubectl")
    except HarnessError as error:
        _skip_or_fail(request.config, "control plane", str(error))


@pytest.fixture(scope="session")
def external_cluster() -> Iterator[Cluster | None]:
    """The cluster that the environment variables select; None if they are unset."""
    try:
        configured = external.configured_cluster()
    except HarnessError as error:
        pytest.fail(str(error), pytrace=False)
    if configured is None:
        yield None
        return
    with ExternalCluster(*configured) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def control_plane(external_cluster: Cluster | None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An API server and its controllers for the whole session, or the external cluster if one is configured."""
    if external_cluster is not None:
        yield external_cluster
        return
    request.getfixturevalue("require_tier")(preflight.CONTROL_PLANE)
    request.getfixturevalue("cluster_binaries")
    with ControlPlane() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def node(require_tier: Callable[[Tier], None], request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node that runs pods, for the whole session. It is never an external cluster."""
    require_tier(preflight.NODE)
    request.getfixturevalue("cluster_binaries")
    with Node() as running:
        yield running


@pytest.fixture(scope="session")
def kubectl(control_plane: Cluster) -> Callable[..., str]:
    """kubectl on the control plane."""
    return control_plane.kubectl


@pytest.fixture(scope="session")
def helm(cluster_binaries: None) -> Path:
    """The path of helm."""
    return binaries.find_client("helm")


def _skip_or_fail(config: pytest.Config, name: str, reasons: str) -> NoReturn:
    config.stash[UNAVAILABLE][name] = reasons
    if os.environ.get("CI"):
        pytest.fail(f"{name} is unavailable, but required in CI: {reasons}", pytrace=False)
    pytest.skip(f"{name} is unavailable: {reasons}")
