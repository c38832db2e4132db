"""A control plane for tests that need the API and its controllers, but no pods that run. Needs no root."""

import os
import signal
import tempfile
from pathlib import Path
from types import TracebackType

from harness import programs
from harness.cluster import Cluster
from harness.launch import Supervised, launch
from harness.site import Ports, Site


class ControlPlane(Cluster):
    """etcd, API server and controller-manager on 127.0.0.1 and random ports, for as long as the `with` block.

    With `scheduler=True` pods are also assigned to nodes, which the test has to make.
    """

    def __init__(self, *, scheduler: bool = False) -> None:
        self._scheduler = scheduler

    def __enter__(self) -> "ControlPlane":
        """Start it; takes 5 to 7 seconds."""
        self._supervised = up(scheduler=self._scheduler)
        super().__init__(self._supervised.site.admin, self._supervised.site.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it down; nothing of it is left."""
        self._supervised.stop()

    def signal(self, program: str, number: signal.Signals) -> None:
        """Send a signal to one program, such as SIGSTOP to `kube-apiserver`; what dies is started again."""
        os.kill(int((self.folder / "pids" / program).read_text()), number)


def up(folder: Path | None = None, *, scheduler: bool = False, daemon: bool = False) -> Supervised:
    """Start a control plane, by default in a temporary folder; a daemon outlives the process that called this."""
    folder_of_programs = programs.for_control_plane(scheduler=scheduler)
    site = Site(
        folder=folder or Path(tempfile.mkdtemp(prefix="finetune-control-plane-")),
        programs=folder_of_programs,
        ports=Ports.free(),
        scheduler=scheduler,
        daemon=daemon,
    )
    return launch(site)
