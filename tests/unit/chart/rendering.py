"""Renders the chart with Helm and parses the objects."""

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
    """The rendered objects of the chart."""

    objects: tuple[Object, ...]

    def all(self, *kinds: str) -> list[Object]:
        """The objects of the given kinds."""
        return [each for each in self.objects if each["kind"] in kinds]

    def only(self, kind: str) -> Object:
        """The single object of a kind."""
        (match,) = self.all(kind)
        return match

    @property
    def pod(self) -> Object:
        """The pod spec of the operator."""
        spec: Object = self.only("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def config(self) -> str:
        """The text of the configuration file of the operator."""
        text: str = self.only("ConfigMap")["data"]["config.yaml"]
        return text


@dataclass(frozen=True)
class Chart:
    """The chart of this checkout."""

    helm: Path
    scratch: Path
    folder: Path = REPOSITORY / "helm" / "finetune-operator"

    def render(self, **values: Any) -> Rendered:
        """Render the chart with `helm template`."""
        done = self._template(values)
        assert done.returncode == 0, done.stderr
        return Rendered(tuple(each for each in YAML(typ="safe").load_all(done.stdout) if each))

    def render_error(self, **values: Any) -> str:
        """The error of Helm for invalid values."""
        done = self._template(values)
        assert done.returncode != 0, "Helm accepted the values"
        return done.stderr

    def lint(self) -> "subprocess.CompletedProcess[str]":
        """Run `helm lint --strict`."""
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
        # Ignore plugins and clusters of the user.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        homes = {f"HELM_{kind}_HOME": str(self.scratch) for kind in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [self.helm, *argv], env={**environment, **homes}, capture_output=True, text=True, timeout=60, check=False
        )
