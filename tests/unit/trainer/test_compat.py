"""Internals of `datasets` and `transformers` are used in `finetune_trainer.compat` only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import finetune_trainer

PACKAGE = Path(finetune_trainer.__file__).parent
LIBRARIES = ("datasets", "transformers")
PUBLIC_MODULES = {"datasets", "datasets.logging", "transformers", "transformers.modeling_outputs", "transformers.utils"}
ALLOWED_PRIVATE_NAMES = {
    ("os", "_exit"),
    ("torch", "_foreach_mul_"),
    ("torch", "_foreach_add_"),
    ("torch", "_foreach_norm"),
    ("torch", "_foreach_sign"),
}
"""Names with an underscore that their libraries document or use as API."""


def internal_uses(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in LIBRARIES:
                if module not in PUBLIC_MODULES:
                    yield module
            case ast.Import(names=names):
                yield from (
                    it.name for it in names if it.name.split(".")[0] in LIBRARIES and it.name not in PUBLIC_MODULES
                )
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id=library), attr=module)) if library in LIBRARIES:
                if module.islower() and f"{library}.{module}" not in PUBLIC_MODULES:
                    yield f"{library}.{module}"
            case ast.Attribute(value=value, attr=attr) if attr.startswith("_") and not attr.startswith("__"):
                owner = ast.unparse(value)
                if owner not in ("self", "cls") and (owner, attr) not in ALLOWED_PRIVATE_NAMES:
                    yield f"{owner}.{attr}"


def test_internals_are_used_in_compat_only() -> None:
    uses = {
        f"{file.relative_to(PACKAGE)}: {use}"
        for file in PACKAGE.rglob("*.py")
        if file.parent.name != "compat"
        for use in internal_uses(ast.parse(file.read_text()))
    }
    assert not uses


def test_internal_uses_are_found() -> None:
    source = """
import datasets.data_files
from transformers.models.auto.modeling_auto import MODEL_MAPPING
datasets.table.table_cast(table, schema)
model._init_weights(module)
"""
    assert sorted(internal_uses(ast.parse(source))) == [
        "datasets.data_files",
        "datasets.table",
        "model._init_weights",
        "transformers.models.auto.modeling_auto",
    ]
