"""The interface of a running cluster: kubeconfig, kubectl, and credentials of other users."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import binaries, kubeconfig
from harness.errors import HarnessError


class KubectlError(HarnessError):
    """kubectl failed; `stderr` is its standard error."""

    def __init__(self, args: Sequence[str], stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(args)}: {stderr.strip()}")
        self.stderr = stderr


class Cluster:
    """A running cluster.

    Args:
        kubeconfig: credentials of the administrator.
        folder: directory for files of this cluster.
    """

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.kubeconfig = kubeconfig
        self.folder = folder

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._cluster_entry()["server"])

    def kubectl(self, *args: str, input: str | None = None, timeout: float = 120) -> str:
        """Run kubectl as administrator and return its standard output.

        Raises:
            KubectlError: kubectl failed.
        """
        result = self.try_kubectl(*args, input=input, timeout=timeout)
        if result.returncode:
            raise KubectlError(args, result.stderr)
        return result.stdout

    def try_kubectl(
        self, *args: str, input: str | None = None, timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Run kubectl as administrator; the caller checks the exit status."""
        # The discovery cache is keyed by host and port, which an earlier test cluster may have used.
        cache = f"--cache-dir={self.folder / 'kubectl-cache'}"
        argv = [str(binaries.find_client("kubectl")), f"--kubeconfig={self.kubeconfig}", cache, *args]
        return subprocess.run(
            argv, input=input, env=os.environ, capture_output=True, text=True, timeout=timeout, check=False
        )

    def get(self, *args: str) -> dict[str, Any]:
        """Run `kubectl get ... -o json` and return the parsed output."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *args, "-o", "json"))
        return found

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects with server-side apply."""
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=manifest)

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Write a kubeconfig with a token of a ServiceAccount; the token expires after one hour."""
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", "--duration=1h").strip()
        return self._write_kubeconfig(kubeconfig.with_token(self._cluster_entry(), token))

    def _write_kubeconfig(self, config: dict[str, Any]) -> Path:
        handle, path = tempfile.mkstemp(prefix="kubeconfig-", dir=self.folder)
        os.close(handle)
        return kubeconfig.write(Path(path), config)

    def _cluster_entry(self) -> dict[str, Any]:
        config = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        entry: dict[str, Any] = config["clusters"][0]["cluster"]
        return entry
