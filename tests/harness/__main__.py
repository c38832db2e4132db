"""Command line of the test harness: `PYTHONPATH=tests python -m harness --help`."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness import base_image, binaries, control_plane, go_module, host_image, images, launch, node, preflight, setup
from harness.errors import HarnessError
from harness.progress import console, print_line

app = typer.Typer(no_args_is_help=True, help="Local Kubernetes clusters for the tests and the demo.")
control_plane_app = typer.Typer(no_args_is_help=True, help="Manage a control plane without nodes. Needs no root.")
node_app = typer.Typer(no_args_is_help=True, help="Manage a single-node cluster that runs pods. Needs root.")
images_app = typer.Typer(no_args_is_help=True, help="Build container images without a registry.")
app.add_typer(control_plane_app, name="control-plane")
app.add_typer(node_app, name="node")
app.add_typer(images_app, name="images")

Folder = Annotated[Path, typer.Argument(help="Directory of the cluster: kubeconfig, logs, volumes.")]


@app.command()
def build() -> None:
    """Compile the Kubernetes binaries unless they are cached, and print their directory."""
    print(binaries.build())


@app.command()
def lock() -> None:
    """Write go.mod and go.sum for the versions in versions.py."""
    go_module.lock()
    print_line(f"wrote {go_module.MODULE / 'go.mod'} and go.sum")


@app.command(name="setup")
def setup_command() -> None:
    """Install missing system packages, compile the Kubernetes binaries, and run the preflight checks."""
    setup.install()
    if shutil.which("go"):
        binaries.build()
    preflight_command()


@app.command(name="preflight")
def preflight_command() -> None:
    """Check which test environments this machine supports, and print how to fix the others."""
    table = Table.grid(padding=(0, 2))
    for tier in preflight.TIERS:
        unmet = tier.unmet_requirements()
        if not unmet:
            table.add_row(tier.name, "[green]ok[/]", tier.description)
        for each in unmet:
            table.add_row(tier.name, "[red]unavailable[/]", f"{each.reason}\n[dim]fix: {each.fix}[/]")
    Console().print(table)


@control_plane_app.command(name="up")
def control_plane_up(
    folder: Folder, scheduler: Annotated[bool, typer.Option(help="Also start kube-scheduler.")] = False
) -> None:
    """Start a control plane that runs until `down`."""
    _print_connection(control_plane.up(_new(folder), scheduler=scheduler, daemon=True))


@node_app.command(name="up")
def node_up(
    folder: Folder, image: Annotated[list[Path] | None, typer.Option(help="Image archive to import.")] = None
) -> None:
    """Start a node that runs until `down`."""
    _print_connection(node.up(_new(folder), image_archives=image or (), daemon=True))


@control_plane_app.command(name="down")
@node_app.command(name="down")
def down(folder: Folder) -> None:
    """Stop a cluster and delete its directory."""
    launch.stop_daemon(folder.absolute())


@node_app.command(name="import")
def node_import(folder: Folder, archives: list[Path]) -> None:
    """Import image archives into a running node."""
    for archive in archives:
        node.Node.attach(folder.absolute()).import_image(archive)


@images_app.command(name="base")
def images_base() -> None:
    """Build the local base image and print its name."""
    preflight.require(preflight.IMAGES)
    print(base_image.build())


@images_app.command(name="host")
def images_host() -> None:
    """Build the image whose files are mounted from the host, and print the path of its archive."""
    print(host_image.build())


@images_app.command(name="build")
def images_build(
    dockerfile: Path,
    tag: str,
    context: Annotated[Path, typer.Option(help="Build context.")] = host_image.REPOSITORY,
    base: Annotated[str | None, typer.Option(help="Base image to use instead of the local one.")] = None,
) -> None:
    """Build a Dockerfile and print the path of the image archive."""
    preflight.require(preflight.IMAGES)
    print(images.build(dockerfile.absolute(), context.absolute(), tag, base))


def _new(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise HarnessError(f"{folder} is not empty", "choose another directory, or run `down` on it first")
    return folder.absolute()


def _print_connection(cluster: launch.Supervisor) -> None:
    print_line(f"ready: {cluster.config.server}")
    print_line(f"  export KUBECONFIG={cluster.config.admin_kubeconfig}")


def main() -> None:
    """Run a command; print a HarnessError without a traceback."""
    try:
        app()
    except HarnessError as error:
        console.print(f"error: {error}", markup=False, style="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
