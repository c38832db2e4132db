"""`make demo`: runs the main example on Kubernetes, from building the images to the trained model.

It prints each command that it runs.

The default is a local single-node cluster, which `make demo-down` removes. To use an existing cluster:

    make demo CONTEXT=my-cluster OPERATOR_IMAGE=registry.example.com/... TRAINER_IMAGE=registry.example.com/...
"""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harness import Cluster, ExternalCluster, HarnessError, Node, binaries, images, launch, node, preflight
from harness.progress import task

REPOSITORY = Path(__file__).parents[1]
CHART = Path("helm/finetune-operator")
EXAMPLE = Path("examples/two-optimizers")
INPUTS = Path(".finetune/claims/digits")
DEMO_DIR = REPOSITORY / ".finetune" / "demo"

# The demo creates these namespaces and deletes them with all of their objects.
OPERATOR_NAMESPACE = "finetune-demo-system"
JOB_NAMESPACE = "finetune-demo"
JOB_NAME = "two-optimizers"
DEPLOYMENT = "finetune-finetune-operator"
METRICS = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/services/{DEPLOYMENT}-metrics:metrics/proxy/metrics"
JOB_TIMEOUT_S = 30 * 60

Context = Annotated[str | None, typer.Option(help="Context of $KUBECONFIG, to use an existing cluster.")]
app = typer.Typer(
    no_args_is_help=True,
    help="Run the main example on Kubernetes.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)


@dataclass(frozen=True)
class Demo:
    """The cluster of the demo, and the images of operator and trainer."""

    cluster: Cluster
    operator: str
    trainer: str

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that a user sets to run the same commands."""
        path = f"{binaries.find_client('helm').parent}:{os.environ['PATH']}"
        return {"KUBECONFIG": str(self.cluster.kubeconfig), "PATH": path}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the commands, without the Helm settings of the user."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
        return {**inherited, **self.variables, "KUBECACHEDIR": str(self.cluster.folder / "kubectl-cache")}

    def run(self, *argv: str | Path, **options: Any) -> None:
        """Print a command and run it; its output goes to the terminal.

        Raises:
            HarnessError: the command failed.
        """
        print_command(shlex.join(map(str, argv)))
        if subprocess.run(argv, env=self.environment, cwd=REPOSITORY, check=False, **options).returncode:
            raise HarnessError(
                f"`{argv[0]} {argv[1]}` failed", f"see its output above; to inspect the job: {inspect_command(self)}"
            )


def main() -> None:
    """Run a command; print a HarnessError without a traceback."""
    try:
        app()
    except HarnessError as error:
        console.print(f"\nerror: {error}", markup=False, style="red")
        sys.exit(1)


@app.command()
def up(context: Context = None) -> None:
    """Run the demo."""
    demo = use_existing_cluster(context) if context else start_local_cluster()
    clean_up(demo)
    copy_inputs(demo)
    install_operator(demo)
    run_job(demo)
    show_results(demo)
    print_next_steps(demo, context)


@app.command()
def down(context: Context = None) -> None:
    """Remove the demo: the local cluster, or the namespaces of the demo on an existing cluster."""
    if context:
        with open_cluster(context) as cluster:
            clean_up(Demo(cluster, "", ""))
        console.print("The CustomResourceDefinition is kept: deleting it would delete all FineTuneJobs of the cluster.")
    elif DEMO_DIR.exists():
        with task("stopping the local cluster"):
            launch.stop_daemon(DEMO_DIR)
    else:
        console.print("There is no demo to remove.")


def clean_up(demo: Demo) -> None:
    """Remove the namespaces and the Helm release of an earlier demo."""
    if demo.cluster.try_kubectl("get", "namespace", OPERATOR_NAMESPACE).returncode == 0:
        demo.run("kubectl", "delete", "namespace", JOB_NAMESPACE, "--ignore-not-found")
        demo.run("helm", "uninstall", "finetune", f"--namespace={OPERATOR_NAMESPACE}", "--ignore-not-found", "--wait")
        demo.run("kubectl", "delete", "namespace", OPERATOR_NAMESPACE)


# -- cluster ---------------------------------------------------------------------------------------------------------


def use_existing_cluster(context: str) -> Demo:
    """Use the cluster of a context; it pulls the images from a registry."""
    print_heading(f"Cluster of the context {context}")
    references = [os.environ.get(name, "") for name in ("OPERATOR_IMAGE", "TRAINER_IMAGE")]
    if not all(references):
        raise HarnessError(
            "an existing cluster cannot use images that are built on this machine",
            "build operator/Dockerfile and trainer/Dockerfile, push the images to a registry, "
            "and set OPERATOR_IMAGE and TRAINER_IMAGE to their references",
        )
    demo = Demo(open_cluster(context), *references)
    demo.run("kubectl", "cluster-info")
    return demo


def open_cluster(context: str) -> ExternalCluster:
    """Access the cluster of an explicit context, never of the current one.

    Raises:
        HarnessError: the kubeconfig has no such context.
    """
    kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    try:
        return ExternalCluster(kubeconfig, context)
    except HarnessError as error:
        fix = "choose one that `kubectl config get-contexts` lists, or set KUBECONFIG to another file"
        raise HarnessError(f"{kubeconfig} has no context {context}", fix) from error


def start_local_cluster() -> Demo:
    """Start a local single-node cluster and import both images, built from their Dockerfiles."""
    print_heading("Local Kubernetes cluster")
    preflight.require(preflight.IMAGES)
    running = start_node()
    print_heading("Images of operator and trainer")
    demo = Demo(running, "localhost/finetune-operator:demo", "localhost/finetune-trainer:demo")
    load_image(running, Path("operator/Dockerfile"), demo.operator)
    load_image(running, Path("trainer/Dockerfile"), demo.trainer)
    return demo


def start_node() -> Node:
    """Start the node of the demo unless it is running."""
    if not (DEMO_DIR / "ready").exists():
        with task("starting control plane, containerd and kubelet"):
            node.up(DEMO_DIR, binds=(), daemon=True)
    return Node.attach(DEMO_DIR)


def load_image(running: Node, dockerfile: Path, tag: str) -> None:
    """Build an image if its inputs have changed, and import it unless the node has it."""
    archive = images.build(REPOSITORY / dockerfile, REPOSITORY, tag)
    imported = running.folder / f"{dockerfile.parent.name}.image"
    if imported.exists() and imported.read_text() == str(archive):
        console.print(f"{tag} is already on the node")
        return
    with task(f"importing {tag} ({archive.stat().st_size / 1e9:.1f} GB)"):
        running.import_image(archive)
    imported.write_text(str(archive))


# -- steps -----------------------------------------------------------------------------------------------------------


def copy_inputs(demo: Demo) -> None:
    """Prepare the inputs of the example on this machine, and copy them to a PersistentVolumeClaim."""
    print_heading("Inputs")
    demo.run(sys.executable, EXAMPLE / "prepare.py", INPUTS)
    apply(demo, namespace(JOB_NAMESPACE), claim("digits"), claim("models"), copy_pod(demo.trainer))
    demo.run("kubectl", "wait", "pod/copier", f"--namespace={JOB_NAMESPACE}", "--for=condition=Ready", "--timeout=10m")
    demo.run("kubectl", "cp", f"{INPUTS}/.", f"{JOB_NAMESPACE}/copier:/claims/digits")
    demo.run("kubectl", "delete", "pod/copier", f"--namespace={JOB_NAMESPACE}", "--grace-period=1")


def install_operator(demo: Demo) -> None:
    """Install the chart with the two images."""
    print_heading("Operator")
    apply(demo, namespace(OPERATOR_NAMESPACE))
    # The job requests two CPUs; on a node with two CPUs the operator must request none.
    settings = [*image("image", demo.operator), *image("trainer.image", demo.trainer), "resources.requests.cpu=0"]
    flags = [f"--set={each}" for each in settings]
    demo.run("helm", "install", "finetune", CHART, f"--namespace={OPERATOR_NAMESPACE}", *flags)
    demo.run(
        "kubectl", "rollout", "status", f"deployment/{DEPLOYMENT}", f"--namespace={OPERATOR_NAMESPACE}", "--timeout=10m"
    )


def run_job(demo: Demo) -> None:
    """Apply the manifest of the example and wait until the job ends."""
    print_heading("Job")
    demo.run("kubectl", "apply", f"--filename={EXAMPLE / 'job.yaml'}", f"--namespace={JOB_NAMESPACE}")
    outcome = condition(watch_job(demo), "Succeeded")
    if outcome["status"] != "True":
        demo.run("kubectl", "describe", "ftj", JOB_NAME, f"--namespace={JOB_NAMESPACE}")
        raise HarnessError(f"the job ended with {outcome['reason']}: {outcome['message']}", inspect_command(demo))


def watch_job(demo: Demo) -> dict[str, Any]:
    """Show the progress of the job until it ends, and return its final status."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    with task("waiting for the job") as progress:
        while not has_ended(status := status_of_job(demo)):
            progress.update(summary(status))
            if time.monotonic() > deadline:
                raise HarnessError(f"the job did not end within {JOB_TIMEOUT_S // 60} minutes", inspect_command(demo))
            time.sleep(2)
    console.print(summary(status), markup=False, soft_wrap=True)
    return status


def show_results(demo: Demo) -> None:
    """Show status, events, metrics and output of the job."""
    print_heading("Results")
    flag = f"--namespace={JOB_NAMESPACE}"
    demo.run("kubectl", "get", "ftj", flag)
    demo.run("kubectl", "get", "ftj", flag, "--output=wide")
    demo.run("kubectl", "describe", "ftj", JOB_NAME, flag)
    demo.run("kubectl", "events", f"--for=finetunejob/{JOB_NAME}", flag)
    show_metrics(demo)
    console.print(f"\nThe model is at {status_of_job(demo)['output']['destination']}", end="")
    if isinstance(demo.cluster, Node):
        output = demo.cluster.claim_path(JOB_NAMESPACE, "models") / JOB_NAME
        console.print(f", on this machine in\n  {output}", soft_wrap=True)
        demo.run("ls", "-l", output)


def show_metrics(demo: Demo) -> None:
    """Print the first metrics of the job."""
    print_command(f"kubectl get --raw {METRICS} | grep ^finetune_job_")
    lines = demo.cluster.kubectl("get", "--raw", METRICS).splitlines()
    for line in [line for line in lines if line.startswith("finetune_job_")][:16]:
        console.print(line, markup=False, soft_wrap=True)


def print_next_steps(demo: Demo, context: str | None) -> None:
    """Print how to inspect and how to remove the demo."""
    print_heading("Done")
    down = f"make demo-down{f' CONTEXT={context}' if context else ''}"
    console.print(
        f"To inspect the job:\n  {inspect_command(demo)}\nTo remove the demo:\n  {down}", markup=False, soft_wrap=True
    )


# -- objects ---------------------------------------------------------------------------------------------------------


def apply(demo: Demo, *objects: dict[str, Any]) -> None:
    """Print and apply objects."""
    for each in objects:
        console.print(f"  {each['kind']} {each['metadata']['name']}", markup=False)
    demo.cluster.apply(*objects)


def namespace(name: str) -> dict[str, Any]:
    """A namespace that enforces the restricted Pod Security Standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def claim(name: str) -> dict[str, Any]:
    """A PersistentVolumeClaim of the default StorageClass."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
    metadata = {"name": name, "namespace": JOB_NAMESPACE}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def copy_pod(image: str) -> dict[str, Any]:
    """A pod that mounts the claim `digits`, as the target of `kubectl cp`."""
    container = {
        "name": "copier",
        "image": image,
        "command": ["sleep", "3600"],
        "volumeMounts": [{"name": "digits", "mountPath": "/claims/digits"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "automountServiceAccountToken": False,
        "containers": [container],
        "restartPolicy": "Never",
        "securityContext": {
            "fsGroup": 65532,
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "digits", "persistentVolumeClaim": {"claimName": "digits"}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "copier", "namespace": JOB_NAMESPACE}, "spec": spec}


def image(key: str, reference: str) -> list[str]:
    """The values of the chart for an image reference, as arguments of `--set`."""
    if "@" in reference:
        repository, digest = reference.split("@")
        return [f"{key}.repository={repository}", f"{key}.digest={digest}"]
    repository, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:
        return [f"{key}.repository={reference}", f"{key}.tag=latest"]
    return [f"{key}.repository={repository}", f"{key}.tag={tag}"]


# -- status of the job ----------------------------------------------------------------------------------------------


def status_of_job(demo: Demo) -> dict[str, Any]:
    """The current status of the FineTuneJob."""
    status: dict[str, Any] = demo.cluster.get("finetunejob", JOB_NAME, f"--namespace={JOB_NAMESPACE}").get("status", {})
    return status


def condition(status: dict[str, Any], kind: str) -> dict[str, str]:
    """The condition of a type; `Unknown` if it is missing."""
    unknown = {"status": "Unknown", "reason": "Pending", "message": "not yet observed by the operator"}
    return next((each for each in status.get("conditions", []) if each["type"] == kind), unknown)


def has_ended(status: dict[str, Any]) -> bool:
    """Whether the job has finished or is stalled."""
    return condition(status, "Succeeded")["status"] != "Unknown" or condition(status, "Stalled")["status"] == "True"


def summary(status: dict[str, Any]) -> str:
    """One line: state, step, latest metrics, and the learning rate of each module."""
    progress = status.get("progress", {})
    parts = [condition(status, "Succeeded")["reason"]]
    if progress:
        parts.append(f"step {progress['step']} of {progress['plannedSteps']} ({progress['percentage']:.0f} %)")
    parts += [f"{each['name']} {each['value']:.3g}" for each in status.get("metrics", [])[:3]]
    return ", ".join([*parts, *map(module_summary, status.get("modules", []))])


def module_summary(module: dict[str, Any]) -> str:
    """The learning rate of a module, or its state."""
    if module.get("frozen"):
        return f"{module['name']} frozen"
    if "learningRate" not in module:
        return f"{module['name']} not started"
    return f"lr[{module['name']}]={module['learningRate']:.1e}"


# -- terminal --------------------------------------------------------------------------------------------------------


def print_heading(title: str) -> None:
    """Print the heading of a section."""
    console.print()
    console.rule(f"[bold]{title}", align="left")


def print_command(command: str) -> None:
    """Print a command line."""
    console.print(f"\n$ {command}", style="bold cyan", markup=False, soft_wrap=True)


def inspect_command(demo: Demo) -> str:
    """The shell command that describes the job."""
    if not isinstance(demo.cluster, Node):
        return f"kubectl describe ftj {JOB_NAME} --namespace={JOB_NAMESPACE}"
    variables = f"export KUBECONFIG={demo.cluster.kubeconfig} PATH={binaries.find_client('kubectl').parent}:$PATH"
    return f"{variables}; kubectl describe ftj {JOB_NAME} --namespace={JOB_NAMESPACE}"


if __name__ == "__main__":
    main()
