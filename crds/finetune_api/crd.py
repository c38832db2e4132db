"""Generates the CustomResourceDefinition from the models; `make generate` writes it, a test compares it.

Defaults are part of the descriptions only: in a CRD, they would be written into stored objects, where they cannot be
distinguished from what the user set.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import walk_tree

from finetune_api.descriptions import Schema, move_defaults
from finetune_api.job import ALWAYS_MUTABLE, FineTuneJob, JobSpec
from finetune_api.names import GROUP, JOB_KIND, JOB_PLURAL, VERSION
from finetune_api.structural_schema import to_structural

COLUMNS: list[Schema] = [
    {"name": "Status", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Succeeded")].reason'},
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress.summary"},
    {"name": "Loss", "type": "number", "jsonPath": '.status.metrics[?(@.name=="train/loss")].value'},
    {
        "name": "Best",
        "type": "number",
        "jsonPath": ".status.best.value",
        "description": "Best value of the metric that selects the best checkpoint",
    },
    {"name": "ETA", "type": "string", "jsonPath": ".status.progress.estimatedCompletionTime"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Attempt", "type": "integer", "jsonPath": ".status.attempt", "priority": 1},
    {"name": "Queue", "type": "string", "jsonPath": ".spec.queueName", "priority": 1},
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.source", "priority": 1},
    {
        "name": "Message",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Succeeded")].message',
        "priority": 1,
    },
]


def job_crd() -> Schema:
    """The CustomResourceDefinition of FineTuneJob."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{JOB_PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": JOB_KIND,
                "listKind": f"{JOB_KIND}List",
                "plural": JOB_PLURAL,
                "singular": JOB_KIND.lower(),
                "shortNames": ["ftj"],
                "categories": ["all", "finetune"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": COLUMNS,
                    "selectableFields": [{"jsonPath": ".spec.suspend"}, {"jsonPath": ".spec.queueName"}],
                    "schema": {"openAPIV3Schema": _object_schema()},
                }
            ],
        },
    }


def to_yaml(document: Schema) -> str:
    """The document as YAML in block style, with a header that says how it was generated."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.representer.ignore_aliases = lambda *_: True
    document, stream = deepcopy(document), StringIO()
    walk_tree(document)  # multi-line strings as literal blocks
    yaml.dump(document, stream)
    return "# Generated from finetune_api by `make generate`; edit the models instead.\n" + stream.getvalue()


def _object_schema() -> Schema:
    schema = FineTuneJob.model_json_schema(by_alias=True, ref_template="{model}")
    root = to_structural(schema, schema["$defs"])
    for name, described in (("spec", True), ("status", False)):
        root["properties"][name] = move_defaults(root["properties"][name], described=described)
    root["properties"]["apiVersion"] = root["properties"]["kind"] = {"type": "string"}
    # The API server allows rules about no other field of metadata than the name.
    name = root["properties"]["metadata"]["properties"]["name"]
    root["properties"]["metadata"] = {"type": "object", "properties": {"name": name}}
    root["properties"]["status"]["default"] = {"observedGeneration": -1}
    root["required"] = ["metadata", "spec"]
    root["x-kubernetes-validations"] = _immutability_rules()
    return root


def _immutability_rules() -> list[Schema]:
    """One rule per spec field, so that the error names the field; comparing `has` catches adding and removing it."""
    fields = [field.alias or name for name, field in JobSpec.model_fields.items()]
    return [
        {
            "rule": "!has(oldSelf.status) || !has(oldSelf.status.attempt) || oldSelf.status.attempt < 1 || "
            f"(has(self.spec.{name}) == has(oldSelf.spec.{name}) && "
            f"(!has(self.spec.{name}) || self.spec.{name} == oldSelf.spec.{name}))",
            "message": f"spec.{name} is immutable once an attempt exists; delete and recreate the job to change it",
            "fieldPath": f".spec.{name}",
        }
        for name in fields
        if name not in ALWAYS_MUTABLE
    ]


def main() -> None:
    """Write the CRD into each directory named on the command line."""
    for folder in sys.argv[1:]:
        target = Path(folder) / f"{JOB_PLURAL}.{GROUP}.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(to_yaml(job_crd()), encoding="utf-8")


if __name__ == "__main__":
    main()
