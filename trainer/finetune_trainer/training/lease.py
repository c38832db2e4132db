"""Who may write to a destination: a lease file in it, held by one process at a time.

As with the Lease of Kubernetes, the holder renews it at intervals, and one that was not renewed for `DURATION` may be
taken over. Clocks of different nodes are not compared: a contender watches whether the content changes. Everything
works without file locks, which network file systems may lack: a lease is created with a hard link (or O_EXCL), taken
over by replacing the file, and renewed through a descriptor, which never reaches a file that has replaced it.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from finetune_trainer.errors import RunError, UserError

LEASE_FILE = ".lease.json"
RENEW_INTERVAL = 10.0
"""Seconds between renewals."""

DURATION = 60.0
"""Seconds without a renewal after which another process may take the lease over."""

SETTLE_TIME = 0.2
"""Seconds after which the last one of several processes that take a lease over at the same time is known."""


@dataclass(frozen=True)
class Lease:
    """The content of a lease file.

    Args:
        job: name of the job.
        run: ID of the run; attempts of one run have the same.
        attempt: number of the attempt.
        holder: ID of the process that holds the lease.
        host: the machine (and PID namespace) of the process.
        process: process ID and start time on that host.
        renewals: how often it was renewed, zero-padded, so that the file has a constant length.
        renew_time: when it was renewed, for people; never compared.
    """

    job: str
    run: str
    attempt: int
    holder: str
    host: str
    process: str
    renewals: str = f"{0:012}"
    renew_time: str = ""

    @classmethod
    def create(cls, job: str, run: str, attempt: int) -> Lease:
        """A lease of this process."""
        return cls(job, run, attempt, uuid.uuid4().hex, _host(), _process(os.getpid())).renewed(0)

    def renewed(self, renewals: int) -> Lease:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return replace(self, renewals=f"{renewals:012}", renew_time=now)

    def to_json(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, text: str) -> Lease | None:
        """The lease of a file; None if another process is writing it, or wrote something else."""
        with suppress(ValueError, TypeError):
            values = json.loads(text)
            if isinstance(values, dict) and values.keys() == {item.name for item in fields(cls)}:
                return cls(**values)
        return None

    @property
    def is_abandoned(self) -> bool:
        """Whether its process ran on this host and has ended."""
        return self.host == _host() and _process(int(self.process.split("@")[0])) != self.process

    @property
    def is_alive(self) -> bool:
        """Whether its process is running on this host."""
        return self.host == _host() and not self.is_abandoned

    def describe(self) -> str:
        return f"job {self.job!r} (attempt {self.attempt}, {self._describe_process()}, last renewed {self.renew_time})"

    def _describe_process(self) -> str:
        return f"process {self.process.split('@')[0]} on {self.host.split('/')[0]}"


class LeaseLock:
    """The lease of one process on one destination, renewed by a thread while it is held.

    Args:
        destination: the folder.
        lease: the lease to write.
        duration: see `DURATION`.
        renew_interval: see `RENEW_INTERVAL`.
    """

    def __init__(
        self, destination: Path, lease: Lease, duration: float = DURATION, renew_interval: float = RENEW_INTERVAL
    ) -> None:
        self.path, self.lease = destination / LEASE_FILE, lease
        self.duration, self.renew_interval = duration, renew_interval
        self._released = threading.Event()

    # Acquire and release

    def acquire(self, log: Callable[[str], None], raise_if_stopped: Callable[[], None] = lambda: None) -> None:
        """Take the lease: at once if nobody holds it, or after its holder was seen not to renew it.

        Args:
            log: receives a message if that takes time.
            raise_if_stopped: called while waiting; it may raise.

        Raises:
            UserError: another run holds it.
            RunError: a newer attempt of this run holds it, or the file system refuses the file.
        """
        try:
            while not self._try_acquire(log, raise_if_stopped):
                raise_if_stopped()
        except OSError as error:
            raise RunError(f"output.destination: cannot write {self.path}: {error.strerror or error}") from error
        threading.Thread(target=self._renew_regularly, name="lease-renewal", daemon=True).start()

    def release(self) -> None:
        """Stop renewing the lease, and delete it if it is still held."""
        self._released.set()  # a renewal that is running writes to the deleted file, or finds none
        with suppress(OSError):
            if self._is_mine(self._read()):
                self.path.unlink()

    def check(self) -> None:
        """Check that the lease is still held; called before anything is written or replaced.

        Raises:
            UserError: it is not.
            RunError: its file cannot be read.
        """
        try:
            text = self._read()
        except OSError as error:
            raise RunError(f"output.destination: cannot read {self.path}: {error.strerror or error}") from error
        if self._is_mine(text):
            return
        other = Lease.parse(text) if text is not None else None
        if other is not None and other.run == self.lease.run:
            raise UserError(
                f"attempt {self.lease.attempt} cannot write to {self.path.parent}: attempt {other.attempt} has taken "
                "over"
            )
        cause = f"{other.describe()} has taken over" if other else f"{self.path.name} was deleted or replaced"
        raise UserError(
            f"output.destination: attempt {self.lease.attempt} cannot write to {self.path.parent}: {cause}; "
            "use another destination for each job"
        )

    def _try_acquire(self, log: Callable[[str], None], raise_if_stopped: Callable[[], None]) -> bool:
        if self._create():
            return True
        text = self._read()
        if text is not None and not self._may_take_over_at_once(Lease.parse(text)):
            text = self._watch(text, log, raise_if_stopped)
        return text is not None and self._take_over(text)  # it may have been deleted in between

    def _may_take_over_at_once(self, holder: Lease | None) -> bool:
        """Whether nobody else can hold the lease, or an earlier attempt of this run does.

        Raises:
            UserError: a process on this host holds it.
            RunError: a newer attempt of this run holds it.
        """
        if holder is None:
            return False
        if holder.run == self.lease.run and holder.attempt != self.lease.attempt:
            if holder.attempt > self.lease.attempt and not holder.is_abandoned:
                raise RunError(f"attempt {self.lease.attempt} cannot continue: attempt {holder.attempt} has started")
            return True
        if holder.is_alive:
            raise self._in_use(holder)
        return holder.is_abandoned

    def _watch(self, text: str, log: Callable[[str], None], raise_if_stopped: Callable[[], None]) -> str | None:
        """Wait until the lease has not been renewed for its duration.

        Returns:
            The content of the file, which then has not changed; None if it was deleted.

        Raises:
            UserError: it is renewed, so its holder is running.
        """
        holder = Lease.parse(text)
        who = holder.describe() if holder else "an unknown process"
        log(f"{self.path.parent} is held by {who}: waiting up to {self.duration:g} s to see whether it is running")
        deadline = time.monotonic() + self.duration
        while time.monotonic() < deadline:
            raise_if_stopped()
            time.sleep(min(1.0, self.duration / 20))
            now = self._read()
            if now is None:
                return None
            if now != text:
                if renewed := Lease.parse(now):
                    raise self._in_use(renewed)
                text, deadline = now, time.monotonic() + self.duration
        return text

    def _in_use(self, holder: Lease) -> UserError:
        return UserError(
            f"output.destination: {self.path.parent} is in use by {holder.describe()}: wait until it has ended, or use "
            "another destination for each job"
        )

    # The file

    def _create(self) -> bool:
        """Create the file, unless it exists."""
        temporary = self._write_temporary()
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError:  # no hard links on this file system
            return self._create_exclusively()
        finally:
            temporary.unlink()
        return True

    def _create_exclusively(self) -> bool:
        try:
            with self.path.open("x") as file:
                file.write(self.lease.to_json())
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        return True

    def _take_over(self, text: str) -> bool:
        """Replace the file if it still has this content. Of several processes, the last one to do so succeeds."""
        temporary = self._write_temporary()
        try:
            if self._read() != text:
                return False
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        time.sleep(SETTLE_TIME)
        return self._is_mine(self._read())

    def _write_temporary(self) -> Path:
        temporary = self.path.with_name(f"{LEASE_FILE}-{self.lease.holder}")
        try:
            with temporary.open("w") as file:
                file.write(self.lease.to_json())
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # a full disk, or a signal
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _read(self) -> str | None:
        try:
            return self.path.read_text(errors="replace")
        except FileNotFoundError:
            return None

    def _is_mine(self, text: str | None) -> bool:
        lease = Lease.parse(text) if text is not None else None
        return lease is not None and lease.holder == self.lease.holder

    def _renew_regularly(self) -> None:
        renewals = 0
        while not self._released.wait(self.renew_interval):
            renewals += 1
            with suppress(OSError):  # `check` reports what cannot be read; a renewal that fails is repeated
                self._renew(renewals)

    def _renew(self, renewals: int) -> None:
        with self.path.open("r+") as file:
            if self._is_mine(file.read()):
                file.seek(0)
                file.write(self.lease.renewed(renewals).to_json())
                file.flush()
                os.fsync(file.fileno())


def _host() -> str:
    """The machine, its boot and the PID namespace: where a process ID has a meaning."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def _process(pid: int) -> str:
    """A process as `PID@start time`, `PID@` for one that is not running."""
    if not Path("/proc/self/stat").exists():
        return f"{pid}@{'running' if _is_running(pid) else ''}"
    with suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pid}@{'' if stat[0] == 'Z' else stat[19]}"
    return f"{pid}@"


def _is_running(pid: int) -> bool:
    """Whether a process with this ID is running, on a system without /proc."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
