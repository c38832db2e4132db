"""The control plane: what each of its programs is told, and the order in which they start."""

import ipaddress

import httpx
import trustme

from harness import kubeconfig
from harness.api import Api
from harness.certificates import issue, write
from harness.processes import Command, Processes, wait_until
from harness.site import Site

NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


def prepare(site: Site) -> None:
    """Write the certificates and kubeconfigs of a new cluster."""
    for folder in (site.pki, site.folder / "kubeconfigs", site.volumes):
        folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    write(site.pki, "ca", authority)
    write(site.pki, "sa", issue(authority, "service-accounts"))
    first_service = str(ipaddress.ip_network(site.services)[1])
    addresses = sorted({"127.0.0.1", site.address, first_service})
    write(site.pki, "apiserver", issue(authority, "kube-apiserver", addresses=[*addresses, *NAMES]))
    write(site.pki, "kubelet-client", issue(authority, "apiserver-kubelet-client", "system:masters"))
    users: dict[str, tuple[str, str | None]] = {
        "controller-manager": ("system:kube-controller-manager", None),
        "scheduler": ("system:kube-scheduler", None),
        "proxy": ("system:kube-proxy", None),
        "admin": ("admin", "system:masters"),
    }
    if site.node:
        users["kubelet"] = (f"system:node:{site.node.name}", "system:nodes")
    for who, (user, group) in users.items():
        config = kubeconfig.with_certificate(site.server, authority, issue(authority, user, group))
        kubeconfig.write(site.admin if who == "admin" else site.kubeconfig(who), config)


def start(site: Site, processes: Processes) -> None:
    """Start the control plane and wait until it answers."""
    processes.start(etcd(site))
    health = f"http://127.0.0.1:{site.ports.etcd}/health"
    wait_until("etcd", lambda: _healthy(health), 60, processes.require_alive)
    processes.start(api_server(site))
    api = Api(site.admin)
    wait_until("the API server", lambda: api.answers("/readyz"), 120, processes.require_alive)
    processes.start(controller_manager(site))
    if site.scheduler:
        processes.start(scheduler(site))
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    wait_until("the controller-manager", lambda: api.answers(account), 60, processes.require_alive)


def etcd(site: Site) -> Command:
    """The database; it never waits for the disk, since nothing in it has to survive."""
    client, peer = f"http://127.0.0.1:{site.ports.etcd}", f"http://127.0.0.1:{site.ports.etcd_peer}"
    return Command(
        "etcd",
        (
            site.program("etcd"),
            f"--data-dir={site.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--watch-progress-notify-interval=5s",
        ),
    )


def api_server(site: Site) -> Command:
    """The API server, with the authorization and admission of a real cluster."""
    pki = site.pki
    return Command(
        "kube-apiserver",
        (
            site.program("kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{site.ports.etcd}",
            f"--bind-address={'0.0.0.0' if site.node else site.address}",
            f"--secure-port={site.ports.api}",
            f"--advertise-address={site.address}",
            f"--endpoint-reconciler-type={'lease' if site.node else 'none'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            # Without it the other programs log an error every few seconds. No client may use the header.
            f"--requestheader-client-ca-file={pki / 'ca.crt'}",
            "--requestheader-allowed-names=none",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={site.services}",
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


def controller_manager(site: Site) -> Command:
    """The controllers of Jobs, ServiceAccounts, garbage collection and the rest."""
    pki = site.pki
    return Command(
        "kube-controller-manager",
        (
            site.program("kube-controller-manager"),
            *_as_client(site, "controller-manager", site.ports.controller_manager),
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            f"--service-cluster-ip-range={site.services}",
            f"--flex-volume-plugin-dir={site.folder / 'flex'}",
        ),
    )


def scheduler(site: Site) -> Command:
    """The scheduler."""
    return Command(
        "kube-scheduler", (site.program("kube-scheduler"), *_as_client(site, "scheduler", site.ports.scheduler))
    )


def _as_client(site: Site, who: str, port: int) -> tuple[str, ...]:
    path = site.kubeconfig(who)
    return (
        f"--kubeconfig={path}",
        f"--authentication-kubeconfig={path}",
        f"--authorization-kubeconfig={path}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--leader-elect=false",
        "--profiling=false",
        # The default of 20 requests a second makes a test of many Jobs wait for the client.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    )


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False
