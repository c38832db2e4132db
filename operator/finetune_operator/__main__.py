"""The `finetune-operator` command."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from finetune_operator.client.kube_client import ApiError, KubeconfigError
from finetune_operator.client.lease import LeaseLostError
from finetune_operator.config import ConfigError, load
from finetune_operator.logs import LogFormat, configure_logging
from finetune_operator.runtime.manager import Options, run_operator

OWN_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(  # noqa: PLR0917 typer calls it by name
    config: Annotated[Path | None, typer.Option(help="Path to the configuration file (YAML).")] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option(help="Namespace to watch; can be repeated. Default: watchNamespaces of --config, or all."),
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Format of log lines.")] = LogFormat.PLAIN,
    leader_elect: Annotated[bool, typer.Option(help="Be active only while holding the Lease.")] = True,
    lease_namespace: Annotated[
        str | None, typer.Option(envvar="POD_NAMESPACE", help="Namespace of the Lease. Default: the pod's own.")
    ] = None,
    lease_name: Annotated[
        str, typer.Option(help="Name of the Lease. Only one of the operators that share it is active.")
    ] = "finetune-operator",
    metrics_port: Annotated[int, typer.Option(help="Port of /metrics.")] = 8080,
    health_port: Annotated[int, typer.Option(help="Port of /healthz and /readyz.")] = 8081,
    debug: Annotated[bool, typer.Option(help="Log at debug level.")] = False,
) -> None:
    """Run the FineTuneJob operator in the cluster of $KUBECONFIG, or in the cluster of its own pod."""
    configure_logging(log_format, debug=debug)
    try:
        settings = load(config)
        options = Options(
            namespaces=namespace or settings.watch_namespaces,
            leader_elect=leader_elect,
            lease_namespace=lease_namespace or _own_namespace(),
            lease_name=lease_name,
            metrics_port=metrics_port,
            health_port=health_port,
        )
        asyncio.run(run_operator(settings, options))
    except ConfigError as error:
        _exit(str(error), 2)
    except (KubeconfigError, LeaseLostError, ApiError, OSError) as error:
        _exit(str(error), 1)


def main() -> None:
    """Entry point of the `finetune-operator` command."""
    app()


def _own_namespace() -> str:
    return OWN_NAMESPACE_FILE.read_text() if OWN_NAMESPACE_FILE.exists() else "default"


def _exit(message: str, code: int) -> None:
    typer.echo(f"finetune-operator: {message}", err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
