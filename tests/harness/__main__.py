"""The command line of the harness: `PYTHONPATH=tests python -m harness --help`."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness import baseimage, controlplane, doctor, gomodule, hostos, images, launch, node, programs, setup
from harness.errors import HarnessError
from harness.progress import console, say

app = typer.Typer(no_args_is_help=True, help="A real Kubernetes on a bare machine, for tests and for the demo.")
control_plane_app = typer.Typer(no_args_is_help=True, help="An API server and its controllers, without root.")
node_app = typer.Typer(no_args_is_help=True, help="A node that runs pods, as root.")
images_app = typer.Typer(no_args_is_help=True, help="Container images without a registry.")
app.add_typer(control_plane_app, name="control-plane")
app.add_typer(node_app, name="node")
app.add_typer(images_app, name="images")

Folder = Annotated[Path, typer.Argument(help="The cluster's folder: kubeconfig, logs, volumes.")]


@app.command()
def build() -> None:
    """Compile the cluster's programs, if the cache does not have them."""
    print(programs.built())


@app.command()
def lock() -> None:
    """Write go.mod and go.sum for the versions in versions.py."""
    gomodule.lock()
    say(f"wrote {gomodule.MODULE / 'go.mod'} and go.sum")


@app.command(name="setup")
def setup_command() -> None:
    """Install the system's packages that the node tier needs, compile the cluster's programs, and show what can run."""
    setup.install()
    if shutil.which("go"):
        programs.built()
    doctor_command()


@app.command(name="doctor")
def doctor_command() -> None:
    """Show what can run on this machine, and what cannot: why, and the cure."""
    table = Table.grid(padding=(0, 2))
    for tier in doctor.TIERS:
        obstacles = tier.obstacles()
        if not obstacles:
            table.add_row(tier.name, "[green]can run[/]", tier.gives)
        for each in obstacles:
            table.add_row(tier.name, "[red]cannot run[/]", f"{each.reason}\n[dim]cure: {each.cure}[/]")
    Console().print(table)


@control_plane_app.command(name="up")
def control_plane_up(
    folder: Folder, scheduler: Annotated[bool, typer.Option(help="Start a scheduler too.")] = False
) -> None:
    """Start a control plane that stays until `down`."""
    _announce(controlplane.up(_new(folder), scheduler=scheduler, daemon=True))


@node_app.command(name="up")
def node_up(
    folder: Folder, image: Annotated[list[Path] | None, typer.Option(help="An image archive to load.")] = None
) -> None:
    """Start a node that stays until `down`."""
    _announce(node.up(_new(folder), image_archives=image or (), daemon=True))


@control_plane_app.command(name="down")
@node_app.command(name="down")
def down(folder: Folder) -> None:
    """Take a cluster down and remove its folder."""
    launch.stop_daemon(folder.absolute())


@node_app.command(name="import")
def node_import(folder: Folder, archives: list[Path]) -> None:
    """Load image archives into a node that runs."""
    for archive in archives:
        node.Node.attached(folder.absolute()).import_image(archive)


@images_app.command(name="base")
def images_base() -> None:
    """Make the local base image and print its name."""
    doctor.require(doctor.IMAGES)
    print(baseimage.local())


@images_app.command(name="hostos")
def images_hostos() -> None:
    """Make the image that shows this machine's programs, and print its archive."""
    print(hostos.image())


@images_app.command(name="build")
def images_build(
    dockerfile: Path,
    tag: str,
    context: Annotated[Path, typer.Option(help="The folder that the Dockerfile copies from.")] = hostos.REPOSITORY,
    base: Annotated[str | None, typer.Option(help="Another base image than the local one.")] = None,
) -> None:
    """Build a Dockerfile and print the image's archive."""
    doctor.require(doctor.IMAGES)
    print(images.build(dockerfile.absolute(), context.absolute(), tag, base))


def _new(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise HarnessError(f"{folder} is not empty", "choose a new folder, or take down the cluster in it first")
    return folder.absolute()


def _announce(cluster: launch.Supervised) -> None:
    say(f"ready: {cluster.site.server}")
    say(f"  export KUBECONFIG={cluster.site.admin}")


def main() -> None:
    """Run a command; what the person can cure is told without a traceback."""
    try:
        app()
    except HarnessError as error:
        console.print(f"error: {error}", markup=False, style="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
