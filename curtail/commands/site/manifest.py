"""`curtail site manifest`: the Kubernetes objects of a site, or the batch script of a Slurm machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from controller.provision.driver import Request
from controller.provision.kubernetes import statefulset_name
from controller.provision.slurm import batch_script, sbatch_argv
from curtail.config import KubernetesSection, SiteSection, load_config
from curtail.errors import NotFound, UsageError

HOME = "/var/lib/curtail"
PORT = 29400
"""Of the rendezvous of a job on several machines."""


def print_manifest(run_file: Path, site: str, url: str) -> int:
    """Run `curtail site manifest`; returns the exit code. Raises: CurtailError."""
    config = load_config(run_file)
    section = config.sites.get(site)
    if section is None:
        known = ", ".join(sorted(config.sites)) or "there is none"
        raise NotFound(f"{run_file} has no [sites.{site}]", f"sites there: {known}")
    if section.kubernetes is not None:
        print(_header(site, section, section.kubernetes), end="")
        print(yaml.safe_dump_all(kubernetes_objects(site, section, section.kubernetes, url), sort_keys=False), end="")
    elif section.slurm is not None:
        request = Request(
            config.run.name, site, section.region, 0, section.machines, "KEY", section.join_url or url,
            "TOKEN", section.longest, section.grace, section.agent_options,
        )  # fmt: skip
        print(f"# {' '.join(sbatch_argv(section.slurm, request))}")
        print(batch_script(section.slurm, request), end="")
    else:
        raise UsageError(
            f"the site {site} has the provisioner {section.provisioner}", "only slurm and kubernetes have a manifest"
        )
    return 0


def _header(site: str, section: SiteSection, settings: KubernetesSection) -> str:
    name, namespace = statefulset_name(settings, site), settings.namespace
    return (
        f"# The join token of the machines, once (it is needed only until each machine has joined):\n"
        f"#   curtail token create --home HOME --site {site} --uses {section.machines} --expires 30d --out token\n"
        f"#   kubectl --namespace {namespace} create secret generic {name}-token --from-file=CURTAIL_TOKEN=token\n"
        f"# The controller needs the ServiceAccount {name}-controller and no other right.\n"
    )


def kubernetes_objects(site: str, section: SiteSection, settings: KubernetesSection, url: str) -> list[dict[str, Any]]:
    """ServiceAccount, Role and RoleBinding for the controller; headless Service and StatefulSet of the machines."""
    name = statefulset_name(settings, site)
    labels = {"app.kubernetes.io/name": "curtail", "app.kubernetes.io/instance": name}
    queue = {"kueue.x-k8s.io/queue-name": settings.queue} if settings.queue else {}
    account = f"{name}-controller"

    def meta(of: str, **more: Any) -> dict[str, Any]:
        return {"name": of, "namespace": settings.namespace, "labels": dict(labels), **more}

    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": meta(account),
        "rules": [
            {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": [name], "verbs": ["get"]},
            {"apiGroups": ["apps"], "resources": ["statefulsets/scale"], "resourceNames": [name], "verbs": ["patch"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": meta(account),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": settings.namespace}],
    }
    stateful = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {**meta(name), "labels": {**labels, **queue}},
        "spec": {
            "replicas": 0,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": dict(labels)},
            "template": {
                "metadata": {"labels": {**labels, **queue}},
                "spec": _pod(site, section, settings, url, name),
            },
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "home"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": settings.storage}},
                    },
                }
            ],
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(name),
        "spec": {"clusterIP": "None", "selector": dict(labels), "ports": [{"name": "rendezvous", "port": PORT}]},
    }
    return [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(account)}, role, binding, service, stateful]


def _pod(site: str, section: SiteSection, settings: KubernetesSection, url: str, name: str) -> dict[str, Any]:
    """The pod of a machine: the agent is process 1, so the kubelet's SIGTERM drains its job."""
    words = ["agent", "join", section.join_url or url, "--site", site, "--region", section.region, "--home", HOME]
    if section.machines > 1:
        words += ["--machines", str(section.machines), "--address", "$(POD_IP)"]
    words += section.agent_options
    resources = {"limits": {"nvidia.com/gpu": settings.gpus}} if settings.gpus else {}
    token = {"secretKeyRef": {"name": f"{name}-token", "key": "CURTAIL_TOKEN", "optional": True}}
    return {
        "terminationGracePeriodSeconds": int(section.grace),
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": "agent",
                "image": settings.image,
                "args": words,
                "env": [
                    {"name": "CURTAIL_TOKEN", "valueFrom": token},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                ],
                "ports": [{"name": "rendezvous", "containerPort": PORT}],
                "resources": resources,
                "volumeMounts": [{"name": "home", "mountPath": HOME}, {"name": "shm", "mountPath": "/dev/shm"}],
            }
        ],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
