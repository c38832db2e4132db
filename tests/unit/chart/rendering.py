"""The chart as its tests see it: values in, parsed objects or a refusal out. It is Helm itself that renders."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parents[3]
NAMESPACE = "finetune-system"
Object = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The objects that an installation would create."""

    objects: tuple[Object, ...]

    def all(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [each for each in self.objects if each["kind"] in kinds]

    def only(self, kind: str) -> Object:
        """The one object of a kind."""
        (found,) = self.all(kind)
        return found

    @property
    def pod(self) -> Object:
        """The spec of the operator's pod."""
        spec: Object = self.only("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def config(self) -> str:
        """The operator's settings, as it reads them."""
        text: str = self.only("ConfigMap")["data"]["config.yaml"]
        return text


@dataclass(frozen=True)
class Chart:
    """The chart in this checkout, and the Helm that renders it."""

    helm: Path
    scratch: Path
    folder: Path = REPOSITORY / "helm" / "finetune-operator"

    def render(self, **values: Any) -> Rendered:
        """What `helm install finetune` would create with these values."""
        done = self._template(values)
        assert done.returncode == 0, done.stderr
        return Rendered(tuple(each for each in YAML(typ="safe").load_all(done.stdout) if each))

    def refusal(self, **values: Any) -> str:
        """What Helm says about values that it must refuse."""
        done = self._template(values)
        assert done.returncode != 0, "these values were accepted"
        return done.stderr

    def lint(self) -> "subprocess.CompletedProcess[str]":
        """`helm lint --strict`."""
        return self._run("lint", "--strict", str(self.folder))

    def defaults(self) -> Object:
        """The content of values.yaml."""
        loaded: Object = YAML(typ="safe").load(self.folder / "values.yaml")
        return loaded

    def _template(self, values: Object) -> "subprocess.CompletedProcess[str]":
        file = self.scratch / "values.yaml"
        with file.open("w") as stream:
            YAML().dump(values, stream)
        return self._run("template", "finetune", str(self.folder), "--namespace", NAMESPACE, "--values", str(file))

    def _run(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        # What somebody set up for themselves, plug-ins and clusters, stays out of it.
        others = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        homes = {f"HELM_{kind}_HOME": str(self.scratch) for kind in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [self.helm, *argv], env={**others, **homes}, capture_output=True, text=True, timeout=60, check=False
        )
