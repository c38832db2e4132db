"""A cluster that somebody else runs. It has to be named twice, so that no test ever writes to one by accident."""

import os
import tempfile
from pathlib import Path
from types import TracebackType

from harness import programs
from harness.cluster import Cluster
from harness.commands import run
from harness.errors import HarnessError

KUBECONFIG = "FINETUNE_TEST_KUBECONFIG"
CONTEXT = "FINETUNE_TEST_CONTEXT"


def named() -> tuple[Path, str] | None:
    """The kubeconfig and the context of the cluster to test on, if the person who runs the tests gave them."""
    path, context = os.environ.get(KUBECONFIG), os.environ.get(CONTEXT)
    if not path and not context:
        return None
    if not path or not context:
        raise HarnessError(
            f"only one of {KUBECONFIG} and {CONTEXT} is set", "set both, or neither to let the harness start a cluster"
        )
    if not Path(path).is_file():
        raise HarnessError(f"{KUBECONFIG}={path} is not a file")
    return Path(path), context


class ExternalCluster(Cluster):
    """The cluster named by the environment, through a kubeconfig that holds that context alone."""

    def __enter__(self) -> "ExternalCluster":
        """Nothing has to be started."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing has to be stopped; our copies of credentials go."""
        self._temporary.cleanup()

    def __init__(self, source: Path, context: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="finetune-external-")
        folder = Path(self._temporary.name)
        argv = ["config", "view", "--raw", "--minify", "--flatten", f"--kubeconfig={source}", f"--context={context}"]
        config = run(programs.locate("kubectl"), *argv)
        path = folder / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(config)
        super().__init__(path, folder)
