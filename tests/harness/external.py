"""An existing cluster. Requires both kubeconfig and context, so that no test uses the current context by accident."""

import os
import tempfile
from pathlib import Path
from types import TracebackType

from harness import binaries
from harness.cluster import Cluster
from harness.commands import run
from harness.errors import HarnessError

KUBECONFIG = "FINETUNE_TEST_KUBECONFIG"
CONTEXT = "FINETUNE_TEST_CONTEXT"


def configured_cluster() -> tuple[Path, str] | None:
    """The kubeconfig and the context that the environment variables name; None if neither is set.

    Raises:
        HarnessError: only one of the variables is set, or the kubeconfig does not exist.
    """
    path, context = os.environ.get(KUBECONFIG), os.environ.get(CONTEXT)
    if not path and not context:
        return None
    if not path or not context:
        raise HarnessError(
            f"only one of {KUBECONFIG} and {CONTEXT} is set",
            "set both, or unset both to let the harness start a cluster",
        )
    if not Path(path).is_file():
        raise HarnessError(f"{KUBECONFIG}={path} is not a file")
    return Path(path), context


class ExternalCluster(Cluster):
    """An existing cluster, accessed with a temporary kubeconfig that contains only the given context."""

    def __enter__(self) -> "ExternalCluster":
        """Return the cluster, which is already running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the temporary kubeconfig."""
        self._temporary.cleanup()

    def __init__(self, source: Path, context: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="finetune-external-")
        folder = Path(self._temporary.name)
        argv = ["config", "view", "--raw", "--minify", "--flatten", f"--kubeconfig={source}", f"--context={context}"]
        config = run(binaries.find_client("kubectl"), *argv)
        path = folder / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(config)
        super().__init__(path, folder)
