"""What a person reads of a plan and of a result: phrases and tables. Pure functions, nothing is printed here.

A plan is shown before every run and by `finetune plan`. The latter may know only a part of it (no model at hand, no
data at hand), which is why a table is made of `Row`s, whose unknown parts are None, and not of a `RunPlan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from finetune_api.defaults import DefaultedJob
    from finetune_api.evaluation import Interval
    from finetune_api.job import FineTuneJob
    from finetune_api.modules import Freeze, Module
    from finetune_api.optimizers import Optimizer
    from finetune_api.schedules import Phase
    from finetune_trainer.plan import RunPlan, Window

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988")
"""One colour per module, the same in terminal and plot; told apart by colour-blind people too (Paul Tol's)."""
DASH = "–"


def colour(position: int) -> str:
    """The colour of the module at this position of the manifest."""
    return COLOURS[position % len(COLOURS)]


# Numbers ---------------------------------------------------------------------------------------------------------


def humanize(count: int) -> str:
    """A count in at most four digits: 842, 22.7M, 1.24B.

    >>> [humanize(n) for n in (842, 999_999, 22_713_216, 1_240_000_000)]
    ['842', '1M', '22.7M', '1.24B']
    """
    value, units = float(count), iter(("", "K", "M", "B", "T"))
    unit = next(units)
    while float(f"{value:.3g}") >= 1000 and unit != "T":
        value, unit = value / 1000, next(units)
    return f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def number(value: float) -> str:
    """A number as one would write it in a manifest: 0.05, 1e-3, 2.5e-5.

    >>> [number(x) for x in (0.05, 0.001, 2.5e-5, 3.0, 0.0)]
    ['0.05', '1e-3', '2.5e-5', '3', '0']
    """
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(part: float) -> str:
    """A part as a percentage: 5 %, 0.1 %."""
    return f"{100 * part:.3g} %"


def plural(count: float, noun: str) -> str:
    """A count with its noun: 1 step, 1,200 steps, 0.5 epochs."""
    return f"{count:,.10g} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """A time as people say it: 42 s, 3 min 05 s, 2 h 10 min.

    >>> [duration(x) for x in (0.4, 42, 185, 7_800)]
    ['0 s', '42 s', '3 min 05 s', '2 h 10 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# Phrases ---------------------------------------------------------------------------------------------------------


def schedule_phrase(phases: Sequence[Phase]) -> str:
    """A schedule in one line: `warm-up 20 steps, then cosine ×3 to 1 %`."""
    return ", then ".join(_phase_phrase(phase) for phase in phases)


def _phase_phrase(phase: Phase) -> str:
    length = _length(phase)
    if phase.type == "Warmup":
        start = f" from {percent(phase.start_factor)}" if phase.start_factor else ""
        return f"warm-up{length and ' ' + length}{start}"
    return _shape(phase) + (length and f" for {length}")


def _shape(phase: Phase) -> str:
    match phase.type:
        case "Constant":
            return "constant" if phase.factor == 1 else f"constant at {percent(phase.factor)}"
        case "TimeDecay":
            return f"time decay {number(phase.rate)} per {_unit(phase)}"
        case "ExponentialDecay":
            return f"exponential ×{number(phase.gamma)} per {_unit(phase)}"
        case "StepDecay":
            return f"×{number(phase.factor)} {_drops(phase)}"
        case "CosineAnnealing":
            return _cosine(phase)
        case "LinearDecay":
            return f"linear to {percent(phase.end_factor)}"
        case "PolynomialDecay":
            return f"polynomial of power {number(phase.power)} to {percent(phase.end_factor)}"
        case "InverseSqrt":
            return f"inverse square root over {plural(phase.timescale_steps, 'step')}"
        case "Plateau":
            return f"×{number(phase.factor)} on each plateau of {plural(phase.patience + 1, 'evaluation')}"
        case _:
            return str(phase.type)


def _length(phase: Phase) -> str:
    if phase.steps is not None:
        return plural(phase.steps, "step")
    if phase.epochs is not None:
        return plural(phase.epochs, "epoch")
    return percent(phase.fraction) if phase.fraction is not None else ""


def _unit(phase: Any) -> str:
    return ("whole " if phase.staircase else "") + str(phase.unit).lower()


def _drops(phase: Any) -> str:
    if phase.milestones is not None:
        return "at epochs " + ", ".join(number(at) for at in phase.milestones)
    return f"every {_interval(phase.every_steps, phase.every_epochs)}"


def _interval(steps: int | None, epochs: float | None) -> str:
    count, noun = (steps, "step") if steps is not None else (epochs or 1, "epoch")
    return noun if count == 1 else plural(count, noun)


def _cosine(phase: Any) -> str:
    words = "cosine"
    if phase.period_steps is not None or phase.period_epochs is not None:
        words += f" every {_interval(phase.period_steps, phase.period_epochs)}"
        words += f" (each ×{phase.period_multiplier})" if (phase.period_multiplier or 1) > 1 else ""
    elif (phase.cycles or 1) > 1:
        words += f" ×{phase.cycles}"
    return words + (f" to {percent(phase.min_factor)}" if phase.min_factor else "")


def window_phrase(module: Module, window: Window | None = None) -> str:
    """When a module trains: `throughout`, `from epoch 1 (step 42)`, `never`."""
    if module.frozen:
        return "never"
    freeze = module.freeze
    if freeze is None or freeze == type(freeze)():
        return "throughout"
    return " ".join(_ends(freeze, window))


def _ends(freeze: Freeze, window: Window | None) -> Iterator[str]:
    if freeze.until_step is not None or freeze.until_epoch is not None:
        yield "from " + _moment(freeze.until_step, freeze.until_epoch, window.start if window else None)
    if freeze.from_step is not None or freeze.from_epoch is not None:
        yield "until " + _moment(freeze.from_step, freeze.from_epoch, window.end if window else None)


def _moment(step: int | None, epoch: float | None, known: int | None) -> str:
    if step is not None:
        return f"step {step:,}"
    return f"epoch {number(epoch or 0)}" + (f" (step {known:,})" if known is not None else "")


def optimizer_phrase(optimizer: Optimizer) -> str:
    """An optimizer's settings that differ from its defaults, rate and decay aside: `momentum 0.9, nesterov`."""
    shown: list[str] = []
    for field, info in type(optimizer).model_fields.items():
        value = getattr(optimizer, field)
        if field not in ("type", "learning_rate", "weight_decay") and value != info.default:
            shown.append(_setting(info.alias or field, value))
    return ", ".join(shown)


def _setting(field: str, value: float | bool | str) -> str:
    if isinstance(value, bool):
        return field if value else f"no {field}"
    return f"{field} {value if isinstance(value, str) else number(value)}"


def restraint_phrase(module: Module) -> str:
    """What holds a module's weights back: `decay 0.01, l1 1e-7, clip 1`."""
    penalty = module.regularization
    strengths = {
        "decay": module.optimizer.weight_decay if module.optimizer else 0.0,
        "l1": penalty.l1 if penalty else 0.0,
        "l2": penalty.l2 if penalty else 0.0,
        "clip": module.clip_grad_norm or 0.0,
    }
    return ", ".join(f"{name} {number(value)}" for name, value in strengths.items() if value)


def steps_phrase(total: int, per_epoch: int) -> str:
    """How long a run is: `300 steps (3 epochs of 100 steps)`."""
    epochs = plural(round(total / per_epoch, 2), "epoch")
    return f"{plural(total, 'step')} ({epochs} of {plural(per_epoch, 'step')})"


def batch_phrase(job: DefaultedJob) -> str:
    """How samples are taken: `batches of 64 (4 × 16)`."""
    training = job.spec.training
    micro = training.micro_batch_size
    times = training.batch_size // micro
    return f"batches of {training.batch_size:,}" + (f" ({times} × {micro:,})" if times > 1 else "")


# Plans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One module of a plan; what could not be known is None."""

    module: Module
    parameters: tuple[str, ...] | None = None
    numel: int | None = None
    window: Window | None = None

    @property
    def trainable(self) -> int | None:
        return 0 if self.module.frozen else self.numel


def rows_of(plan: RunPlan) -> list[Row]:
    """The rows of a plan of which everything is known."""
    return [Row(part.spec, part.parameters, part.numel, part.window) for part in plan.modules]


def plan_table(rows: Sequence[Row]) -> Table:
    """Modules, one line each: how much it owns, by which optimizer, rate and schedule it learns, and when."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_footer=len(rows) > 1, caption=_notes(rows))
    table.caption_justify = "left"
    table.add_column("Module", "total", no_wrap=True)
    table.add_column("Parameters", _total(row.numel for row in rows), justify="right", no_wrap=True)
    table.add_column("Optimizer")
    table.add_column("Rate", justify="right", no_wrap=True)
    table.add_column("Schedule")
    table.add_column("Trains")
    for position, row in enumerate(rows):
        table.add_row(*_cells(row, colour(position)))
    return table


def _cells(row: Row, shade: str) -> Iterator[Text]:
    module, optimizer = row.module, row.module.optimizer
    yield Text(module.name, f"bold {shade}")
    yield _count(row.numel)
    if optimizer is None:
        yield from (Text("frozen", "dim"), Text(DASH, "dim"), Text(DASH, "dim"))
    else:
        details = ", ".join(filter(None, (optimizer_phrase(optimizer), restraint_phrase(module))))
        yield Text.assemble(optimizer.type, (f"\n{details}" if details else "", "dim"))
        yield Text(number(optimizer.learning_rate))
        yield Text(schedule_phrase(module.schedule or []))
    yield Text(window_phrase(module, row.window))


def _count(numel: int | None) -> Text:
    return Text("?", "dim") if numel is None else Text(humanize(numel) if numel else "0")


def _total(counts: Iterable[int | None]) -> str:
    known = list(counts)
    return "?" if None in known else humanize(sum(count or 0 for count in known))


def _notes(rows: Sequence[Row]) -> str | None:
    return "\n".join(filter(None, (_frozen_note(rows), _decay_note(rows)))) or None


def _frozen_note(rows: Sequence[Row]) -> str | None:
    frozen = [row.numel for row in rows if row.module.frozen]
    if not frozen or any(row.numel is None for row in rows):
        return None
    return f"{_total(frozen)} of {_total(row.numel for row in rows)} parameters stay frozen"


def _decay_note(rows: Sequence[Row]) -> str | None:
    sparing = [
        row.module.name
        for row in rows
        if row.module.decay_exclude == "OneDimensional" and re.search("decay|l1|l2", restraint_phrase(row.module))
    ]
    return f"decay, l1 and l2 spare biases and norms ({', '.join(sparing)})" if sparing else None


def summary(plan: RunPlan) -> list[tuple[str, str]]:
    """The run as a whole, as labelled facts."""
    samples = f"{plan.train_samples:,} samples to train on"
    samples += f", {plan.validation_samples:,} to evaluate on" if plan.validation_samples else ""
    return job_facts(plan.job, steps_phrase(plan.planned_steps, plan.steps_per_epoch), samples)


def job_facts(job: DefaultedJob, length: str = "", samples: str = "") -> list[tuple[str, str]]:
    """The run as a whole as far as its effective job tells it; length and samples are known where the data are."""
    spec, training, checkpoint = job.spec, job.spec.training, job.spec.checkpoint
    wanted = plural(training.steps, "step") if training.steps else plural(training.epochs or 0, "epoch")
    saved = _interval(checkpoint.every_steps, checkpoint.every_epochs)
    return [
        ("task", spec.task or "from the model's config"),
        ("model", spec.model.source + (f" at {spec.model.revision}" if spec.model.revision else "")),
        ("data", spec.data.train.source + (f", {samples}" if samples else "")),
        ("length", f"{length or wanted}, {batch_phrase(job)}"),
        ("compute", f"{spec.resources.device}, precision {training.precision}, seed {training.seed}"),
        ("evaluation", _evaluation_phrase(job)),
        ("checkpoint", f"every {saved}, the last {checkpoint.keep} are kept" + " and the best" * checkpoint.keep_best),
        ("output", job.destination),
    ]


def _evaluation_phrase(job: FineTuneJob) -> str:
    evaluation = job.spec.evaluation
    if job.spec.data.validation is None:
        return "none, for want of data.validation"
    better = "lowest" if evaluation.direction == "Minimize" else "highest"
    judged = f"the {better} {evaluation.metric} is the best" if evaluation.metric else "judged by the task's metric"
    return f"every {_every(evaluation.every)}, {judged}"


def _every(every: Interval) -> str:
    return _interval(every.steps, every.epochs)


def facts_grid(facts: Sequence[tuple[str, str]]) -> Table:
    """Labelled facts, one below the other."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for label, fact in facts:
        grid.add_row(label, Text(fact))
    return grid


# Manifests ------------------------------------------------------------------------------------------------------

DEFAULTED = "# default"


def manifest_of(job: FineTuneJob) -> dict[str, Any]:
    """A job as one would write it."""
    manifest = job.manifest()
    named = {key: manifest["metadata"][key] for key in ("name", "namespace") if key in manifest["metadata"]}
    return {
        "apiVersion": manifest["apiVersion"],
        "kind": manifest["kind"],
        "metadata": named,
        "spec": manifest["spec"],
    }


def manifest_yaml(job: FineTuneJob, written: FineTuneJob | None = None) -> str:
    """A job as YAML; a value that its manifest left out is marked as a default, if that manifest is given."""
    from ruamel.yaml import YAML

    yaml, stream = YAML(), StringIO()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000
    said = written.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True) if written else None
    document = manifest_of(job)
    yaml.dump({**document, "spec": _commented(document["spec"], said["spec"] if said else document["spec"])}, stream)
    return re.sub(f"^(.*?) +{DEFAULTED}$", lambda line: f"{line[1]:<40}  {DEFAULTED}", stream.getvalue(), flags=re.M)


def _commented(node: Any, said: Any) -> Any:
    """The node with a comment beside each value that was not said."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(node, list):
        items = CommentedSeq(_commented(item, _at(said, position)) for position, item in enumerate(node))
        if not any(isinstance(item, dict) for item in node):
            items.fa.set_flow_style()
        return items
    if not isinstance(node, dict):
        return node
    mapping = CommentedMap()
    for key, value in sorted(node.items(), key=lambda item: item[0] not in ("name", "type")):
        shown = _commented(value, _at(said, key))
        if shown in ({}, []) and not _at(said, key):
            continue  # an empty list that nobody wrote says nothing
        mapping[key] = shown
        nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
        if _at(said, key) is None and not nested:
            mapping.yaml_add_eol_comment(DEFAULTED, key)
    return mapping


def _at(said: Any, key: str | int) -> Any:
    """What was said under a key; None for nothing."""
    if isinstance(said, dict):
        return said.get(key)
    return said[key] if isinstance(said, list) and isinstance(key, int) and key < len(said) else None


# Results ---------------------------------------------------------------------------------------------------------


def result_table(
    before: Mapping[str, float],
    after: Mapping[str, float],
    metric: str | None,
    tested: Mapping[str, float] | None = None,
) -> Table:
    """Evaluation metrics before the first step and of the weights that are saved, the one that decides first.

    All mappings hold the step beside the metrics, as `run.json` has them; `tested` are those of the test set.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("Metric", no_wrap=True)
    for heading in ("Before", f"After step {after['step']:,.0f}", "Change"):
        table.add_column(heading, justify="right", no_wrap=True)
    if tested:
        table.add_column("Test set", justify="right", no_wrap=True)
    for name in sorted(after.keys() - {"step"}, key=lambda name: (name != metric, name)):
        was, now = before.get(name), after[name]
        change = DASH if was is None else f"{now - was:+.4f}"
        style = "bold" if name == metric else ""
        test = [] if not tested else [_metric(tested.get(name.replace("eval/", "test/", 1)))]
        table.add_row(name, _metric(was), f"{now:.4f}", change, *test, style=style)
    return table


def _metric(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"


def metrics_phrase(metrics: Mapping[str, float]) -> str:
    """Evaluation metrics in one line, without their common prefix: `loss 2.31  recall_at_1 0.42`."""
    return "  ".join(f"{name.rpartition('/')[2]} {value:.4f}" for name, value in metrics.items())
