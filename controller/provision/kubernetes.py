"""Machines as the pods of one StatefulSet per site, whose scale the controller sets through kubectl.

The StatefulSet exists already (`curtail site manifest`), with replicas 0. The controller reads it and
its pods and patches its scale, and needs no other right: no custom resource, no operator, because the
store holds the desired state. Pod N is machine N. A StatefulSet removes its highest pods first, so
machines are released from the highest on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.provision.driver import ProvisionError, Request, Runs, output_of, run_program
from controller.provision.lifecycle import Observed
from curtail.config import KubernetesSection


def statefulset_name(settings: KubernetesSection, site: str) -> str:
    """The StatefulSet of a site; site names may hold what Kubernetes forbids."""
    return settings.statefulset or "curtail-" + site.lower().replace("_", "-").replace(".", "-").strip("-")


def pod_state(pod: Mapping[str, Any]) -> tuple[str, str]:
    """State and reason of a pod, as `Observed` has them."""
    status = pod.get("status", {})
    phase = status.get("phase", "Unknown")
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return "running", "Kubernetes: terminating"
    waiting = [
        container["state"]["waiting"].get("reason", "")
        for container in status.get("containerStatuses", [])
        if "waiting" in container.get("state", {})
    ]
    unmet = [
        condition.get("message") or condition.get("reason", "")
        for condition in status.get("conditions", [])
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False"
    ]
    why = "; ".join(filter(None, [phase.lower(), *waiting, *unmet]))
    if phase == "Running":
        return "running", f"Kubernetes: {why}"
    # The StatefulSet makes an ended pod anew, so it has not gone.
    return "pending", f"Kubernetes: {why}"


@dataclass(frozen=True, slots=True)
class KubernetesDriver:
    """The machines of one site as the pods of its StatefulSet."""

    settings: KubernetesSection
    run_name: str
    site: str
    run: Runs = run_program

    @property
    def name(self) -> str:
        """Name of the StatefulSet."""
        return statefulset_name(self.settings, self.site)

    def ensure(self, request: Request) -> Observed:
        if self._replicas() <= request.machine:
            self._scale(request.machine + 1)
        return Observed(request.machine, "pending", f"{self.name} scaled to {request.machine + 1}", self.name)

    def release(self, observed: Observed, grace_s: float, now: bool) -> None:
        # The pod's own termination grace ends it; the controller has no right to delete pods.
        if self._replicas() > observed.machine:
            self._scale(observed.machine)

    def observe(self) -> list[Observed]:
        replicas, pods = self._replicas(), self._pods()
        found = []
        for machine in sorted({*range(replicas), *pods}):
            state, why = pod_state(pods[machine]) if machine in pods else ("pending", "Kubernetes: no pod yet")
            found.append(Observed(machine, state, why, f"{self.name}-{machine}"))
        return found

    def _pods(self) -> dict[int, Mapping[str, Any]]:
        listed = self._json("get", "pods", "--selector", f"app.kubernetes.io/instance={self.name}")
        found = {}
        for pod in listed.get("items", []):
            head, _, number = pod["metadata"]["name"].rpartition("-")
            ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
            if head == self.name and number.isdigit() and not (ended and pod["metadata"].get("deletionTimestamp")):
                found[int(number)] = pod
        return found

    def _replicas(self) -> int:
        return int(self._json("get", "statefulset", self.name).get("spec", {}).get("replicas", 1))

    def _scale(self, replicas: int) -> None:
        patch = json.dumps({"spec": {"replicas": replicas}})
        argv = self._argv("patch", "statefulset", self.name, "--subresource=scale", "--type=merge", "--patch", patch)
        output_of(self.run, argv)

    def _json(self, *words: str) -> dict[str, Any]:
        text = output_of(self.run, self._argv(*words, "--output=json"))
        try:
            value = json.loads(text)
        except ValueError:
            raise ProvisionError(f"kubectl {words[0]} {words[1]} printed no JSON: {text[:100]!r}") from None
        if not isinstance(value, dict):
            raise ProvisionError(f"kubectl {words[0]} {words[1]} printed no object")
        return value

    def _argv(self, *words: str) -> list[str]:
        settings = self.settings
        context = [f"--context={settings.context}"] if settings.context else []
        return [*settings.prefix, *context, f"--namespace={settings.namespace}", *words]
