"""Who reaches whom by NetworkPolicies, as a network plugin that enforces them decides it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from tests.k8s.rendered import Object, Rendered

NAMESPACE = "kubernetes.io/metadata.name"
OURS = "unitune"


@dataclass(frozen=True)
class Party:
    """Who sends or is sent to: a pod of ours, any pod of another namespace, or with an address a machine elsewhere."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    namespace: str = OURS
    address: str = ""

    @property
    def is_pod_of_ours(self) -> bool:
        return self.namespace == OURS and not self.address


def pods(rendered: Rendered) -> dict[Party, list[Object]]:
    """The pods of all Deployments, by the names of those, and their ports."""
    return {
        Party(workload["metadata"]["name"], pod["metadata"]["labels"]): [
            port for container in pod["spec"]["containers"] for port in container["ports"]
        ]
        for workload, pod in rendered.pods()
        if workload["kind"] == "Deployment"
    }


def reached(rendered: Rendered, others: Iterable[Party]) -> set[tuple[str, str, str]]:
    """(from, to, name of the port) for all of our pods' ports that somebody may reach."""
    ours = pods(rendered)
    return {
        (source.name, to.name, port["name"])
        for to, ports in ours.items()
        for port in ports
        for source in (*ours, *others)
        if may_send(rendered, source, to, port) and _allows(rendered, "Ingress", to, source, port)
    }


def may_send(rendered: Rendered, source: Party, to: Party, port: Object) -> bool:
    """Whether our side lets it out."""
    return not source.is_pod_of_ours or _allows(rendered, "Egress", source, to, port)


def _allows(rendered: Rendered, direction: str, pod: Party, other: Party, port: Object) -> bool:
    """Whether the policies of a pod allow what it gets from the other, or sends to it. Without one all is allowed."""
    policies = [policy["spec"] for policy in rendered.kind("NetworkPolicy")]
    own = [one for one in policies if direction in one["policyTypes"] and _selects(one["podSelector"], pod.labels)]
    rules = [rule for policy in own for rule in policy.get(direction.lower(), [])]
    return not own or any(_has(rule, other) and _opens(rule, port) for rule in rules)


def _has(rule: Object, other: Party) -> bool:
    peers = rule.get("from", rule.get("to"))
    return peers is None or any(_is(peer, other) for peer in peers)


def _opens(rule: Object, port: Object) -> bool:
    own = (port["containerPort"], port.get("name"))
    return "ports" not in rule or any(
        one["port"] in own and one.get("protocol", "TCP") == port.get("protocol", "TCP") for one in rule["ports"]
    )


def _is(peer: Object, other: Party) -> bool:
    """Whether a peer of a rule is the other one."""
    if "ipBlock" in peer:
        if not other.address:
            return False
        address, block = ip_address(other.address), peer["ipBlock"]
        return address in ip_network(block["cidr"]) and not any(address in ip_network(one) for one in block["except"])
    if other.address:
        return False
    if "namespaceSelector" in peer:
        is_there = _selects(peer["namespaceSelector"], {NAMESPACE: other.namespace})
    else:
        is_there = other.namespace == OURS
    return is_there and _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels selects these."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )
