"""`make demo`: the main job on Kubernetes, from building the images to the model on its claim, every command shown.

By default on a node that the harness starts and `make demo-down` takes away; on a cluster of yours if you name it:

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

from harness import Cluster, ExternalCluster, HarnessError, Node, doctor, images, launch, node, programs
from harness.progress import task

REPOSITORY = Path(__file__).parents[1]
CHART = Path("helm/finetune-operator")
EXAMPLE = Path("examples/two-optimizers")
INPUTS = Path(".finetune/claims/digits")
FOLDER = REPOSITORY / ".finetune" / "demo"

# On a cluster of yours these namespaces are the demo's own: they are deleted with all that is in them.
OPERATOR = "finetune-demo-system"
JOBS = "finetune-demo"
JOB = "two-optimizers"
DEPLOYMENT = "finetune-finetune-operator"
METRICS = f"/api/v1/namespaces/{OPERATOR}/services/{DEPLOYMENT}-metrics:metrics/proxy/metrics"
PATIENCE = 30 * 60

Context = Annotated[str | None, typer.Option(help="A context of $KUBECONFIG, to use a cluster of yours.")]
app = typer.Typer(
    no_args_is_help=True, help="The main job on Kubernetes.", add_completion=False, pretty_exceptions_enable=False
)
console = Console(highlight=False)


@dataclass(frozen=True)
class Stage:
    """Where the demo plays: a cluster, and the images that it can run."""

    cluster: Cluster
    operator: str
    trainer: str

    @property
    def tools(self) -> dict[str, str]:
        """What a person sets to run the same commands."""
        path = f"{programs.locate('helm').parent}:{os.environ['PATH']}"
        return {"KUBECONFIG": str(self.cluster.kubeconfig), "PATH": path}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the commands; what a person set up for other clusters stays out of it."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
        return {**others, **self.tools, "KUBECACHEDIR": str(self.cluster.folder / "kubectl-cache")}

    def show(self, *argv: str | Path, **more: Any) -> None:
        """Show a command, run it, and let it speak for itself."""
        announce(shlex.join(map(str, argv)))
        # A failure has told its reason on the terminal.
        if subprocess.run(argv, env=self.environment, cwd=REPOSITORY, check=False, **more).returncode:
            raise HarnessError(f"`{argv[0]} {argv[1]}` failed", f"look at what it printed; {look_around(self)}")


def main() -> None:
    """Run a command; what the person can cure is told without a traceback."""
    try:
        app()
    except HarnessError as error:
        console.print(f"\nerror: {error}", markup=False, style="red")
        sys.exit(1)


@app.command()
def up(context: Context = None) -> None:
    """Play it all."""
    stage = theirs(context) if context else ours()
    clear(stage)
    bring_inputs(stage)
    install_operator(stage)
    run_job(stage)
    look_at_result(stage)
    say_goodbye(stage, context)


@app.command()
def down(context: Context = None) -> None:
    """Take it down again; on a cluster of yours, what the demo put there."""
    if context:
        with named_cluster(context) as cluster:
            clear(Stage(cluster, "", ""))
        console.print("The definition of FineTuneJob stays: deleting it would delete every job of the cluster.")
    elif FOLDER.exists():
        with task("taking the node down"):
            launch.stop_daemon(FOLDER)
    else:
        console.print("There is no demo to take down.")


def clear(stage: Stage) -> None:
    """Remove what an earlier demo left."""
    if stage.cluster.try_kubectl("get", "namespace", OPERATOR).returncode == 0:
        stage.show("kubectl", "delete", "namespace", JOBS, "--ignore-not-found")
        stage.show("helm", "uninstall", "finetune", f"--namespace={OPERATOR}", "--ignore-not-found", "--wait")
        stage.show("kubectl", "delete", "namespace", OPERATOR)


# -- where -----------------------------------------------------------------------------------------------------------


def theirs(context: str) -> Stage:
    """The cluster that was named, which pulls its images from where it always does."""
    heading(f"The cluster of the context {context}")
    found = [os.environ.get(name, "") for name in ("OPERATOR_IMAGE", "TRAINER_IMAGE")]
    if not all(found):
        raise HarnessError(
            "a cluster of yours cannot see images that are built here",
            "build operator/Dockerfile and trainer/Dockerfile, push them to your registry, "
            "and set OPERATOR_IMAGE and TRAINER_IMAGE to where they are",
        )
    stage = Stage(named_cluster(context), *found)
    stage.show("kubectl", "cluster-info")
    return stage


def named_cluster(context: str) -> ExternalCluster:
    """The cluster of a context that a person named: never the current one by accident."""
    kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    try:
        return ExternalCluster(kubeconfig, context)
    except HarnessError as error:
        cure = "choose one that `kubectl config get-contexts` lists, or name another file by KUBECONFIG"
        raise HarnessError(f"{kubeconfig} has no context {context}", cure) from error


def ours() -> Stage:
    """A node of our own, with both images built from their Dockerfiles."""
    heading("A Kubernetes node on this machine")
    doctor.require(doctor.IMAGES)
    running = start_node()
    heading("Two images, built from their Dockerfiles")
    stage = Stage(running, "localhost/finetune-operator:demo", "localhost/finetune-trainer:demo")
    bring_image(running, Path("operator/Dockerfile"), stage.operator)
    bring_image(running, Path("trainer/Dockerfile"), stage.trainer)
    return stage


def start_node() -> Node:
    """The demo's node; one that is up already is used again."""
    if not (FOLDER / "ready").exists():
        with task("starting etcd, the API server, its controllers, a kubelet and containerd"):
            node.up(FOLDER, binds=(), daemon=True)
    return Node.attached(FOLDER)


def bring_image(running: Node, dockerfile: Path, tag: str) -> None:
    """Build an image if its inputs changed, and load it into the node if it is not there."""
    archive = images.build(REPOSITORY / dockerfile, REPOSITORY, tag)
    loaded = running.folder / f"{dockerfile.parent.name}.image"
    if loaded.exists() and loaded.read_text() == str(archive):
        console.print(f"{tag} is in the node already")
        return
    with task(f"loading {tag} into the node, {archive.stat().st_size / 1e9:.1f} GB"):
        running.import_image(archive)
    loaded.write_text(str(archive))


# -- the story -------------------------------------------------------------------------------------------------------


def bring_inputs(stage: Stage) -> None:
    """Make the example's inputs here, and copy them to a claim, as one does on any cluster."""
    heading("The inputs, on a claim")
    stage.show(sys.executable, EXAMPLE / "prepare.py", INPUTS)
    apply(stage, namespace(JOBS), claim("digits"), claim("models"), copier(stage.trainer))
    stage.show("kubectl", "wait", "pod/copier", f"--namespace={JOBS}", "--for=condition=Ready", "--timeout=10m")
    stage.show("kubectl", "cp", f"{INPUTS}/.", f"{JOBS}/copier:/claims/digits")
    stage.show("kubectl", "delete", "pod/copier", f"--namespace={JOBS}", "--grace-period=1")


def install_operator(stage: Stage) -> None:
    """The chart, with our two images."""
    heading("The operator")
    apply(stage, namespace(OPERATOR))
    # On two cores the job wants both, so the operator of this demo reserves none.
    settings = [*image("image", stage.operator), *image("trainer.image", stage.trainer), "resources.requests.cpu=0"]
    flags = [f"--set={each}" for each in settings]
    stage.show("helm", "install", "finetune", CHART, f"--namespace={OPERATOR}", *flags)
    stage.show("kubectl", "rollout", "status", f"deployment/{DEPLOYMENT}", f"--namespace={OPERATOR}", "--timeout=10m")


def run_job(stage: Stage) -> None:
    """The manifest that also runs on a laptop, followed to its end."""
    heading("The job")
    stage.show("kubectl", "apply", f"--filename={EXAMPLE / 'job.yaml'}", f"--namespace={JOBS}")
    outcome = condition(follow(stage), "Succeeded")
    if outcome["status"] != "True":
        stage.show("kubectl", "describe", "ftj", JOB, f"--namespace={JOBS}")
        raise HarnessError(f"the job came to {outcome['reason']}: {outcome['message']}", look_around(stage))


def follow(stage: Stage) -> dict[str, Any]:
    """Show the job's progress until it ends, and return its last status."""
    deadline = time.monotonic() + PATIENCE
    with task("following it") as work:
        while not ended(status := status_of_job(stage)):
            work.update(summary(status))
            if time.monotonic() > deadline:
                raise HarnessError(f"the job has not ended after {PATIENCE // 60} minutes", look_around(stage))
            time.sleep(2)
    console.print(summary(status))
    return status


def look_at_result(stage: Stage) -> None:
    """What a person looks at afterwards."""
    heading("What there is to see")
    here = f"--namespace={JOBS}"
    stage.show("kubectl", "get", "ftj", here)
    stage.show("kubectl", "get", "ftj", here, "--output=wide")
    stage.show("kubectl", "describe", "ftj", JOB, here)
    stage.show("kubectl", "events", f"--for=finetunejob/{JOB}", here)
    show_metrics(stage)
    console.print(f"\nThe model is at {status_of_job(stage)['output']['destination']}", end="")
    if isinstance(stage.cluster, Node):
        place = stage.cluster.claim_path(JOBS, "models") / JOB
        console.print(f", which on this node is\n  {place}", soft_wrap=True)
        stage.show("ls", "-l", place)


def show_metrics(stage: Stage) -> None:
    """What Prometheus would scrape of this job."""
    announce(f"kubectl get --raw {METRICS} | grep ^finetune_job_")
    lines = stage.cluster.kubectl("get", "--raw", METRICS).splitlines()
    for line in [line for line in lines if line.startswith("finetune_job_")][:16]:
        console.print(line, markup=False, soft_wrap=True)


def say_goodbye(stage: Stage, context: str | None) -> None:
    """How to go on, and how to end."""
    heading("Done")
    down = f"make demo-down{f' CONTEXT={context}' if context else ''}"
    console.print(f"Look around:\n  {look_around(stage)}\nTake it down:\n  {down}", markup=False, soft_wrap=True)


# -- objects ---------------------------------------------------------------------------------------------------------


def apply(stage: Stage, *objects: dict[str, Any]) -> None:
    """Apply objects, and say which."""
    for each in objects:
        console.print(f"  {each['kind']} {each['metadata']['name']}", markup=False)
    stage.cluster.apply(*objects)


def namespace(name: str) -> dict[str, Any]:
    """A namespace that admits none but restricted pods."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def claim(name: str) -> dict[str, Any]:
    """A claim of the cluster's default StorageClass."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
    metadata = {"name": name, "namespace": JOBS}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def copier(image: str) -> dict[str, Any]:
    """A pod that holds the claim `digits` open, for files to be copied into."""
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
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "copier", "namespace": JOBS}, "spec": spec}


def image(key: str, reference: str) -> list[str]:
    """The chart's values for an image that is written in one word."""
    if "@" in reference:
        repository, digest = reference.split("@")
        return [f"{key}.repository={repository}", f"{key}.digest={digest}"]
    repository, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:
        return [f"{key}.repository={reference}", f"{key}.tag=latest"]
    return [f"{key}.repository={repository}", f"{key}.tag={tag}"]


# -- the job's own words ---------------------------------------------------------------------------------------------


def status_of_job(stage: Stage) -> dict[str, Any]:
    """What the FineTuneJob says of itself now."""
    status: dict[str, Any] = stage.cluster.get("finetunejob", JOB, f"--namespace={JOBS}").get("status", {})
    return status


def condition(status: dict[str, Any], kind: str) -> dict[str, str]:
    """One condition of the job."""
    unknown = {"status": "Unknown", "reason": "Pending", "message": "the operator has not seen it yet"}
    return next((each for each in status.get("conditions", []) if each["type"] == kind), unknown)


def ended(status: dict[str, Any]) -> bool:
    """Whether nothing more will happen by itself."""
    return condition(status, "Succeeded")["status"] != "Unknown" or condition(status, "Stalled")["status"] == "True"


def summary(status: dict[str, Any]) -> str:
    """The state, the step, the latest metrics, and what makes this project: every module's own learning rate."""
    progress = status.get("progress", {})
    words = [condition(status, "Succeeded")["reason"]]
    if progress:
        words.append(f"step {progress['step']} of {progress['plannedSteps']} ({progress['percentage']:.0f} %)")
    words += [f"{each['name']} {each['value']:.3g}" for each in status.get("metrics", [])[:3]]
    return ", ".join([*words, *map(pace, status.get("modules", []))])


def pace(module: dict[str, Any]) -> str:
    """How fast a module learns now."""
    if module.get("frozen"):
        return f"{module['name']} frozen"
    if "learningRate" not in module:
        return f"{module['name']} before its first step"
    return f"{module['name']} at {module['learningRate']:.1e}"


# -- the terminal ----------------------------------------------------------------------------------------------------


def heading(title: str) -> None:
    """Begin a chapter."""
    console.print()
    console.rule(f"[bold]{title}", align="left")


def announce(command: str) -> None:
    """Show a command before it runs."""
    console.print(f"\n$ {command}", style="bold cyan", markup=False, soft_wrap=True)


def look_around(stage: Stage) -> str:
    """What to type to see more."""
    if not isinstance(stage.cluster, Node):
        return f"kubectl describe ftj {JOB} --namespace={JOBS}"
    tools = f"export KUBECONFIG={stage.cluster.kubeconfig} PATH={programs.locate('kubectl').parent}:$PATH"
    return f"{tools}; kubectl describe ftj {JOB} --namespace={JOBS}"


if __name__ == "__main__":
    main()
