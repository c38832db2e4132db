"""Control plane components: command lines, credentials and startup order."""

import ipaddress

import httpx
import trustme

from harness import kubeconfig
from harness.api import Api
from harness.certificates import issue, write
from harness.cluster_config import ClusterConfig
from harness.processes import Command, Processes, wait_until

API_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


def write_credentials(config: ClusterConfig) -> None:
    """Create the certificates and kubeconfigs of a new cluster."""
    for folder in (config.pki, config.folder / "kubeconfigs", config.volumes):
        folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    write(config.pki, "ca", authority)
    write(config.pki, "sa", issue(authority, "service-accounts"))
    first_service = str(ipaddress.ip_network(config.services)[1])
    addresses = sorted({"127.0.0.1", config.address, first_service})
    write(config.pki, "apiserver", issue(authority, "kube-apiserver", addresses=[*addresses, *API_SERVER_NAMES]))
    write(config.pki, "kubelet-client", issue(authority, "apiserver-kubelet-client", "system:masters"))
    users: dict[str, tuple[str, str | None]] = {
        "controller-manager": ("system:kube-controller-manager", None),
        "scheduler": ("system:kube-scheduler", None),
        "proxy": ("system:kube-proxy", None),
        "admin": ("admin", "system:masters"),
    }
    if config.node:
        users["kubelet"] = (f"system:node:{config.node.name}", "system:nodes")
    for name, (user, group) in users.items():
        content = kubeconfig.with_certificate(config.server, authority, issue(authority, user, group))
        kubeconfig.write(config.admin_kubeconfig if name == "admin" else config.kubeconfig(name), content)


def start(config: ClusterConfig, processes: Processes) -> None:
    """Start the control plane and wait until it is ready."""
    processes.start(etcd(config))
    health = f"http://127.0.0.1:{config.ports.etcd}/health"
    wait_until("etcd", lambda: _is_healthy(health), 60, processes.require_alive)
    processes.start(api_server(config))
    api = Api(config.admin_kubeconfig)
    wait_until("the API server", lambda: api.is_success("/readyz"), 120, processes.require_alive)
    processes.start(controller_manager(config))
    if config.scheduler:
        processes.start(scheduler(config))
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    wait_until("the controller-manager", lambda: api.is_success(account), 60, processes.require_alive)


def etcd(config: ClusterConfig) -> Command:
    """etcd without fsync: the data of a test cluster need not survive a crash."""
    client, peer = f"http://127.0.0.1:{config.ports.etcd}", f"http://127.0.0.1:{config.ports.etcd_peer}"
    return Command(
        "etcd",
        (
            config.binary("etcd"),
            f"--data-dir={config.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--watch-progress-notify-interval=5s",
        ),
    )


def api_server(config: ClusterConfig) -> Command:
    """kube-apiserver with the default authorization modes and admission plugins of kubeadm."""
    pki = config.pki
    return Command(
        "kube-apiserver",
        (
            config.binary("kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{config.ports.etcd}",
            f"--bind-address={'0.0.0.0' if config.node else config.address}",
            f"--secure-port={config.ports.api}",
            f"--advertise-address={config.address}",
            f"--endpoint-reconciler-type={'lease' if config.node else 'none'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            # Without it the other components log an error every few seconds. No client is allowed to use the header.
            f"--requestheader-client-ca-file={pki / 'ca.crt'}",
            "--requestheader-allowed-names=none",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={config.services}",
            f"--service-account-key-file={pki / 'sa.key'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
            "--profiling=false",
        ),
    )


def controller_manager(config: ClusterConfig) -> Command:
    """kube-controller-manager with all default controllers."""
    pki = config.pki
    return Command(
        "kube-controller-manager",
        (
            config.binary("kube-controller-manager"),
            *_client_flags(config, "controller-manager", config.ports.controller_manager),
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            f"--service-cluster-ip-range={config.services}",
            f"--flex-volume-plugin-dir={config.folder / 'flex'}",
        ),
    )


def scheduler(config: ClusterConfig) -> Command:
    """kube-scheduler."""
    return Command(
        "kube-scheduler", (config.binary("kube-scheduler"), *_client_flags(config, "scheduler", config.ports.scheduler))
    )


def _client_flags(config: ClusterConfig, name: str, port: int) -> tuple[str, ...]:
    path = config.kubeconfig(name)
    return (
        f"--kubeconfig={path}",
        f"--authentication-kubeconfig={path}",
        f"--authorization-kubeconfig={path}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--leader-elect=false",
        "--profiling=false",
        # The default rate limit of 20 requests per second slows down tests with many Jobs.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    )


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False
