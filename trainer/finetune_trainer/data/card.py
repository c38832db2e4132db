"""Dataset cards: configurations and their files, from the YAML header of a README.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Features
from huggingface_hub import DatasetCard, DatasetCardData

from finetune_api.data import DataSource, Validation
from finetune_trainer import hub
from finetune_trainer.compat.hf_datasets import MetadataConfigs, card_features, read_card_configs, resolve_splits
from finetune_trainer.data.data_files import describe_choices
from finetune_trainer.data.paths import check_path
from finetune_trainer.errors import RunError, UserError


def read_configs(folder: Path, source: DataSource | Validation, field: str) -> MetadataConfigs | None:
    """The configurations that the card of a dataset describes; None if it names no files.

    Raises:
        UserError: the card is malformed.
    """
    card = folder / "README.md"
    try:
        configs = read_card_configs(DatasetCard.load(card).data if card.is_file() else DatasetCardData())
    except Exception as error:
        kind = RunError if hub.is_transient(error) else UserError
        raise kind(f"{field}.source: {source.source}: cannot read its README.md: {hub.first_line(error)}") from error
    with_files = {
        name: config for name, config in configs.items() if config.get("data_files") or config.get("data_dir")
    }
    return MetadataConfigs(with_files) if with_files else None


def config_patterns(configs: MetadataConfigs, source: DataSource | Validation, field: str) -> list[str]:
    """Glob patterns of the files of the selected configuration, for a download.

    Raises:
        UserError: there is no such configuration.
    """
    config = configs[_select_config(configs, source, field)]
    base = f"{config['data_dir'].strip('/')}/" if config.get("data_dir") else ""
    patterns = _file_patterns(config) or ["**"]
    # In huggingface_hub `**/` matches at least one folder, in datasets none.
    without_folder = [pattern.removeprefix("**/") for pattern in patterns]
    return [base + pattern for pattern in dict.fromkeys([*patterns, *without_folder])]


@dataclass(frozen=True)
class ConfigFiles:
    """What the card says about the files of a configuration.

    Args:
        data_dir: folder of the configuration, relative to that of the dataset; empty for the same.
        splits: files by split; None if their names determine the splits, as without a card.
        features: the columns that the card declares.
    """

    data_dir: str
    splits: Mapping[str, list[Path]] | None
    features: Features | None


def config_files(
    folder: Path, root: Path, configs: MetadataConfigs, source: DataSource | Validation, field: str
) -> ConfigFiles:
    """The files of the selected configuration.

    Raises:
        UserError: there is no such configuration, or it names files outside the dataset's folder, or none.
    """
    name = _select_config(configs, source, field)
    config, resolved_folder = configs[name], folder.resolve()
    data_dir = (config.get("data_dir") or "").rstrip("/")
    for path in filter(None, (data_dir, *_file_patterns(config))):
        if problem := check_path(path, folder, root):
            raise UserError(f"{field}.source: {source.source}: configuration {name!r} of its README.md: {problem}")
    try:
        features = card_features(folder, name)
        if not config.get("data_files"):
            return ConfigFiles(data_dir, None, features)
        splits = resolve_splits(resolved_folder / data_dir, config["data_files"])
        relative = {
            split: [folder / file.relative_to(resolved_folder) for file in files] for split, files in splits.items()
        }
    except Exception as error:  # datasets raises many types for a malformed card
        kind = RunError if hub.is_transient(error) else UserError
        raise kind(f"{field}.source: {source.source}: its README.md: {hub.first_line(error)}") from error
    return ConfigFiles(data_dir, relative, features)


def _select_config(configs: MetadataConfigs, source: DataSource | Validation, field: str) -> str:
    names = list(configs)
    if source.config:
        if source.config not in configs:
            hint = describe_choices(source.config, names)
            raise UserError(f"{field}.config: {source.source} has no configuration {source.config!r}; {hint}")
        return source.config
    default: str | None = configs.get_default_config_name() or (names[0] if len(names) == 1 else None)
    if default is None:
        raise UserError(f"{field}.config: {source.source} has several configurations; select one of {', '.join(names)}")
    return default


def _file_patterns(config: Mapping[str, Any]) -> list[str]:
    """All patterns of a configuration, of all splits."""
    data_files: Any = config.get("data_files") or []
    entries = [data_files] if isinstance(data_files, str) else data_files
    patterns = [entry["path"] if isinstance(entry, dict) else entry for entry in entries]
    return [one for pattern in patterns for one in ([pattern] if isinstance(pattern, str) else pattern)]
