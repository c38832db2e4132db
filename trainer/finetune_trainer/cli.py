"""The `finetune` command: run a job, look at what it would do, draw its schedules, judge its manifest.

Every mistake is one clear message on stderr; tracebacks are for `--debug`. The heavy libraries are imported inside the
commands that need them, so that help and `validate` answer at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from transformers import PretrainedConfig

    from finetune_api.job import FineTuneJob
    from finetune_api.loading import Issue, Verdict
    from finetune_api.modules import Module
    from finetune_api.status import Report
    from finetune_trainer.display import Display
    from finetune_trainer.events import ModulePlan, RunPlan
    from finetune_trainer.places import Places
    from finetune_trainer.tables import Preview, Row

    Owned = dict[str, tuple[tuple[str, ...], int]]

DISTRIBUTION = "finetune-operator"
PICTURE = "training.png"
INVALID = 2
INTERRUPTED_AT_ONCE = 130

app = typer.Typer(
    name="finetune",
    help="Fine-tune the parts of one model differently: each module with its own optimizer, rate and schedule.",
    epilog="Start with [bold]finetune plan JOB.yaml[/]: it shows what a run would do, and needs no weights and no GPU.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class PlanOutput(StrEnum):
    """How `plan` says what it found."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


class VerdictOutput(StrEnum):
    """How `validate` says what it found."""

    TEXT = "text"
    JSON = "json"


Manifest = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The FineTuneJob.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. training.epochs=1."),
]
Claims = Annotated[
    list[str] | None,
    typer.Option("--claim", metavar="NAME=DIR", help="The folder that stands for a claim (pvc://NAME)."),
]
ClaimsDir = Annotated[
    Path | None,
    typer.Option("--claims-dir", metavar="DIR", help="Folder of all other claims.", show_default=".finetune/claims"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def main() -> None:
    """Entry point of the `finetune` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show × still gets the rest
    app()


# Commands --------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: [bold]finetune run job.yaml --claim captions=./data --set training.epochs=1[/]")
def run(
    manifest: Manifest,
    *,
    settings: Settings = None,
    claim: Claims = None,
    claims_dir: ClaimsDir = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    plain: Annotated[
        bool | None, typer.Option("--plain/--no-plain", help="Log lines or a live display.", show_default="by terminal")
    ] = None,
    attempt: Annotated[
        int, typer.Option(min=1, envvar="FINETUNE_ATTEMPT", help="Which attempt this is; set by the operator.")
    ] = 1,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Serve Prometheus metrics on this port.")
    ] = None,
    termination_log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report here at the end; set by the operator.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a job: plan, train, evaluate, and save the best model.

    A run that was interrupted goes on from its last checkpoint when it is started again.

    Claims (pvc://NAME) are folders: those of --claim, or else .finetune/claims/NAME.
    """
    in_pod = termination_log is not None and not sys.stdout.isatty()
    with _honest(debug, in_pod=in_pod):
        job = _load(manifest, settings, termination_log)
        places = _places(claim, claims_dir)
        display = _display(not sys.stdout.isatty() if plain is None else plain)
        with _patience("loading libraries"):
            from finetune_trainer.run import RunOptions
            from finetune_trainer.run import run as train
        options = RunOptions(places, attempt, metrics_port, termination_log, fresh)
        report = train(job, options, display)
        _conclude(job, places, report, display)


@app.command(epilog="Example: [bold]finetune plan job.yaml --output yaml > effective.yaml[/]")
def plan(
    manifest: Manifest,
    *,
    settings: Settings = None,
    claim: Claims = None,
    claims_dir: ClaimsDir = None,
    output: Annotated[PlanOutput, typer.Option("--output", "-o", help="What to print.")] = PlanOutput.TABLE,
    debug: Debug = False,
) -> None:
    """Show what a run would do: the job with every default filled in, and which module owns which parameter.

    Reads the model's config, not its weights.

    What is out of reach from here, such as a claim that only the cluster has, is named; the rest is shown.
    """
    with _honest(debug):
        job = _load(manifest, settings)
        with _patience("looking at model and data"):
            found = _preview(job, _places(claim, claims_dir))
        from finetune_trainer.tables import manifest_yaml, preview_document, preview_view

        if output is PlanOutput.TABLE:
            _print(preview_view(found))
        elif output is PlanOutput.JSON:
            typer.echo(json.dumps(preview_document(found), indent=2))
        else:
            typer.echo(manifest_yaml(found.job), nl=False)
            for reason in found.unknown:
                typer.echo(f"not known: {reason}", err=True)


@app.command(epilog="Example: [bold]finetune plot job.yaml --samples 50000 -o rates.png[/]")
def plot(
    manifest: Manifest,
    *,
    settings: Settings = None,
    claim: Claims = None,
    claims_dir: ClaimsDir = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="PNG, SVG or PDF.", show_default="NAME.png")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Samples to train on, when the data are not here.")
    ] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Or the steps of an epoch.")] = None,
    debug: Debug = False,
) -> None:
    """Draw the learning rate of every module over the run, before anything runs.

    Needs no model. How long the run is follows from the data, or from --samples or --steps-per-epoch.
    """
    with _honest(debug):
        job = _effective(_load(manifest, settings))
        per_epoch = steps_per_epoch or _steps_per_epoch(job, samples, _places(claim, claims_dir))
        target = output or Path(f"{job.name}.png")
        from finetune_trainer import plots

        _quiet_matplotlib()
        figure = plots.schedule_figure(_schedule_plan(job, per_epoch))
        try:
            plots.save(figure, target)
        except (OSError, ValueError) as error:
            _fail(f"cannot write {target}: {getattr(error, 'strerror', None) or error}", INVALID)
        typer.echo(target)


@app.command(epilog="Example: [bold]kustomize build . | finetune validate -[/]")
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Manifests; - is stdin.", show_default=False)],
    *,
    output: Annotated[VerdictOutput, typer.Option("--output", "-o", help="What to print.")] = VerdictOutput.TEXT,
    debug: Debug = False,
) -> None:
    """Judge manifests as the API server would, without one. Other kinds are skipped; exit code 2 if any is bad."""
    with _honest(debug):
        found = [(name, verdict) for name in files for verdict in _verdicts(name)]
        if output is VerdictOutput.JSON:
            typer.echo(json.dumps([_verdict_document(name, verdict) for name, verdict in found], indent=2))
        else:
            _print_verdicts(found)
        if any(verdict.issues for _, verdict in found):
            raise typer.Exit(INVALID)


@app.command(name="version")
def show_version() -> None:
    """Print the version, and those of the libraries it would train with."""
    for package in (DISTRIBUTION, "torch", "transformers"):
        try:
            typer.echo(f"{package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} is not installed")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version(DISTRIBUTION))
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command as a whole."""


# Mistakes --------------------------------------------------------------------------------------------------------


@contextmanager
def _honest(debug: bool, *, in_pod: bool = False) -> Iterator[None]:
    """Turn every exception into one message and an exit code.

    Args:
        debug: show the traceback of every one.
        in_pod: show the traceback of a crash: the end of the log is all that is left of a pod.
    """
    try:
        yield
    except (typer.Exit, typer.BadParameter, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        _fail("interrupted at once, without a checkpoint", INTERRUPTED_AT_ONCE, "stopped")
    except Exception as error:  # noqa: BLE001 - the last one to hear of it
        message, code, label = _explained(error)
        if debug or (in_pod and label == "crashed"):
            traceback.print_exc()
        _fail(message, code, label)


def _explained(error: Exception) -> tuple[str, int, str]:
    """Message, exit code, and in one word what it is."""
    from finetune_api.loading import SpecError
    from finetune_trainer.errors import Interrupted, RunError

    if isinstance(error, SpecError):
        return "\n".join(str(issue) for issue in error.issues), INVALID, "error"
    if isinstance(error, RunError):
        return str(error), int(error.exit_code), "stopped" if isinstance(error, Interrupted) else "error"
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("finetune"):
        return f"{error.name} is not installed; it comes with: pip install '{DISTRIBUTION}[trainer]'", INVALID, "error"
    return f"this is a bug or a crash: {type(error).__name__}: {error} (--debug shows where)", 1, "crashed"


def _fail(message: str, code: int, label: str = "error") -> NoReturn:
    from rich.console import Console
    from rich.text import Text

    style = "bold yellow" if label == "stopped" else "bold red"
    text = Text.assemble((f"{label}: ", style), message)
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)
    raise typer.Exit(code)


# What the commands are given -------------------------------------------------------------------------------------


def _load(manifest: Path, settings: Sequence[str] | None, termination_log: Path | None = None) -> FineTuneJob:
    from finetune_api.loading import SpecError, load_job
    from finetune_api.status import Report
    from finetune_trainer.errors import UserError

    try:
        return load_job(manifest, settings or ())
    except SpecError as error:
        if termination_log is not None:
            report = Report(reason=UserError.reason, message=str(error)[:1000])
            termination_log.write_text(report.termination_message())
        raise


def _places(claims: Sequence[str] | None, claims_dir: Path | None) -> Places:
    from finetune_trainer.places import DEFAULT_CLAIMS_DIR, Places

    mappings: dict[str, Path] = {}
    for claim in claims or ():
        name, equals, folder = claim.partition("=")
        if not (name and equals and folder):
            raise typer.BadParameter(f"{claim!r}: expected name=dir, e.g. captions=./data", param_hint="--claim")
        mappings[name] = Path(folder)
    return Places(claims_dir or DEFAULT_CLAIMS_DIR, mappings)


def _display(plain: bool) -> Display:
    from rich.console import Console

    from finetune_trainer.display import PlainDisplay, TerminalDisplay

    return PlainDisplay(sys.stdout) if plain else TerminalDisplay(Console(force_terminal=True, highlight=False))


@contextmanager
def _patience(doing: str) -> Iterator[None]:
    """On a terminal, say what takes a few seconds."""
    from rich.console import Console

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{doing} …"):
        yield


def _print(view: RenderableType) -> None:
    """Print in full width and colour on a terminal, as plain text elsewhere."""
    from rich.console import Console

    from finetune_trainer.display import rendered

    if sys.stdout.isatty():
        Console(highlight=False).print(view)
    else:
        typer.echo(rendered(view))


# Looking ahead ---------------------------------------------------------------------------------------------------


def _preview(job: FineTuneJob, places: Places) -> Preview:
    """Everything that can be known of a run from here.

    Raises:
        UserError: what is within reach does not fit.
    """
    from finetune_trainer.run import plan as plan_in_full
    from finetune_trainer.tables import Preview, rows_of

    config, no_model = _config(job, places)
    data = job.spec.data
    sources = {
        "data.train.source": data.train.source,
        "data.validation.source": data.validation and data.validation.source,
    }
    gaps = (_out_of_reach(source, said, places) for said, source in sources.items() if source)
    no_data = next(filter(None, gaps), None)
    if not (no_model or no_data):
        decided = plan_in_full(job, places)
        steps = (decided.total_steps, decided.steps_per_epoch)
        return Preview(job, decided.job, tuple(rows_of(decided)), decided.unmatched, decided, steps)
    return _partial(job, places, config, no_model, no_data)


def _partial(
    job: FineTuneJob, places: Places, config: PretrainedConfig | None, no_model: str | None, no_data: str | None
) -> Preview:
    """What can be known without the model, without the data, or without either."""
    from finetune_trainer.tables import Preview
    from finetune_trainer.tasks import detect

    filled = _effective(job, job.spec.task or (detect(config) if config else None))
    per_epoch = None if no_data else _steps_per_epoch(filled, None, places)
    steps = (_total_steps(filled, per_epoch), per_epoch) if per_epoch else None
    owned, unmatched = _ownership(filled, config) if config else ({}, ())
    rows = tuple(_partial_row(module, owned, steps) for module in filled.spec.modules or ())
    gaps = (("which parameters each module owns", no_model), ("how many steps the run takes", no_data))
    unknown = tuple(f"{what}, because {reason}" for what, reason in gaps if reason)
    return Preview(job, filled, rows, unmatched, None, steps, unknown)


def _partial_row(module: Module, owned: Owned, steps: tuple[int, int] | None) -> Row:
    from finetune_trainer.modules import window
    from finetune_trainer.tables import Row

    parameters, elements = owned.get(module.name, (None, None))
    return Row(module, parameters, elements, window(module.freeze, *steps) if steps and not module.frozen else None)


def _config(job: FineTuneJob, places: Places) -> tuple[PretrainedConfig | None, str | None]:
    """The model's config, or why it is out of reach."""
    from finetune_api.sources import locate
    from finetune_trainer import models
    from finetune_trainer.errors import UserError

    source = job.spec.model.source
    if gap := _out_of_reach(source, "model.source", places):
        return None, gap
    try:
        return models.load_config(models.find(job.spec.model, places)), None
    except UserError as error:
        if locate(source).scheme == "hf":  # a machine without a way to the hub is no mistake
            return None, str(error)
        raise


def _out_of_reach(source: str, said: str, places: Places) -> str | None:
    """Why a claim is not here; None for what is here, or can be looked for here."""
    from finetune_api.sources import locate
    from finetune_trainer.errors import UserError

    location = locate(source)
    if location.scheme == "pvc" and not places.folder(location.name).is_dir():
        try:
            places.existing(source, said)
        except UserError as error:
            return str(error)
    return None


def _ownership(job: FineTuneJob, config: PretrainedConfig) -> tuple[Owned, tuple[str, ...]]:
    """Names and size of what each module owns, and what none does, from the model's config alone."""
    from finetune_trainer import models
    from finetune_trainer.modules import own
    from finetune_trainer.tasks import TASKS, Task

    kind = cast(Task, TASKS[job.spec.task or ""])  # an instance needs the data, which may be out of reach
    parameters = models.parameters_of(models.skeleton(kind, config))
    found = own(job.spec.modules or [], parameters, job.spec.unmatched)
    sizes = {parameter.name: parameter.elements for parameter in parameters}
    owned = {module: (names, sum(sizes[name] for name in names)) for module, names in found.by_module.items()}
    return owned, found.unmatched


def _effective(job: FineTuneJob, task: str | None = None) -> FineTuneJob:
    """Fill in defaults; without a task all but how it is evaluated, which is all that depends on it."""
    from finetune_api.defaults import effective

    if known := task or job.spec.task:
        return effective(job, known)
    filled = effective(job, "Contrastive")
    undecided = {"task": None, "evaluation": job.spec.evaluation}
    return filled.model_copy(update={"spec": filled.spec.model_copy(update=undecided)})


def _steps_per_epoch(job: FineTuneJob, samples: int | None, places: Places) -> int:
    if samples is None:
        samples = _count_samples(job, places)
    size = job.spec.training.batch_size
    if samples < size:
        from finetune_trainer.errors import UserError

        raise UserError(f"training.batchSize is {size}, but there are only {samples} samples to train on")
    return samples // size


def _count_samples(job: FineTuneJob, places: Places) -> int:
    from finetune_trainer.errors import UserError

    source = job.spec.data.train.source
    if gap := _out_of_reach(source, "data.train.source", places):
        raise UserError(f"how long the run is depends on its data. {gap}. Or say --samples N")
    with _patience("counting samples"):
        from finetune_trainer import data
    return data.split_sizes(job.spec.data, len(data.find(source, "data.train.source", places)))[0]


def _total_steps(job: FineTuneJob, per_epoch: int) -> int:
    training = job.spec.training
    return training.steps or max(1, round((training.epochs or 1.0) * per_epoch))


def _schedule_plan(job: FineTuneJob, per_epoch: int) -> RunPlan:
    """As much of a plan as schedules need: no parameters, no samples."""
    from finetune_trainer.events import RunPlan

    total = _total_steps(job, per_epoch)
    modules = tuple(_module_schedule(module, total, per_epoch) for module in job.spec.modules or ())
    return RunPlan(job, modules, (), total, per_epoch, 0, 0)


def _module_schedule(module: Module, total: int, per_epoch: int) -> ModulePlan:
    from finetune_api.schedules import ScheduleError, lay_out
    from finetune_trainer.errors import UserError
    from finetune_trainer.events import ModulePlan, Window
    from finetune_trainer.modules import window

    if module.frozen:
        return ModulePlan(module, (), 0, Window(0, 0), None)
    trainable = window(module.freeze, total, per_epoch)
    try:
        schedule = lay_out(module.schedule or [], trainable.length, per_epoch)
    except ScheduleError as error:
        raise UserError(f"modules {module.name!r}: {error}") from error
    return ModulePlan(module, (), 0, trainable, schedule)


# Looking back ----------------------------------------------------------------------------------------------------


def _conclude(job: FineTuneJob, places: Places, report: Report, display: Display) -> None:
    """Say what became of it and where everything is; draw the picture of the run."""
    from finetune_trainer.metrics_file import NAME as METRICS
    from finetune_trainer.output import RUN
    from finetune_trainer.tables import result_table

    folder = places.destination(job.destination)
    told = json.loads((folder / RUN).read_text())
    evaluation = told["spec"]["evaluation"]["metric"]
    before, after = told["metrics"]["first"], told["metrics"]["last"]
    if told["spec"]["checkpoint"]["keepBest"]:
        after = told["metrics"]["best"] or after
    if before and after:
        display.show(result_table(before, after, evaluation))
    display.say(report.message)
    display.say(f"  model    {folder}")
    display.say(f"  metrics  {folder / METRICS}")
    display.say(f"  plot     {_draw(folder, job.name, evaluation)}")


def _draw(folder: Path, title: str, metric: str) -> str:
    """Draw the run's picture; a run that went well does not fail for its picture."""
    try:
        from finetune_trainer import plots
        from finetune_trainer.metrics_file import NAME as METRICS
        from finetune_trainer.metrics_file import read

        _quiet_matplotlib()
        history = plots.History.of(read(folder / METRICS))
        return str(plots.save(plots.training_figure(history, title, metric), folder / PICTURE))
    except Exception as error:  # noqa: BLE001
        return f"could not be drawn: {type(error).__name__}: {error}"


def _quiet_matplotlib() -> None:
    """Where it keeps its font cache is of no interest to whoever reads the log of a run."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


# Verdicts --------------------------------------------------------------------------------------------------------


def _verdicts(name: str) -> list[Verdict]:
    from finetune_api.loading import Issue, Verdict, check_file

    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        return [Verdict("", "", 1, (Issue("", f"cannot be read: {error.strerror}", file=name),))]
    except UnicodeDecodeError:
        return [Verdict("", "", 1, (Issue("", "is not UTF-8 text", file=name),))]
    shown = "<stdin>" if name == "-" else name
    return check_file(text, shown) or [Verdict("", "", 1, skipped="nothing in it")]


def _print_verdicts(found: Sequence[tuple[str, Verdict]]) -> None:
    for name, verdict in found:
        what = " ".join(filter(None, (verdict.kind, verdict.name)))
        if verdict.issues:
            for issue in verdict.issues:
                typer.secho(str(issue), fg="red")
        elif verdict.skipped:
            typer.secho(f"{name}:{verdict.line}: {what + ' ' if what else ''}skipped, {verdict.skipped}", dim=True)
        else:
            typer.secho(f"{name}:{verdict.line}: {what} is valid", fg="green")


def _verdict_document(name: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "file": name,
        "line": verdict.line,
        "kind": verdict.kind,
        "name": verdict.name,
        "valid": None if verdict.skipped else not verdict.issues,
        "skipped": verdict.skipped,
        "issues": [_issue_document(issue) for issue in verdict.issues],
    }


def _issue_document(issue: Issue) -> dict[str, Any]:
    return {
        "path": issue.path,
        "message": issue.message,
        "suggestion": issue.suggestion,
        "line": issue.line,
        "column": issue.column,
    }
