"""Models and datasets from a local Hugging Face Hub: download, cache, revisions, gated and missing repositories.

Each test has its own cache, and each run is a separate process, because `huggingface_hub` reads its environment
variables when it is imported.
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
from harness.hub import Hub, serve_hub
from unit.trainer import tiny

pytestmark = pytest.mark.timeout(600)

GATED_EXAMPLE = ROOT / "examples" / "gated-model" / "job.yaml"
TOKEN = "hf_" + "x" * 34


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claims directory, with a tiny model in the claim `models`."""
    folder: Path = tmp_path_factory.mktemp("claims")
    tiny.write_classifier(folder / "models" / "bert")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The value of HF_HOME."""
    return tmp_path / "huggingface"


def write_reviews(folder: Path, train: int = 26) -> Path:
    """Write a dataset repository with two splits, a dataset card, and code that must not be run."""
    tiny.write_rows(folder / "data", tiny.reviews(train), "train-00000-of-00001.parquet")
    tiny.write_rows(folder / "data", tiny.reviews(8), "test-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\nReviews of films.\n")
    (folder / "reviews.py").write_text("raise SystemExit('repository code was run')")
    return folder


def run(
    tmp_path: Path, home: Path, hub: Hub | None, environment: Mapping[str, str] | None = None, **spec: Any
) -> subprocess.CompletedProcess[str]:
    """Run `finetune run` with a model and a dataset of the Hub; `spec` is merged into the spec of the job."""
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
    """Run `finetune run` without the Hugging Face variables of this process; without `hub`, the Hub is unreachable."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    endpoint = hub.address if hub else "http://127.0.0.1:9"
    variables = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1", **(environment or {})}
    return forkserver.run(
        [forkserver.script("finetune"), "run", *arguments], cwd=cwd, env=inherited | variables, timeout=120
    )


def train_samples(tmp_path: Path) -> int:
    """`samples.train` of run.json."""
    content = json.loads((tmp_path / "out" / "result" / "run.json").read_text())
    return int(content["samples"]["train"])


def test_cached_repositories_are_used_offline(hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
    hub.add("models", "acme/bert", claims / "models" / "bert")
    hub.add("datasets", "acme/reviews", write_reviews(tmp_path / "reviews"))
    online = run(tmp_path, home, hub, data={"test": {"source": "hf://acme/reviews"}})
    assert online.returncode == 0, online.stderr
    assert train_samples(tmp_path) == 26
    assert "%|" not in online.stderr
    assert "Generating" not in online.stderr
    assert not any("reviews.py" in request for request in hub.requests), "code must not be downloaded"
    shutil.rmtree(tmp_path / "out")
    offline = run(tmp_path, home, None, {"HF_HUB_OFFLINE": "1"}, data={"test": {"source": "hf://acme/reviews"}})
    assert offline.returncode == 0, offline.stderr
    assert train_samples(tmp_path) == 26
    absent = run(tmp_path, home, None, {"HF_HUB_OFFLINE": "1"}, data={"train": {"source": "hf://acme/others"}})
    assert absent.returncode == ExitCode.INVALID
    assert "data.train.source: hf://acme/others: not in the cache" in absent.stderr
    assert "HF_HUB_OFFLINE disables downloads" in absent.stderr


def test_revision_is_a_branch_or_a_commit_hash(hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
    hub.add("models", "acme/bert", claims / "models" / "bert")
    old = hub.add("datasets", "acme/reviews", write_reviews(tmp_path / "old", 18), revision="v1")
    hub.add("datasets", "acme/reviews", write_reviews(tmp_path / "new", 26))
    for revision, expected in {"v1": 18, old: 18, "main": 26}.items():
        completed = run(tmp_path, home, hub, data={"train": {"revision": revision}})
        assert completed.returncode == 0, completed.stderr
        assert train_samples(tmp_path) == expected
    offline = run(tmp_path, home, None, {"HF_HUB_OFFLINE": "1"}, data={"train": {"revision": "v1"}})
    assert offline.returncode == 0, offline.stderr
    assert train_samples(tmp_path) == 18
    absent = run(tmp_path, home, hub, data={"train": {"revision": "v2"}})
    assert absent.returncode == ExitCode.INVALID
    assert "data.train.revision: hf://acme/reviews has no revision 'v2'" in absent.stderr
    absent = run(tmp_path, home, hub, model={"revision": "v2"})
    assert absent.returncode == ExitCode.INVALID
    assert "model.revision: hf://acme/bert has no revision 'v2'" in absent.stderr


@pytest.mark.parametrize("gated", ["models", "datasets"])
def test_gated_repository_requires_an_authorized_token(
    gated: str, hub: Hub, home: Path, claims: Path, tmp_path: Path
) -> None:
    hub.add("models", "acme/bert", claims / "models" / "bert", token=TOKEN if gated == "models" else None)
    hub.add("datasets", "acme/reviews", write_reviews(tmp_path / "set"), token=TOKEN if gated == "datasets" else None)
    field = {"models": "model.source: hf://acme/bert", "datasets": "data.train.source: hf://acme/reviews"}[gated]
    for environment in ({}, {"HF_TOKEN": "hf_" + "y" * 34}):
        refused = run(tmp_path, home, hub, environment)
        assert refused.returncode == ExitCode.INVALID
        assert f"{field}: this {gated.removesuffix('s')} is gated" in refused.stderr
        assert "accept its license on its Hugging Face Hub page, and set HF_TOKEN to an access token" in refused.stderr
        assert "Traceback" not in refused.stderr
    allowed = run(tmp_path, home, hub, {"HF_TOKEN": TOKEN})
    assert allowed.returncode == 0, allowed.stderr


def test_missing_repository_is_named(hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
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


def test_unreachable_hub_is_retryable(home: Path, claims: Path, tmp_path: Path) -> None:
    model = {"source": "pvc://models/bert"}
    (tmp_path / ".finetune" / "claims").mkdir(parents=True)
    (tmp_path / ".finetune" / "claims" / "models").symlink_to(claims / "models")
    completed = run(tmp_path, home, None, model=model)
    assert completed.returncode == ExitCode.FAILED, "the exit code of a retryable failure"
    message = "the Hugging Face Hub (http://127.0.0.1:9) is unreachable"
    assert f"data.train.source: hf://acme/reviews: {message}" in completed.stderr
    completed = run(tmp_path, home, None)
    assert completed.returncode == ExitCode.FAILED
    assert f"model.source: hf://acme/bert: {message}" in completed.stderr


def test_only_files_of_the_configuration_are_downloaded(hub: Hub, home: Path, claims: Path, tmp_path: Path) -> None:
    hub.add("models", "acme/bert", claims / "models" / "bert")
    folder = tmp_path / "set"
    tiny.write_rows(folder / "en", tiny.reviews(20), "train.parquet")
    tiny.write_rows(folder / "de", tiny.reviews(10), "train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en/*.parquet\n"
        "- config_name: de\n  data_files: de/*.parquet\n---\n"
    )
    hub.add("datasets", "acme/reviews", folder)
    completed = run(tmp_path, home, hub, data={"train": {"config": "de"}})
    assert completed.returncode == 0, completed.stderr
    assert train_samples(tmp_path) == 10
    assert not any("resolve" in request and "/en/" in request for request in hub.requests)
    wrong = run(tmp_path, home, hub, data={"train": {"config": "fr"}})
    assert "data.train.config: hf://acme/reviews has no configuration 'fr'; available: en, de" in wrong.stderr


@pytest.mark.parametrize("kind", ["class-folders", "metadata-csv", "dataset-card"])
def test_images_are_read_through_symlinks_of_the_cache(kind: str, hub: Hub, home: Path, tmp_path: Path) -> None:
    tiny.write_image_classifier(tmp_path / "models" / "vit")
    hub.add("datasets", "acme/images", write_images(tmp_path / "set", kind))
    (tmp_path / ".finetune" / "claims").mkdir(parents=True)
    (tmp_path / ".finetune" / "claims" / "models").symlink_to(tmp_path / "models")
    data = {"train": {"source": "hf://acme/images"}}
    completed = run(tmp_path, home, hub, model={"source": "pvc://models/vit"}, task="ImageClassification", data=data)
    assert completed.returncode == 0, completed.stderr
    assert train_samples(tmp_path) == 24
    shutil.rmtree(tmp_path / "out")
    moved = home.rename(home.with_name("moved"))
    home.symlink_to(moved)
    offline = {"HF_HUB_OFFLINE": "1"}
    completed = run(
        tmp_path, home, None, offline, model={"source": "pvc://models/vit"}, task="ImageClassification", data=data
    )
    assert completed.returncode == 0, completed.stderr


def write_images(folder: Path, kind: str) -> Path:
    """Write images in a folder per class, optionally with a metadata.csv, and a dataset card that lists all files."""
    rows = []
    for number, row in enumerate(tiny.captioned(24)):
        name = f"{row['label']}/{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(row["image"]["bytes"])
        rows.append(f"{name},{row['label']}\n")
    if kind != "class-folders":
        (folder / "metadata.csv").write_text("file_name,label\n" + "".join(rows))
    if kind == "dataset-card":
        (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '**'\n---\n")
    return folder


def test_gated_example_runs_with_a_token(hub: Hub, home: Path, tmp_path: Path) -> None:
    """The example, with a tiny gated model in place of the real one."""
    rows = {"train": tiny.chats(16), "test": tiny.chats(8)}
    for split, samples in rows.items():
        tiny.write_rows(tmp_path / "set" / "data", samples, f"{split}-00000-of-00001.parquet")
    hub.add("datasets", "HuggingFaceH4/no_robots", tmp_path / "set")
    model = tiny.write_language_model(tmp_path / "model", tied=True)
    hub.add("models", "meta-llama/Llama-3.2-1B-Instruct", model, token=TOKEN)
    overrides = ["resources.gpusPerNode=0", "training.batchSize=8", "data.maxLength=64", "data.workers=0"]
    arguments = [str(GATED_EXAMPLE), "--claim", f"models={tmp_path}", *(w for it in overrides for w in ("--set", it))]
    refused = finetune(tmp_path, home, hub, None, *arguments)
    assert refused.returncode == ExitCode.INVALID
    assert "model.source: hf://meta-llama/Llama-3.2-1B-Instruct: this model is gated" in refused.stderr
    allowed = finetune(tmp_path, home, hub, {"HF_TOKEN": TOKEN}, *arguments)
    assert allowed.returncode == 0, allowed.stderr
    assert "allow_patterns" not in allowed.stderr
    assert (tmp_path / "gated-model" / "model.safetensors").is_file()
