"""The `finetune` command: run a job, look at what it would do, draw its schedules, judge its manifest.

Every mistake is one clear message on stderr; tracebacks are for `--debug`. The heavy libraries are imported inside the
commands that need them, so that help and `validate` answer at once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from finetune_api.job import FineTuneJob
    from finetune_trainer.claims import ClaimPaths
    from finetune_trainer.cli.console import Display

DISTRIBUTION = "finetune-operator"
INVALID = 2
INTERRUPTED_AT_ONCE = 130
PLAIN_WIDTH = 100

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
        claim_paths = _claim_paths(claim, claims_dir)
        display = _display(not sys.stdout.isatty() if plain is None else plain)
        _share_cores()
        _quiet_matplotlib()
        with _patience("loading libraries"):
            from finetune_trainer.cli.summary import conclude
            from finetune_trainer.training.run import RunOptions
            from finetune_trainer.training.run import run as train
        options = RunOptions(claim_paths, attempt, metrics_port, termination_log, fresh)
        report = train(job, options, display)
        conclude(job, claim_paths, report, display)


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
        claim_paths = _claim_paths(claim, claims_dir)
        with _patience("looking at model and data"):
            from finetune_trainer.cli.plan_output import preview_document, preview_view
            from finetune_trainer.cli.plan_table import manifest_yaml
            from finetune_trainer.planning.preview import look_ahead

            found = look_ahead(job, claim_paths)
        if output is PlanOutput.TABLE:
            _print(preview_view(found))
        elif output is PlanOutput.JSON:
            typer.echo(json.dumps(preview_document(found), indent=2))
        elif found.mistake is None:
            typer.echo(manifest_yaml(found.job), nl=False)
            for reason in found.unknown:
                typer.echo(f"not known: {reason}", err=True)
        if found.mistake is not None:
            raise found.mistake


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
        job, claim_paths = _load(manifest, settings), _claim_paths(claim, claims_dir)
        target = output or Path(f"{job.name}.png")
        _quiet_matplotlib()
        from finetune_api import defaults
        from finetune_trainer.cli import plots
        from finetune_trainer.planning import modules, preview

        if steps_per_epoch is None:
            with _patience("counting samples"):
                samples = samples or preview.count_samples(job, claim_paths)
            steps_per_epoch = modules.steps_per_epoch(job.spec.training, samples)
        figure = plots.schedule_figure(
            preview.plan_schedules(defaults.with_defaults(job, job.spec.task), steps_per_epoch)
        )
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
        from finetune_trainer.cli import validate as validation

        found = [(validation.shown(name), verdict) for name in files for verdict in validation.judge(name)]
        if output is VerdictOutput.JSON:
            typer.echo(json.dumps([validation.document(name, verdict) for name, verdict in found], indent=2))
        else:
            validation.show(found)
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
    from finetune_api.loading import ManifestError
    from finetune_trainer.errors import Interrupted, RunError

    if isinstance(error, ManifestError):
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
    from finetune_api.loading import ManifestError, load_job
    from finetune_api.status import Report
    from finetune_trainer.errors import UserError

    try:
        return load_job(manifest, settings or ())
    except ManifestError as error:
        if termination_log is not None:
            report = Report(reason=UserError.reason, message=str(error)[:1000])
            termination_log.write_text(report.termination_message())
        raise


def _claim_paths(claims: Sequence[str] | None, claims_dir: Path | None) -> ClaimPaths:
    from finetune_trainer.claims import DEFAULT_CLAIMS_DIR, ClaimPaths

    mappings: dict[str, Path] = {}
    for claim in claims or ():
        name, equals, folder = claim.partition("=")
        if not (name and equals and folder):
            raise typer.BadParameter(f"{claim!r}: expected name=dir, e.g. captions=./data", param_hint="--claim")
        mappings[name] = Path(folder)
    return ClaimPaths(claims_dir or DEFAULT_CLAIMS_DIR, mappings)


def _display(plain: bool) -> Display:
    from rich.console import Console

    from finetune_trainer.cli.console import PlainDisplay, TerminalDisplay

    return PlainDisplay(sys.stdout) if plain else TerminalDisplay(Console(force_terminal=True, highlight=False))


def _share_cores() -> None:
    """Let OpenMP threads sleep soon while they wait, unless whoever starts us decided otherwise.

    OpenMP reads this once, as torch is imported. Threads that spin take the cores from those they wait for: with two
    busy loops on two cores a training step took 3.4 times as long. On an idle machine this costs about 3 %.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _quiet_matplotlib() -> None:
    """Where it keeps its font cache is of no interest to whoever reads the log; it says so as it is imported."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


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
    """Print in full width and colour on a terminal, as plain text elsewhere, as wide as COLUMNS says."""
    from rich.console import Console

    from finetune_trainer.cli.console import rendered

    if sys.stdout.isatty():
        Console(highlight=False).print(view)
    else:
        typer.echo(rendered(view, width=shutil.get_terminal_size((PLAIN_WIDTH, 0)).columns))
