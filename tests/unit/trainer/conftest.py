"""Fixtures of all trainer tests: a folder of claims with tiny models and data, created once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unit.trainer import tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of `datasets`, deleted with the temporary files of the tests."""
    folder: Path = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        yield folder


@pytest.fixture(scope="session")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claims `models` (dual, clip, bert) and `data` (colours, more-colours, reviews)."""
    folder: Path = tmp_path_factory.mktemp("claims")
    tiny.write_dual_encoder(folder / "models" / "dual")
    tiny.write_clip(folder / "models" / "clip")
    tiny.write_classifier(folder / "models" / "bert")
    tiny.write_rows(folder / "data" / "colours", tiny.captioned(30))
    tiny.write_rows(folder / "data" / "more-colours", tiny.captioned(9, seed=1))
    tiny.write_rows(folder / "data" / "reviews", tiny.reviews(26))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The claim for outputs."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
