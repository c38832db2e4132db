"""The `finetune` command: run a job, show its plan, plot its schedules, validate its manifest, remove its checkpoints.

An error is one message on stderr; tracebacks are for `--debug`. The heavy libraries are imported by the commands that
need them, so `--help` and `validate` take less than a second.
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
    from finetune_trainer.training.signals import StopFlag

DISTRIBUTION = "finetune-operator"
INVALID = 2
INTERRUPTED = 75
SIGINT_EXIT_CODE = 130
PLAIN_WIDTH = 100
"""Width of output that does not go to a terminal."""

app = typer.Typer(
    name="finetune",
    help="Fine-tune the parts of a model differently: each module with its own optimizer, learning rate and schedule.",
    epilog="Start with **finetune plan JOB.yaml**: it shows what a run will do, without weights or a GPU.",
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class PlanOutput(StrEnum):
    """Output formats of `plan`."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


class ValidateOutput(StrEnum):
    """Output formats of `validate`."""

    TEXT = "text"
    JSON = "json"


JobArgument = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="File with a FineTuneJob.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a field, e.g. training.epochs=1; repeatable.",
    ),
]
ClaimOption = Annotated[
    list[str] | None,
    typer.Option("--claim", metavar="NAME=DIR", help="Folder to use for the claim pvc://NAME; repeatable."),
]
ClaimsDirOption = Annotated[
    Path | None,
    typer.Option(
        "--claims-dir",
        metavar="DIR",
        help="Folder with a subfolder for each other claim.",
        show_default=".finetune/claims",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def main() -> None:
    """Entry point of the `finetune` command."""
    from finetune_trainer.cli.output import open_standard_streams

    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot encode × still gets the rest
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            from finetune_trainer.training.signals import REACTION_SECONDS, exit_within

            exit_within(REACTION_SECONDS)
        raise


# Commands --------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: `finetune run job.yaml --claim captions=./data --set training.epochs=1`")
def run(
    job_file: JobArgument,
    *,
    overrides: SetOption = None,
    claim: ClaimOption = None,
    claims_dir: ClaimsDirOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue from the last checkpoint although settings, e.g. a learning rate, have changed."
        ),
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the checkpoints of this job and start over.")] = False,
    plain: Annotated[
        bool | None,
        typer.Option(
            "--plain/--no-plain", help="Print log lines instead of a live display.", show_default="live on a terminal"
        ),
    ] = None,
    attempt: Annotated[
        int, typer.Option(min=1, envvar="FINETUNE_ATTEMPT", help="Number of the attempt; set by the operator.")
    ] = 1,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Serve Prometheus metrics on this port.")
    ] = None,
    termination_log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the final report to this file; set by the operator.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Run a job: plan, train, evaluate, and save the best model.

    An interrupted run resumes from its last checkpoint when the command is repeated. If the job has changed since,
    choose: --resume continues with the new settings, --fresh starts over. Other data, another model, or another batch
    size or seed require --fresh.

    A claim (pvc://NAME) is a folder: the one set with --claim, or .finetune/claims/NAME.
    """
    from finetune_trainer.cli.output import queued_output
    from finetune_trainer.training.signals import stop_on_signals

    in_pod = termination_log is not None and not sys.stdout.isatty()
    if resume and fresh:
        raise typer.BadParameter("set either --resume or --fresh", param_hint="--resume")
    with queued_output(), handle_errors(debug, in_pod=in_pod), stop_on_signals() as stop:
        stop.exit_hooks.append(_print_interrupted)
        job = _load_job(job_file, overrides, termination_log)
        claim_paths = _claim_paths(claim, claims_dir)
        display = _display(not sys.stdout.isatty() if plain is None else plain, stop)
        _limit_openmp_spinning()
        _quiet_matplotlib()
        with spinner("loading libraries"):
            from finetune_trainer.cli.summary import print_summary
            from finetune_trainer.training.run import RunOptions
            from finetune_trainer.training.run import run as train
        options = RunOptions(claim_paths, attempt, metrics_port, termination_log, fresh, resume)
        report = train(job, options, display)
        print_summary(job, claim_paths, report, display)


@app.command(epilog="Example: `finetune plan job.yaml --set modules.visual.optimizer.learningRate=1e-4`")
def plan(
    job_file: JobArgument,
    *,
    overrides: SetOption = None,
    claim: ClaimOption = None,
    claims_dir: ClaimsDirOption = None,
    output: Annotated[PlanOutput, typer.Option("--output", "-o", help="Output format.")] = PlanOutput.TABLE,
    debug: DebugOption = False,
) -> None:
    """Show what a run will do: the job with all defaults, its modules, and the module of each parameter.

    Reads the model's config, not its weights.

    Inputs that are not available on this machine, such as a claim in the cluster, are reported; the rest is shown.
    """
    with handle_errors(debug):
        job = _load_job(job_file, overrides)
        claim_paths = _claim_paths(claim, claims_dir)
        with spinner("reading model config and data"):
            from finetune_trainer.cli.manifest_yaml import manifest_yaml
            from finetune_trainer.cli.plan_output import preview_document, render_preview
            from finetune_trainer.planning.preview import preview_run

            preview = preview_run(job, claim_paths)
        if output is PlanOutput.TABLE:
            _print(render_preview(preview))
        elif output is PlanOutput.JSON:
            typer.echo(json.dumps(preview_document(preview), indent=2))
        elif preview.error is None:
            typer.echo(manifest_yaml(preview.job), nl=False)
            for gap in preview.unknown:
                typer.echo(f"unknown: {gap}", err=True)
        if preview.error is not None:
            raise preview.error


@app.command(epilog="Example: `finetune plot job.yaml --samples 50000 -o rates.png`")
def plot(
    job_file: JobArgument,
    *,
    overrides: SetOption = None,
    claim: ClaimOption = None,
    claims_dir: ClaimsDirOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="PNG, SVG or PDF file.", show_default="NAME.png"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of training samples, if the data is not on this machine."),
    ] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of steps per epoch, instead of --samples.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Plot the learning rate of every module over the run, before it starts.

    Needs no model. The length of the run is computed from the data, --samples or --steps-per-epoch.
    """
    with handle_errors(debug):
        job, claim_paths = _load_job(job_file, overrides), _claim_paths(claim, claims_dir)
        target = output or Path(f"{job.name}.png")
        _quiet_matplotlib()
        from finetune_api.defaults import with_defaults
        from finetune_trainer.cli import plots
        from finetune_trainer.planning import run_plan
        from finetune_trainer.planning.preview import count_samples, plan_schedules

        if steps_per_epoch is None:
            with spinner("counting samples"):
                samples = samples or count_samples(job, claim_paths)
            steps_per_epoch = run_plan.steps_per_epoch(job.spec.training, samples)
        plan = plan_schedules(with_defaults(job, None), steps_per_epoch)
        try:
            plots.save_figure(plots.plot_schedules(plan), target)
        except (OSError, ValueError) as error:
            _fail(f"cannot write {target}: {getattr(error, 'strerror', None) or error}", INVALID)
        typer.echo(target)


@app.command(epilog="Example: `kustomize build . | finetune validate -`")
def validate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Manifest files; - is stdin.", show_default=False)
    ],
    *,
    output: Annotated[ValidateOutput, typer.Option("--output", "-o", help="Output format.")] = ValidateOutput.TEXT,
    debug: DebugOption = False,
) -> None:
    """Validate manifests offline with the API server's rules. Skips other kinds; exits with 2 if any is invalid."""
    with handle_errors(debug):
        from finetune_trainer.cli import validate as validation

        results = [(validation.display_name(name), it) for name in files for it in validation.check_file(name)]
        if output is ValidateOutput.JSON:
            typer.echo(json.dumps([validation.result_document(name, result) for name, result in results], indent=2))
        else:
            validation.print_results(results)
        if any(result.issues for _, result in results):
            raise typer.Exit(INVALID)


@app.command(epilog="Example: `finetune clean job.yaml --claim models=./models`")
def clean(
    job_file: JobArgument,
    *,
    overrides: SetOption = None,
    claim: ClaimOption = None,
    claims_dir: ClaimsDirOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also remove the checkpoints that this job would resume from.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: DebugOption = False,
) -> None:
    """Remove checkpoints of other runs from the destination of a job.

    A run keeps its checkpoints in DESTINATION/.checkpoints until its output is complete. A run that was never finished
    leaves them behind, e.g. because the job was renamed or recreated. This command lists them with their sizes and
    asks. It keeps those that `finetune run JOB.yaml` would resume from, unless --all is set, and never touches the
    output. While a run is using the destination, nothing is removed.

    Outside a cluster, a folder is named for its job (local-NAME). On a claim of a cluster, it is named for the UID of a
    FineTuneJob: do not remove that of a job which is suspended or waiting for a retry.
    """
    with handle_errors(debug):
        from finetune_trainer.cli import clean as cleaning

        job, claim_paths = _load_job(job_file, overrides), _claim_paths(claim, claims_dir)
        runs = cleaning.find_removable(job, claim_paths, include_own=everything)
        if not runs:
            kept = "" if everything else " (without --all, those of this job are kept)"
            typer.echo(f"no checkpoints to remove in {claim_paths.locate_destination(job.destination)}{kept}")
            return
        typer.echo(cleaning.describe(runs))
        if not yes and not _confirm("remove them?"):
            hint = "" if sys.stdin.isatty() else "; without a terminal, confirm with --yes"
            _fail(f"nothing was removed{hint}", INVALID, "stopped")
        cleaning.remove(job, runs, typer.echo)
        typer.echo("removed")


def _confirm(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:  # Ctrl-C, or the end of the input
        typer.echo()  # ends the line of the question
        return False


@app.command(name="version")
def show_version() -> None:
    """Print the versions of finetune, torch and transformers."""
    for package in (DISTRIBUTION, "torch", "transformers"):
        try:
            typer.echo(f"{package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} is not installed")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(version(DISTRIBUTION))
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `finetune` without a command."""


# Errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def handle_errors(debug: bool, *, in_pod: bool = False) -> Iterator[None]:
    """Turn every exception into one message and an exit code.

    Args:
        debug: print the traceback of every error.
        in_pod: print the traceback of a crash, since the log may be all that remains of a pod.
    """
    try:
        yield
    except (typer.Exit, typer.BadParameter, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        _fail("interrupted immediately, without a checkpoint", SIGINT_EXIT_CODE, "stopped")
    except Exception as error:  # noqa: BLE001 - the outermost handler
        message, code, label = _describe_error(error)
        if debug or (in_pod and label == "crashed"):
            traceback.print_exc()
        _fail(message, code, label)


def _describe_error(error: Exception) -> tuple[str, int, str]:
    """Message, exit code and label."""
    from finetune_api.loading import ManifestError
    from finetune_trainer.errors import Interrupted, RunError

    if isinstance(error, ManifestError):
        return "\n".join(str(issue) for issue in error.issues), INVALID, "error"
    if isinstance(error, RunError):
        return str(error), int(error.exit_code), "stopped" if isinstance(error, Interrupted) else "error"
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("finetune"):
        return (
            f"{error.name} is not installed; install it with: pip install '{DISTRIBUTION}[trainer]'",
            INVALID,
            "error",
        )
    return f"unexpected {type(error).__name__}: {error} (show the traceback with --debug)", 1, "crashed"


def _fail(message: str, code: int, label: str = "error") -> NoReturn:
    _print_end(message, label)
    raise typer.Exit(code)


def _print_end(message: str, label: str) -> None:
    from rich.console import Console
    from rich.text import Text

    style = "bold yellow" if label == "stopped" else "bold red"
    text = Text.assemble((f"{label}: ", style), message)
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def _print_interrupted(message: str) -> None:
    """Print the end of a process that is about to exit without unwinding, and show the cursor again."""
    from finetune_trainer.cli.output import INTERRUPTED_DRAIN_SECONDS, drain_output

    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")
    _print_end(message, "stopped")
    drain_output(INTERRUPTED_DRAIN_SECONDS)


# Arguments -------------------------------------------------------------------------------------------------------


def _load_job(job_file: Path, overrides: Sequence[str] | None, termination_log: Path | None = None) -> FineTuneJob:
    from finetune_api.loading import ManifestError, load_job
    from finetune_api.status import Report
    from finetune_trainer.errors import UserError
    from finetune_trainer.reporting.tracker import MAX_MESSAGE_LENGTH

    try:
        return load_job(job_file, overrides or ())
    except ManifestError as error:
        if termination_log is not None:
            report = Report(reason=UserError.reason, message=str(error)[:MAX_MESSAGE_LENGTH])
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


def _display(plain: bool, stop: StopFlag) -> Display:
    from rich.console import Console

    from finetune_trainer.cli.console import PlainDisplay, TerminalDisplay

    if plain:
        return PlainDisplay(sys.stdout)
    return TerminalDisplay(Console(force_terminal=True, highlight=False), lambda: stop.requested)


def _limit_openmp_spinning() -> None:
    """Let waiting OpenMP threads sleep soon, unless the environment sets a policy.

    OpenMP reads this once, when torch is imported. Spinning threads take cores from the threads they wait for: with two
    other busy processes on two cores a training step took 3.4 times as long. On an idle machine this costs about 3%.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _quiet_matplotlib() -> None:
    """Suppress what matplotlib logs about its font cache when it is imported."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


@contextmanager
def spinner(activity: str) -> Iterator[None]:
    """On a terminal, show a spinner while the block runs."""
    from rich.console import Console

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{activity} …"):
        yield


def _print(view: RenderableType) -> None:
    """Print in full width and color on a terminal; elsewhere as plain text, `COLUMNS` wide."""
    from rich.console import Console

    from finetune_trainer.cli.console import render_text

    if sys.stdout.isatty():
        Console(highlight=False).print(view)
    else:
        typer.echo(render_text(view, width=shutil.get_terminal_size((PLAIN_WIDTH, 0)).columns))
