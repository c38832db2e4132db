"""What `finetune plan` says: the effective job, its modules, the model as a tree with its owners, and what is missing.

The same twice, for people and for machines. Pure functions of a `Preview`; nothing is printed or looked up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from finetune_api.defaults import DEFAULT_MODULES, DefaultedJob
from finetune_api.job import FineTuneJob
from finetune_api.modules import Module
from finetune_trainer.cli.parameter_tree import Anatomy, Leaf, Name, ownership_tree
from finetune_trainer.cli.plan_table import (
    DEFAULTED,
    Row,
    colour,
    facts_grid,
    job_facts,
    manifest_of,
    manifest_yaml,
    number,
    plan_table,
    steps_phrase,
    summary,
)
from finetune_trainer.errors import UserError
from finetune_trainer.plan import RunPlan
from finetune_trainer.planning.presets import Proposal, modules_yaml


@dataclass(frozen=True)
class Preview:
    """What is known of a run before it, perhaps without its model or its data.

    Args:
        written: the job as its manifest says it.
        job: the effective job.
        rows: its modules.
        anatomy: the model's parameters and their owners; None when the model is out of reach.
        plan: everything, when model and data are at hand.
        steps: all, and those of an epoch; None when the data are not at hand.
        unknown: what could not be known, and why.
        proposal: modules for a job that has none.
        mistake: why a run would refuse the job, although all of this is known.
    """

    written: FineTuneJob
    job: DefaultedJob
    rows: tuple[Row, ...]
    anatomy: Anatomy | None = None
    plan: RunPlan | None = None
    steps: tuple[int, int] | None = None
    unknown: tuple[str, ...] = ()
    proposal: Proposal | None = None
    mistake: UserError | None = None

    @property
    def unmatched(self) -> list[str]:
        leaves = self.anatomy.leaves if self.anatomy else ()
        return [leaf.parameter.name for leaf in leaves if not leaf.owners]


# For people ------------------------------------------------------------------------------------------------------


def preview_view(preview: Preview) -> RenderableType:
    """The effective job, the plan, who owns what, what could be pasted, and what is not known."""
    length = steps_phrase(*preview.steps) if preview.steps else ""
    facts = summary(preview.plan) if preview.plan else job_facts(preview.job, length)
    parts: list[RenderableType] = [_manifest_view(preview), "", facts_grid(facts), "", plan_table(preview.rows)]
    if preview.anatomy:
        parts += ["", _tree_view(preview, preview.anatomy)]
    if preview.proposal:
        parts += ["", _proposal_view(preview.proposal)]
    parts += [Text.assemble("\n", ("not known: ", "bold yellow"), reason) for reason in preview.unknown]
    return Group(*parts)


def _manifest_view(preview: Preview) -> Text:
    """The effective job, what was left out in the manifest dimmed."""
    text = Text()
    for line in manifest_yaml(preview.job, preview.written).splitlines():
        text.append(f"{line}\n", "dim" if line.endswith(DEFAULTED) else "")
    text.rstrip()
    return text


def _tree_view(preview: Preview, anatomy: Anatomy) -> RenderableType:
    undecided = preview.written.spec.modules is None or preview.mistake is not None
    return ownership_tree(anatomy, _names(preview.job), overview=undecided)


def _names(job: DefaultedJob) -> Name:
    """How owners are called: each module in the colour it has everywhere, and what is nobody's so that it is seen."""
    modules = {module.name: (position, module) for position, module in enumerate(job.spec.modules)}
    left_out = job.spec.unmatched == "Freeze"
    nobody = Text("no module (frozen)", "yellow") if left_out else Text("no module", "bold red")

    def name(owners: tuple[str, ...]) -> Text:
        if not owners:
            return nobody
        said = Text(" and ", "bold red").join(_name(*modules[owner]) for owner in owners)
        return said + Text(" (one too many)", "bold red") if len(owners) > 1 else said

    return name


def _name(position: int, module: Module) -> Text:
    return Text.assemble((module.name, f"bold {colour(position)}"), (" (frozen)" if module.frozen else "", "dim"))


def _proposal_view(proposal: Proposal) -> Text:
    """Ready to paste: the lines of the YAML are whole lines of the output."""
    default = DEFAULT_MODULES[0]
    rate = number(default["optimizer"]["learningRate"])
    origin = f"preset {proposal.preset}: " if proposal.preset else ""
    text = Text.assemble(("proposal: ", "bold green"), origin + proposal.why, no_wrap=False)
    if proposal.source:
        text.append(f"\nsource:   {proposal.source}")
    text.append(
        f"\nWithout modules, one module {default['name']!r} trains everything with {default['optimizer']['type']} at "
        f"{rate}. To paste below spec:\n\n"
    )
    return text.append(modules_yaml(proposal), "cyan")


# For machines ----------------------------------------------------------------------------------------------------


def preview_document(preview: Preview) -> dict[str, Any]:
    """The same for machines."""
    total, per_epoch = preview.steps or (None, None)
    plan = preview.plan
    return {
        "job": manifest_of(preview.job),
        "model": preview.anatomy.kind if preview.anatomy else None,
        "modules": [_module_document(row) for row in preview.rows],
        "parameters": list(_parameter_documents(preview)) if preview.anatomy else None,
        "unmatched": preview.unmatched,
        "totalSteps": total,
        "stepsPerEpoch": per_epoch,
        "trainSamples": plan.train_samples if plan else None,
        "validationSamples": plan.validation_samples if plan else None,
        "unknown": list(preview.unknown),
        "proposal": _proposal_document(preview.proposal) if preview.proposal else None,
        "mistake": str(preview.mistake) if preview.mistake else None,
    }


def _module_document(row: Row) -> dict[str, Any]:
    module = row.module.manifest()
    return {
        "name": row.module.name,
        "patterns": row.module.parameters,
        "exclude": row.module.exclude or [],
        "frozen": row.module.frozen,
        "optimizer": module.get("optimizer"),
        "schedule": module.get("schedule"),
        "window": {"start": row.window.start, "end": row.window.end} if row.window else None,
        "tensors": None if row.parameters is None else len(row.parameters),
        "elements": row.numel,
        "trainable": row.trainable,
        "parameters": None if row.parameters is None else list(row.parameters),
    }


def _parameter_documents(preview: Preview) -> Iterator[dict[str, Any]]:
    frozen = {row.module.name for row in preview.rows if row.module.frozen}
    for leaf in preview.anatomy.leaves if preview.anatomy else ():
        yield _parameter_document(leaf, frozen)


def _parameter_document(leaf: Leaf, frozen: set[str]) -> dict[str, Any]:
    """`module` is None where no module owns it, or several match it; `matches` tells these apart."""
    owner = leaf.owners[0] if len(leaf.owners) == 1 else None
    return {
        "name": leaf.parameter.name,
        "sharedNames": list(leaf.parameter.names[1:]),
        "shape": list(leaf.shape),
        "elements": leaf.parameter.numel,
        "module": owner,
        "matches": list(leaf.owners),
        "frozen": owner is None or owner in frozen,
    }


def _proposal_document(proposal: Proposal) -> dict[str, Any]:
    return {
        "preset": proposal.preset,
        "why": proposal.why,
        "source": proposal.source,
        "modules": [_short(module) for module in proposal.modules],
        "yaml": modules_yaml(proposal),
    }


def _short(module: Module) -> dict[str, Any]:
    """A module as one would write it, without what it says by default."""
    return module.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
