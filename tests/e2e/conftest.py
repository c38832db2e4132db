"""Fixtures of the end-to-end tests: the chart, the operator image and the inputs of the example on a real node."""

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
TESTED_TRAINER_IMAGES = "trainer-image-proven"


@pytest.fixture(scope="session")
def trainer_image(node: Node, require_tier: Callable[[preflight.Tier], None]) -> Iterator[str]:
    """The image of trainer pods.

    By default it is the host image, with the Python environment of this checkout. `FINETUNE_E2E_TRAINER=image` selects
    the image built from the Dockerfile. That is also the default in CI if the Dockerfile or the lock file has changed
    since the tests last passed with it, and if a trainer pod mounts a volume over this checkout, such as one in /tmp.
    """
    require_tier(preflight.IMAGES)
    key = cache.digest(ROOT / "trainer" / "Dockerfile", ROOT / "uv.lock")
    is_untested = bool(os.environ.get("CI")) and not cache.entry_path(TESTED_TRAINER_IMAGES, key).exists()
    default = "image" if is_untested or host_image.is_shadowed(*POD_DIRS) else "bound"
    if os.environ.get("FINETUNE_E2E_TRAINER", default) == "bound":
        yield host_image.NAME
        return
    node.import_image(images.build(ROOT / "trainer" / "Dockerfile", ROOT, TRAINER_IMAGE))
    yield TRAINER_IMAGE
    cache.get_or_create(TESTED_TRAINER_IMAGES, key, lambda _: None)


@pytest.fixture(scope="session")
def operator_image(node: Node, require_tier: Callable[[preflight.Tier], None]) -> str:
    """The image of the operator, built from its Dockerfile."""
    require_tier(preflight.IMAGES)
    node.import_image(images.build(ROOT / "operator" / "Dockerfile", ROOT, OPERATOR_IMAGE))
    return OPERATOR_IMAGE


@pytest.fixture(scope="session")
def installed(node: Node, helm: Path, operator_image: str, trainer_image: str) -> None:
    """Install the chart with Helm, and wait until the operator is ready."""
    values = {
        "image": image(operator_image),
        "trainer": {"image": image(trainer_image), "imagePullDeadlineSeconds": 20},
        "resources": {"requests": {"cpu": "0"}},  # a job requests both CPUs of a node with two
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
    """The values of the chart for an image that is already on the node."""
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}


@pytest.fixture(scope="session")
def inputs() -> Path:
    """The inputs of the example, prepared once per checkout."""
    folder = ROOT / ".finetune" / "claims" / "digits"
    # Two pytest-xdist workers may prepare them at the same time.
    with cache.lock(f"inputs-{cache.digest(str(folder))}"):
        result = forkserver.run([ROOT / "examples" / "two-optimizers" / "prepare.py", folder], timeout=600)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def namespace(node: Node, installed: None, inputs: Path) -> Namespace:
    """A namespace with restricted Pod Security, and the claims `digits` (inputs of the example) and `models`."""
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
    """The manifest of the example."""
    manifest: dict[str, Any] = YAML(typ="safe").load(ROOT / "examples" / "two-optimizers" / "job.yaml")
    return manifest
