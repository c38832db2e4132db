"""Models and datasets of the hub: downloaded once, pinned, from the cache without a network, and gated.

Each run is a process of its own, with a cache of its own: the hub's client reads the environment once, at its import.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from e2e.namespace import ROOT
from finetune_api.exit_codes import ExitCode
from harness import forkserver
from harness.hub import Hub, serving
from unit.trainer import tiny

pytestmark = pytest.mark.timeout(600)

GATED_EXAMPLE = ROOT / "examples" / "gated-model" / "job.yaml"
TOKEN = "hf_" + "x" * 34


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A claim with a tiny model."""
    folder: Path = tmp_path_factory.mktemp("claims")
    tiny.write_classifier(folder / "models" / "bert")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """HF_HOME."""
    return tmp_path / "huggingface"


def reviews(folder: Path, train: int = 26) -> Path:
    """A repository with two splits, a card, and code that must not run."""
    tiny.write_rows(folder / "data", tiny.reviews(train), "train-00000-of-00001.parquet")
    tiny.write_rows(folder / "data", tiny.reviews(8), "test-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\nReviews of films.\n")
    (folder / "reviews.py").write_text("raise SystemExit('code of a repository was run')")
    return folder


def run(
    tmp_path: Path, home: Path, hub: Hub | None, environment: Mapping[str, str] | None = None, **spec: Any
) -> subprocess.CompletedProcess[str]:
    """`finetune run` of a job on the hub's model and data."""
    base = {
        "model": {"source": "hf://acme/bert"},
        "task": "SequenceClassification",
        "data": {"train": {"source": "hf://acme/reviews"}, "workers": 0},
        "training": {"batchSize": 8, "epochs": 1},
        "output": {"destination": "pvc://out/result", "ifExists": "Overwrite"},
        "resources": {"gpusPerNode": 0},
    }
    manifest = tmp_path / "job.json"
    manifest.write_text(
        json.dumps(
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": "hub"},
                "spec": tiny.merged(base, spec),
            }
        )
    )
    return finetune(tmp_path, home, hub, environment, str(manifest), "--claim", f"out={tmp_path / 'out'}")


def finetune(
    cwd: Path, home: Path, hub: Hub | None, environment: Mapping[str, str] | None, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """`finetune run` with nothing but these variables about the hub."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    endpoint = hub.address if hub else "http://127.0.0.1:9"
    variables = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1", **(environment or {})}
    return forkserver.run(
        [forkserver.script("finetune"), "run", *arguments], cwd=cwd, env=clean | variables, timeout=120
    )


def samples(tmp_path: Path) -> int:
    told = json.loads((tmp_path / "out" / "result" / "run.json").read_text())
    return int(told["samples"]["train"])


def test_from_the_hub_and_then_from_the_cache(hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
    hub.add("models", "acme/bert", claims / "models" / "bert")
    hub.add("datasets", "acme/reviews", reviews(tmp_path / "reviews"))
    online = run(tmp_path, home, hub, data={"test": {"source": "hf://acme/reviews"}})
    assert online.returncode == 0, online.stderr
    assert samples(tmp_path) == 26
    assert "%|" not in online.stderr
    assert "Generating" not in online.stderr
    assert not any("reviews.py" in request for request in hub.requests), "code is not even downloaded"
    shutil.rmtree(tmp_path / "out")
    offline = run(tmp_path, home, None, {"HF_HUB_OFFLINE": "1"}, data={"test": {"source": "hf://acme/reviews"}})
    assert offline.returncode == 0, offline.stderr
    assert samples(tmp_path) == 26
    absent = run(tmp_path, home, None, {"HF_HUB_OFFLINE": "1"}, data={"train": {"source": "hf://acme/others"}})
    assert absent.returncode == ExitCode.INVALID
    assert "data.train.source: hf://acme/others: not in the cache" in absent.stderr
    assert "HF_HUB_OFFLINE disables downloads" in absent.stderr


def test_a_pinned_revision(hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
    hub.add("models", "acme/bert", claims / "models" / "bert")
    old = hub.add("datasets", "acme/reviews", reviews(tmp_path / "old", 18), revision="v1")
    hub.add("datasets", "acme/reviews", reviews(tmp_path / "new", 26))
    for revision, expected in {"v1": 18, old: 18, "main": 26}.items():
        ended = run(tmp_path, home, hub, data={"train": {"revision": revision}})
        assert ended.returncode == 0, ended.stderr
        assert samples(tmp_path) == expected
    offline = run(tmp_path, home, None, {"HF_HUB_OFFLINE": "1"}, data={"train": {"revision": "v1"}})
    assert offline.returncode == 0, offline.stderr
    assert samples(tmp_path) == 18
    absent = run(tmp_path, home, hub, data={"train": {"revision": "v2"}})
    assert absent.returncode == ExitCode.INVALID
    assert "data.train.revision: hf://acme/reviews has no revision 'v2'" in absent.stderr
    absent = run(tmp_path, home, hub, model={"revision": "v2"})
    assert absent.returncode == ExitCode.INVALID
    assert "model.revision: hf://acme/bert has no revision 'v2'" in absent.stderr


@pytest.mark.parametrize("gated", ["models", "datasets"])
def test_a_gated_repository(gated: str, hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
    hub.add("models", "acme/bert", claims / "models" / "bert", token=TOKEN if gated == "models" else None)
    hub.add("datasets", "acme/reviews", reviews(tmp_path / "set"), token=TOKEN if gated == "datasets" else None)
    field = {"models": "model.source: hf://acme/bert", "datasets": "data.train.source: hf://acme/reviews"}[gated]
    for environment in ({}, {"HF_TOKEN": "hf_" + "y" * 34}):
        refused = run(tmp_path, home, hub, environment)
        assert refused.returncode == ExitCode.INVALID
        assert f"{field}: this {gated.removesuffix('s')} is gated" in refused.stderr
        assert "accept its license on its Hugging Face Hub page, and set HF_TOKEN to an access token" in refused.stderr
        assert "Traceback" not in refused.stderr
    allowed = run(tmp_path, home, hub, {"HF_TOKEN": TOKEN})
    assert allowed.returncode == 0, allowed.stderr


def test_repositories_that_are_not_there(hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
    absent = run(tmp_path, home, hub)
    assert absent.returncode == ExitCode.INVALID
    assert "model.source: hf://acme/bert: the model 'acme/bert' was not found on the Hugging Face Hub" in absent.stderr
    hub.add("models", "acme/bert", claims / "models" / "bert")
    absent = run(tmp_path, home, hub)
    assert absent.returncode == ExitCode.INVALID
    assert (
        "data.train.source: hf://acme/reviews: the dataset 'acme/reviews' was not found on the Hugging Face Hub"
        in absent.stderr
    )


def test_a_hub_that_cannot_be_reached_is_tried_again(home: Path, claims: Path, tmp_path: Path) -> None:
    model = {"source": "pvc://models/bert"}
    (tmp_path / ".finetune" / "claims").mkdir(parents=True)
    (tmp_path / ".finetune" / "claims" / "models").symlink_to(claims / "models")
    ended = run(tmp_path, home, None, model=model)
    assert ended.returncode == ExitCode.FAILED, "which is retried"
    message = "the Hugging Face Hub (http://127.0.0.1:9) is unreachable"
    assert f"data.train.source: hf://acme/reviews: {message}" in ended.stderr
    ended = run(tmp_path, home, None)
    assert ended.returncode == ExitCode.FAILED
    assert f"model.source: hf://acme/bert: {message}" in ended.stderr


def test_a_configuration_downloads_no_other(hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
    hub.add("models", "acme/bert", claims / "models" / "bert")
    folder = tmp_path / "set"
    tiny.write_rows(folder / "en", tiny.reviews(20), "train.parquet")
    tiny.write_rows(folder / "de", tiny.reviews(10), "train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en/*.parquet\n"
        "- config_name: de\n  data_files: de/*.parquet\n---\n"
    )
    hub.add("datasets", "acme/reviews", folder)
    ended = run(tmp_path, home, hub, data={"train": {"config": "de"}})
    assert ended.returncode == 0, ended.stderr
    assert samples(tmp_path) == 10
    assert not any("resolve" in request and "/en/" in request for request in hub.requests)
    wrong = run(tmp_path, home, hub, data={"train": {"config": "fr"}})
    assert "data.train.config: hf://acme/reviews has no configuration 'fr'; available: en, de" in wrong.stderr


@pytest.mark.parametrize("kind", ["classes", "table", "card"])
def test_images_are_read_through_the_links_of_the_cache(kind: str, hub: Hub, home: Path, tmp_path: Path) -> None:
    tiny.write_image_classifier(tmp_path / "models" / "vit")
    hub.add("datasets", "acme/pictures", pictures(tmp_path / "set", kind))
    (tmp_path / ".finetune" / "claims").mkdir(parents=True)
    (tmp_path / ".finetune" / "claims" / "models").symlink_to(tmp_path / "models")
    data = {"train": {"source": "hf://acme/pictures"}}
    ended = run(tmp_path, home, hub, model={"source": "pvc://models/vit"}, task="ImageClassification", data=data)
    assert ended.returncode == 0, ended.stderr
    assert samples(tmp_path) == 24
    shutil.rmtree(tmp_path / "out")
    moved = home.rename(home.with_name("moved"))
    home.symlink_to(moved)
    offline = {"HF_HUB_OFFLINE": "1"}
    ended = run(
        tmp_path, home, None, offline, model={"source": "pvc://models/vit"}, task="ImageClassification", data=data
    )
    assert ended.returncode == 0, ended.stderr


def pictures(folder: Path, kind: str) -> Path:
    """A repository of images: a folder for each class, or a table beside them, which a card may name."""
    rows = []
    for number, row in enumerate(tiny.captioned(24)):
        name = f"{row['label']}/{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(row["image"]["bytes"])
        rows.append(f"{name},{row['label']}\n")
    if kind != "classes":
        (folder / "metadata.csv").write_text("file_name,label\n" + "".join(rows))
    if kind == "card":
        (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '**'\n---\n")
    return folder


def test_the_gated_example(hub: Hub, home: Path, tmp_path: Path) -> None:
    """With a stand-in for the model, as small as it gets, behind the same door."""
    rows = {"train": tiny.chats(16), "test": tiny.chats(8)}
    for split, some in rows.items():
        tiny.write_rows(tmp_path / "set" / "data", some, f"{split}-00000-of-00001.parquet")
    hub.add("datasets", "HuggingFaceH4/no_robots", tmp_path / "set")
    model = tiny.write_language_model(tmp_path / "model", tied=True)
    hub.add("models", "meta-llama/Llama-3.2-1B-Instruct", model, token=TOKEN)
    small = ["resources.gpusPerNode=0", "training.batchSize=8", "data.maxLength=64", "data.workers=0"]
    arguments = [str(GATED_EXAMPLE), "--claim", f"models={tmp_path}", *(w for it in small for w in ("--set", it))]
    refused = finetune(tmp_path, home, hub, None, *arguments)
    assert refused.returncode == ExitCode.INVALID
    assert "model.source: hf://meta-llama/Llama-3.2-1B-Instruct: this model is gated" in refused.stderr
    allowed = finetune(tmp_path, home, hub, {"HF_TOKEN": TOKEN}, *arguments)
    assert allowed.returncode == 0, allowed.stderr
    assert "allow_patterns" not in allowed.stderr
    assert (tmp_path / "gated-model" / "model.safetensors").is_file()
