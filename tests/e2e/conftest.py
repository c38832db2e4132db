"""The product as a cluster runs it: chart, operator image and example inputs on a real node, once for all tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from e2e.namespace import NAMESPACE, ROOT, SYSTEM, Namespace
from finetune_api.names import POD_DIRS
from harness import cache, forkserver, host_image, images, preflight
from harness.api import Api
from harness.node import Node

OPERATOR_IMAGE = "localhost/finetune-operator:e2e"
TRAINER_IMAGE = "localhost/finetune-trainer:e2e"
PROVEN = "trainer-image-proven"


@pytest.fixture(scope="session")
def trainer_image(node: Node, require_tier: Callable[[preflight.Tier], None]) -> Iterator[str]:
    """The image trainer pods run.

    Every day it is an empty one that shows this checkout's environment. FINETUNE_E2E_TRAINER=image builds the real one;
    in CI that happens whenever its Dockerfile or the lock file changed since it was last seen to work, and anywhere
    when the checkout lies where a trainer pod mounts something of its own, such as /tmp.
    """
    require_tier(preflight.IMAGES)
    key = cache.digest(ROOT / "trainer" / "Dockerfile", ROOT / "uv.lock")
    unproven = bool(os.environ.get("CI")) and not cache.entry_path(PROVEN, key).exists()
    everyday = "image" if unproven or host_image.is_shadowed(*POD_DIRS) else "bound"
    if os.environ.get("FINETUNE_E2E_TRAINER", everyday) == "bound":
        yield host_image.NAME
        return
    node.import_image(images.build(ROOT / "trainer" / "Dockerfile", ROOT, TRAINER_IMAGE))
    yield TRAINER_IMAGE
    cache.get_or_create(PROVEN, key, lambda _: None)


@pytest.fixture(scope="session")
def operator_image(node: Node, require_tier: Callable[[preflight.Tier], None]) -> str:
    """The operator's image, always the real one."""
    require_tier(preflight.IMAGES)
    node.import_image(images.build(ROOT / "operator" / "Dockerfile", ROOT, OPERATOR_IMAGE))
    return OPERATOR_IMAGE


@pytest.fixture(scope="session")
def installed(node: Node, helm: Path, operator_image: str, trainer_image: str) -> None:
    """The chart, installed with helm; the operator is ready."""
    values = {
        "image": image(operator_image),
        "trainer": {"image": image(trainer_image), "imagePullDeadlineSeconds": 20},
        "resources": {"requests": {"cpu": "0"}},  # on two cores a job wants both
        "progressIntervalSeconds": 3,
        "scrapeIntervalSeconds": 1,
    }
    target = [f"--namespace={SYSTEM}", "--create-namespace", "--values=-", "--wait", "--timeout=3m"]
    subprocess.run(
        [helm, "install", "finetune", ROOT / "helm" / "finetune-operator", *target],
        env=os.environ | {"KUBECONFIG": str(node.kubeconfig)},
        input=json.dumps(values),
        text=True,
        check=True,
    )


def image(name: str) -> dict[str, str]:
    """An image that is on the node already, as the chart's values name it."""
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}


@pytest.fixture(scope="session")
def inputs() -> Path:
    """The example's inputs, prepared once per checkout."""
    folder = ROOT / ".finetune" / "claims" / "digits"
    # Two workers of pytest-xdist may want them at once.
    with cache.lock(f"inputs-{cache.digest(str(folder))}"):
        prepared = forkserver.run([ROOT / "examples" / "two-optimizers" / "prepare.py", folder], timeout=600)
    assert prepared.returncode == 0, prepared.stderr
    return folder


@pytest.fixture(scope="session")
def namespace(node: Node, installed: None, inputs: Path) -> Namespace:
    """A namespace under restricted Pod Security, with the claims `digits` (the example's inputs) and `models`."""
    node.kubectl("create", "namespace", NAMESPACE)
    node.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    namespace = Namespace(node, Api(node.kubeconfig))
    namespace.create_claim("digits")
    namespace.create_claim("models")
    folder = node.claim_path(NAMESPACE, "digits")
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    return namespace


@pytest.fixture(scope="session")
def example() -> dict[str, Any]:
    """The example's job, as a user applies it."""
    document: dict[str, Any] = YAML(typ="safe").load(ROOT / "examples" / "two-optimizers" / "job.yaml")
    return document
