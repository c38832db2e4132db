"""A real API server and `finetune validate` accept the same jobs, and both name the field of a mistake."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.job import parse
from finetune_api.loading import check_manifests
from harness.api import Api
from harness.cluster import Cluster

pytestmark = pytest.mark.cluster

CRD = Path(__file__).parents[2] / "crds" / "finetunejobs.finetune.dev.yaml"
JOBS = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs"

VALID: dict[str, Any] = {
    "model": {"source": "hf://openai/clip-vit-base-patch32", "revision": "3d74acf"},
    "task": "Contrastive",
    "data": {
        "train": {"source": "pvc://captions/train"},
        "validation": {"fraction": 0.1},
        "columns": {"image": "image", "text": "caption"},
        "maxLength": 77,
        "workers": 0,
    },
    "training": {
        "epochs": 2.5,
        "batchSize": 64,
        "microBatchSize": 64,
        "precision": "BF16",
        "clipGradNorm": 1,
        "seed": 17,
    },
    "evaluation": {"every": {"steps": 50}, "metric": "eval/loss", "earlyStopping": {"patience": 2}},
    "modules": [
        {
            "name": "visual",
            "parameters": ["vision_model.*"],
            "exclude": ["*.bias"],
            "optimizer": {"type": "SGD", "learningRate": 1e-3, "momentum": 0.9, "nesterov": True},
            "schedule": [{"type": "Warmup", "steps": 200}, {"type": "CosineAnnealing", "cycles": 3, "minFactor": 0.01}],
            "clipGradNorm": 1.0,
        },
        {
            "name": "textual",
            "parameters": ["text_model.*"],
            "optimizer": {"type": "AdamW", "learningRate": 2e-5},
            "regularization": {"l1": 1e-7},
            "schedule": [{"type": "Constant", "fraction": 0.05}, {"type": "TimeDecay", "rate": 0.5, "unit": "Epoch"}],
            "freeze": {"untilEpoch": 1, "fromEpoch": 2},
        },
        {"name": "temperature", "parameters": ["logit_scale"], "frozen": True},
        {
            "name": "head",
            "parameters": ["head.*"],
            "optimizer": {"type": "RMSprop", "learningRate": 1, "centered": True},
            "schedule": [{"type": "StepDecay", "factor": 0.1, "milestones": [1, 2]}],
        },
    ],
    "unmatched": "Freeze",
    "checkpoint": {"everySteps": 500, "keep": 2},
    "output": {"destination": "pvc://models/out", "ifExists": "Overwrite"},
    "resources": {"gpusPerNode": 1, "device": "CUDA", "cpu": "8", "memory": "32Gi", "sharedMemory": "1Gi"},
    "runtime": {
        "image": "registry.example/trainer:1",
        "env": [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
            {"name": "PLAIN", "value": "x"},
        ],
    },
    "retry": {"limit": 0, "backoffSeconds": 1},
    "suspend": False,
}
MINIMAL = {key: VALID[key] for key in ("model", "data")}

INVALID: list[tuple[str, Any]] = [
    ("model.source", "s3://bucket"),
    ("model.source", "pvc://claim/../etc"),
    ("model.source", "hf://a/b/c"),
    ("model.revision", ""),
    ("task", "Contrast"),
    ("data.validation.fraction", 1),
    ("data.validation.fraction", 0),
    ("data.validation.source", "pvc://a/b"),
    ("data.maxLength", 7),
    ("data.workers", 65),
    ("data.columns.image", 3),
    ("training.epochs", 0),
    ("training.steps", 5),
    ("training.batchSize", 0),
    ("training.batchSize", "64"),
    ("training.batchSize", 64.5),
    ("training.microBatchSize", 48),
    ("training.precision", "bf16"),
    ("training.clipGradNorm", 0),
    ("training.seed", -1),
    ("training.deterministic", "yes"),
    ("evaluation.every.epochs", 1),
    ("evaluation.metric", "loss"),
    ("evaluation.direction", "Max"),
    ("evaluation.earlyStopping.patience", 0),
    ("modules", []),
    ("modules.0.name", "textual"),
    ("modules.0.name", "visual tower"),
    ("modules.0.parameters", []),
    ("modules.0.optimizer.type", "Sgd"),
    ("modules.0.optimizer.learningRate", 0),
    ("modules.0.optimizer.learningRate", "1e-3"),
    ("modules.0.optimizer.momentum", 1),
    ("modules.0.optimizer.dampening", 0.5),
    ("modules.0.optimizer.beta1", 0.9),
    ("modules.0.schedule", []),
    ("modules.0.schedule.0.epochs", 1),
    ("modules.0.schedule", [{"type": "Warmup"}, {"type": "CosineAnnealing"}]),
    ("modules.0.schedule", [{"type": "Warmup"}, {"type": "CosineAnnealing", "steps": 10}]),
    ("modules.0.schedule.0.rate", 1),
    ("modules.0.schedule.1.periodMultiplier", 2),
    ("modules.0.schedule.1.periodSteps", 2),
    ("modules.0.clipGradNorm", 0),
    ("modules.1.schedule.1.unit", "Epochs"),
    ("modules.1.regularization.l1", -1),
    ("modules.1.freeze.fromEpoch", 1),
    ("modules.1.freeze.untilStep", 1),
    ("modules.1.decayExclude", "Biases"),
    ("modules.2.optimizer", {"type": "SGD", "learningRate": 1}),
    ("modules.2.frozen", False),
    ("modules.3.schedule.0.everySteps", 3),
    ("modules.3.schedule.0.factor", 2),
    ("modules.0.schedule.1", {"type": "Plateau", "factor": 1}),
    ("unmatched", "Ignore"),
    ("checkpoint.everyEpochs", 1),
    ("checkpoint.keep", 0),
    ("output.destination", "hf://a/b"),
    ("resources.nodes", 2),
    ("resources.gpusPerNode", 0),
    ("resources.memory", "32GiB"),
    ("resources.cpu", 0.5),
    ("runtime.env.0.value", "both"),
    ("runtime.env.0.valueFrom.configMapKeyRef", {"name": "a", "key": "b"}),
    ("runtime.env.1.name", "HF_TOKEN"),
    ("runtime.env.1.name", "1X"),
    ("retry.limit", 101),
    ("retry.backoffSeconds", 0),
    ("suspend", "true"),
    ("nodeSelectr", {}),
    ("modules.0.optimizer.momentun", 0.9),
]


def manifest(spec: dict[str, Any], name: str = "job") -> dict[str, Any]:
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}


def with_field(path: str, value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(VALID)
    node: Any = spec
    *parents, last = path.split(".")
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    node[int(last) if isinstance(node, list) else last] = value
    return spec


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Iterator[Api]:
    control_plane.kubectl("apply", "--server-side", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev", "--timeout=60s")
    api = Api(control_plane.kubeconfig)
    deadline = time.monotonic() + 30
    while not api.is_success(JOBS) and time.monotonic() < deadline:
        time.sleep(0.1)
    yield api
    control_plane.kubectl("delete", "ftj", "--all", "--namespace=default")


def server_error(api: Api, body: dict[str, Any]) -> str | None:
    response = api.post(JOBS, body, dryRun="All", fieldValidation="Strict")
    return None if response.is_success else str(response.json()["message"])


def our_error(body: dict[str, Any]) -> str | None:
    result = check_manifests(json.dumps(body), "job.json")[0]
    try:
        parse(body)
    except ValidationError:
        assert result.issues
    else:
        assert not result.issues
    return "\n".join(str(issue) for issue in result.issues) or None


@pytest.mark.parametrize("spec", [VALID, MINIMAL], ids=["valid", "minimal"])
def test_both_accept_valid_jobs(api: Api, spec: dict[str, Any]) -> None:
    assert (server_error(api, manifest(spec)), our_error(manifest(spec))) == (None, None)


@pytest.mark.parametrize(("path", "value"), INVALID, ids=[f"{path}={value}" for path, value in INVALID])
def test_both_reject_an_invalid_field_by_name(api: Api, path: str, value: Any) -> None:
    body = manifest(with_field(path, value))
    field = path.rsplit(".", maxsplit=1)[-1]
    server, ours = server_error(api, body), our_error(body)
    assert server is not None, f"the API server accepts {path}={value!r}; validate says: {ours}"
    assert ours is not None, f"validate accepts {path}={value!r}; the API server says: {server}"
    named = [key for key in path.split(".") if not key.isdigit()][:-1]
    for error in (server, ours):
        assert all(key in error for key in named[:1]), error
        assert field.isdigit() or field in error or named[-1] in error, error


@pytest.mark.parametrize("name", ["Job", "1job", "job.x", "j" * 41, "job-"])
def test_both_reject_invalid_names(api: Api, name: str) -> None:
    body = manifest(MINIMAL, name)
    assert server_error(api, body) is not None
    assert our_error(body) is not None


def test_observed_generation_of_a_new_job(api: Api, control_plane: Cluster) -> None:
    assert api.post(JOBS, manifest(MINIMAL, "unseen")).is_success
    assert control_plane.get("ftj", "unseen")["status"] == {"observedGeneration": -1}
