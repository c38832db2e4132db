"""The output of `finetune plan`: the effective job, its modules, the parameter tree, and what is unknown.

The same content as text and as JSON. Pure functions of a `RunPreview`; nothing is printed or looked up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from finetune_api.defaults import DEFAULT_MODULES, DefaultedJob
from finetune_api.modules import Module
from finetune_trainer.cli.describe import describe_job, describe_run, describe_steps
from finetune_trainer.cli.manifest_yaml import DEFAULT_COMMENT, manifest_document, manifest_yaml
from finetune_trainer.cli.parameter_tree import OwnerLabel, render_tree
from finetune_trainer.cli.plan_table import facts_table, module_color, module_table
from finetune_trainer.formatting import format_number, pluralize
from finetune_trainer.plan import RunPlan
from finetune_trainer.planning.presets import ProposedModules, modules_yaml
from finetune_trainer.planning.preview import ModelParameters, ModulePreview, RunPreview, preview_modules

if TYPE_CHECKING:
    from finetune_trainer.planning.weight_check import WeightReport

# Text ------------------------------------------------------------------------------------------------------------


def render_plan(plan: RunPlan) -> RenderableType:
    """A run's plan: the run as a whole, then its modules."""
    parts: list[RenderableType] = [facts_table(describe_run(plan)), "", module_table(preview_modules(plan))]
    if plan.unmatched:
        count = pluralize(len(plan.unmatched), "parameter")
        parts.append(Text(f"{count} without a module: frozen (unmatched: Freeze)", "yellow"))
    return Group(*parts)


def render_preview(preview: RunPreview) -> RenderableType:
    """The effective job, the plan, the owner of each parameter, proposed modules, and what is unknown."""
    length = preview.length
    steps = describe_steps(length.planned_steps, length.steps_per_epoch) if length else ""
    facts = describe_run(preview.plan) if preview.plan else describe_job(preview.job, steps)
    parts: list[RenderableType] = [_render_manifest(preview), "", facts_table(facts), "", module_table(preview.modules)]
    if preview.model:
        parts += ["", _render_parameters(preview, preview.model)]
    if preview.weights:
        parts += [Text.assemble("\n", ("weights: ", "bold"), message) for message in preview.weights.messages()]
    if preview.proposal:
        parts += ["", _render_proposal(preview.proposal)]
    parts += [Text.assemble("\n", ("note: ", "bold"), note) for note in preview.notes]
    parts += [Text.assemble("\n", ("unknown: ", "bold yellow"), gap) for gap in preview.unknown]
    return Group(*parts)


def _render_manifest(preview: RunPreview) -> Text:
    """The effective job, with defaults dimmed."""
    text = Text()
    for line in manifest_yaml(preview.job, preview.original).splitlines():
        text.append(f"{line}\n", "dim" if line.endswith(DEFAULT_COMMENT) else "")
    text.rstrip()
    return text


def _render_parameters(preview: RunPreview, model: ModelParameters) -> RenderableType:
    undecided = preview.original.spec.modules is None or preview.error is not None
    return render_tree(model, _owner_label(preview.job), overview=undecided)


def _owner_label(job: DefaultedJob) -> OwnerLabel:
    """Shows each module in its color, and highlights parameters with no module or several."""
    modules = {module.name: (index, module) for index, module in enumerate(job.spec.modules)}
    unmatched = (
        Text("no module (frozen)", "yellow") if job.spec.unmatched == "Freeze" else Text("no module", "bold red")
    )

    def label(owners: tuple[str, ...]) -> Text:
        if not owners:
            return unmatched
        names = Text(", ", "bold red").join(_module_label(*modules[owner]) for owner in owners)
        return names + Text(" (matches several modules)", "bold red") if len(owners) > 1 else names

    return label


def _module_label(index: int, module: Module) -> Text:
    return Text.assemble((module.name, f"bold {module_color(index)}"), (" (frozen)" if module.frozen else "", "dim"))


def _render_proposal(proposal: ProposedModules) -> Text:
    """Proposed modules, in YAML that can be pasted."""
    default = DEFAULT_MODULES[0]
    rate = format_number(default["optimizer"]["learningRate"])
    origin = f"preset {proposal.preset}: " if proposal.preset else ""
    text = Text.assemble(("proposed modules: ", "bold green"), origin + proposal.description, no_wrap=False)
    if proposal.reference:
        text.append(f"\nreference: {proposal.reference}")
    text.append(
        f"\nWithout modules, the module {default['name']!r} trains all parameters with {default['optimizer']['type']} "
        f"at {rate}. To be pasted below spec:\n\n"
    )
    return text.append(modules_yaml(proposal), "cyan")


# JSON ------------------------------------------------------------------------------------------------------------


def preview_document(preview: RunPreview) -> dict[str, Any]:
    """The preview as a JSON document."""
    plan, length = preview.plan, preview.length
    return {
        "job": manifest_document(preview.job),
        "model": preview.model.model_class if preview.model else None,
        "modules": [_module_document(module) for module in preview.modules],
        "parameters": list(_parameter_documents(preview)) if preview.model else None,
        "unmatched": preview.unmatched,
        "plannedSteps": length.planned_steps if length else None,
        "stepsPerEpoch": length.steps_per_epoch if length else None,
        "trainSamples": plan.train_samples if plan else None,
        "validationSamples": plan.validation_samples if plan else None,
        "weights": _weights_document(preview.weights) if preview.weights else None,
        "notes": list(preview.notes),
        "unknown": list(preview.unknown),
        "proposal": _proposal_document(preview.proposal) if preview.proposal else None,
        "error": str(preview.error) if preview.error else None,
    }


def _weights_document(weights: WeightReport) -> dict[str, Any]:
    return {
        "new": {reason: list(names) for reason, names in weights.new.items()},
        "unused": [{"pattern": pattern, "tensors": count} for pattern, count in weights.unused],
    }


def _module_document(preview: ModulePreview) -> dict[str, Any]:
    module = preview.module.manifest()
    return {
        "name": preview.module.name,
        "patterns": preview.module.parameters,
        "exclude": preview.module.exclude or [],
        "frozen": preview.module.frozen,
        "optimizer": module.get("optimizer"),
        "schedule": module.get("schedule"),
        "window": {"start": preview.window.start, "end": preview.window.end} if preview.window else None,
        "tensors": None if preview.parameters is None else len(preview.parameters),
        "elements": preview.numel,
        "trainable": preview.trainable,
        "parameters": None if preview.parameters is None else list(preview.parameters),
    }


def _parameter_documents(preview: RunPreview) -> Iterator[dict[str, Any]]:
    """`module` is null if no module or several match the parameter; `matches` tells these cases apart."""
    frozen = {it.module.name: it.module.frozen for it in preview.modules}
    for parameter in preview.model.parameters if preview.model else ():
        info, owners = parameter.info, parameter.modules
        owner = owners[0] if len(owners) == 1 else None
        yield {
            "name": info.name,
            "tiedNames": list(info.names[1:]),
            "shape": list(info.shape),
            "elements": info.numel,
            "module": owner,
            "matches": list(owners),
            "frozen": frozen[owner] if owner else not owners and preview.job.spec.unmatched == "Freeze",
        }


def _proposal_document(proposal: ProposedModules) -> dict[str, Any]:
    return {
        "preset": proposal.preset,
        "description": proposal.description,
        "reference": proposal.reference,
        "modules": [
            module.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
            for module in proposal.modules
        ],
        "yaml": modules_yaml(proposal),
    }
