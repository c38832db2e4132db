"""Downloads dataset repositories into the cache of the Hugging Face Hub; code in a repository is never downloaded."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import disable_progress_bars

from finetune_api.data import DataSource, Validation
from finetune_trainer import hub
from finetune_trainer.data.formats import file_format
from finetune_trainer.errors import HubUnreachable


def download_repository(source: DataSource | Validation, field: str, patterns: list[str]) -> Path:
    """Download the files of a dataset repository that match the patterns.

    Returns:
        The folder in the cache. Without network access, the cached files are used.

    Raises:
        UserError: there is no such repository or revision, or no access to it.
        RunError: the Hugging Face Hub is unreachable.
    """
    assert source.source is not None, "a repository has a source"
    repository = hub.Repository(field, source.source, source.revision, "dataset")
    disable_progress_bars()  # they would break the run's own display
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # e.g. a warning about a missing dataset card
    try:
        return Path(
            snapshot_download(repository.name, repo_type="dataset", revision=source.revision, allow_patterns=patterns)
        )
    except Exception as error:
        explained = hub.explain(error, repository)
        raise explained or HubUnreachable(
            f"{field}.source: {source.source}: cannot be downloaded: {type(error).__name__}: {hub.first_line(error)}"
        ) from error


def list_other_files(source: DataSource | Validation, folder: Path) -> list[str]:
    """The files of a repository that were not downloaded; none if the Hugging Face Hub cannot be reached.

    Args:
        source: the repository.
        folder: its folder in the cache, whose name is the commit.
    """
    assert source.source is not None, "a repository has a source"
    name = source.source.removeprefix("hf://")
    try:
        info = HfApi().dataset_info(name, revision=folder.name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # noqa: BLE001 - only the messages about files that are not read depend on it
        return []
    files = [file.rfilename for file in info.siblings or ()]
    return [path for path in files if file_format(PurePosixPath(path)) is None and not (folder / path).exists()]
