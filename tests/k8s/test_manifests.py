"""What k8s/ renders to: whether a cluster would take it, and whether its parts fit one another and the programs."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema
import pytest
import yaml

from gateway.access import PUBLIC
from gateway.config import GatewayConfig
from sampler_svc.config import SamplerConfig
from tests.k8s import strict_schemas
from tests.k8s.network import OURS, Party, may_send, pods, reached
from tests.k8s.rendered import COMPONENTS, FOLDER, OVERLAYS, SERVICES, Object, Rendered, combined, overlay
from tuner_svc.config import TunerConfig
from unitune import metrics
from unitune.drain import DRAIN_S, KILLED_AFTER_S, LEAVE_S
from unitune.serving import LIVENESS, READINESS
from unitune.settings import BadSetting, load

CONFIGS = {"gateway": GatewayConfig, "tuner": TunerConfig, "sampler": SamplerConfig}
# What an operator brings, as docs/deploy.md says.
SECRETS: Mapping[str, Mapping[str, str]] = {
    "edge-tls": {},
    "gateway-bucket": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"},
    "sampler-bucket": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"},
    "tuner-bucket": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"},
    "unitune-admin-key": {"admin.key": "ut_k0123456789ab_" + 43 * "A"},
    "unitune-database": {"url": "postgresql://unitune@db.example/unitune"},
    "unitune-db-app": {"uri": "postgresql://unitune@unitune-db-rw/unitune"},
    "unitune-scaler": {"connection": "host=db.example user=unitune_scaler"},
}
BY_OVERLAY = [*OVERLAYS, *COMPONENTS, "base"]
# Of KEDA's triggers, what their `metadata` may have: tests/k8s/schemas/README.md.
TRIGGERS = {
    "postgresql": ({"query"}, {"targetQueryValue", "activationTargetQueryValue", "host", "port", "userName", "dbName"}),
    "prometheus": ({"serverAddress", "query", "threshold"}, {"activationThreshold", "ignoreNullValues", "timeout"}),
}
SCALERS = ("HorizontalPodAutoscaler", "ScaledObject")


@pytest.fixture(scope="module", params=BY_OVERLAY)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Each overlay, and each component over the base."""
    name = request.param
    if name in COMPONENTS:
        return combined(name, COMPONENTS[name], tmp_path_factory.mktemp(name))
    return overlay(name)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """All components at once."""
    last = ("engine-jobs", "keda")
    order = ("postgres", *(name for name in COMPONENTS if name not in ("postgres", *last)), *last)
    return combined("everything", order, tmp_path_factory.mktemp("everything"))


# What is looked at of each overlay. Each raises AssertionError, or jsonschema.ValidationError or BadSetting.


def check_schemas(rendered: Rendered) -> None:
    for found in rendered.objects:
        strict_schemas.check(found)
        for trigger in found["spec"]["triggers"] if found["kind"] == "ScaledObject" else ():
            needed, known = TRIGGERS[trigger["type"]]
            assert needed <= trigger["metadata"].keys() <= needed | known, trigger


def check_settings(rendered: Rendered) -> None:
    for workload, container in rendered.containers():
        environment = rendered.environment(container, SECRETS)
        if container["name"] in CONFIGS:
            load(CONFIGS[container["name"]], environment)
        else:
            assert not [name for name in environment if name.startswith("UNITUNE_")], workload["metadata"]["name"]


def check_probes(rendered: Rendered) -> None:
    for workload, container in rendered.containers():
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind)
            if container["name"] in SERVICES and probe is not None:
                service = LIVENESS if kind == "livenessProbe" else READINESS
                address = rendered.environment(container, SECRETS)["UNITUNE_HEALTH_ADDRESS"]
                assert probe["grpc"] == {"port": ports["health"], "service": service}
                assert address == f"0.0.0.0:{ports['health']}"
            elif probe is not None:
                assert probe["tcpSocket"]["port"] in ports
        if workload["kind"] == "Deployment" and container["name"] in (*SERVICES, "envoy"):
            assert container["readinessProbe"] and container["livenessProbe"]


def check_ports(rendered: Rendered) -> None:
    """Services, and addresses in settings, lead to ports that programs listen on."""
    ours = pods(rendered)
    for service in rendered.kind("Service"):
        selected = [pod for pod in ours if service["spec"]["selector"].items() <= pod.labels.items()]
        assert len(selected) == 1, service["metadata"]["name"]
        names = {port["name"] for port in ours[selected[0]]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    headless = {"UNITUNE_SAMPLER": "sampler", "UNITUNE_GATEWAY": "gateway"}
    for _, container in rendered.containers():
        environment = rendered.environment(container, SECRETS)
        for variable, deployment in headless.items():
            if variable in environment:
                host, _, port = environment[variable].rpartition(":")
                service = rendered.find("Service", host)["spec"]
                assert (
                    service.get("clusterIP") == "None" and service["selector"]["app.kubernetes.io/name"] == deployment
                )
                assert int(port) in {one["port"] for one in service["ports"]}
        for name, value in environment.items():
            if name.startswith("UNITUNE_") and name.endswith("_ADDRESS"):
                host, _, port = value.rpartition(":")
                own = {one["containerPort"] for one in container["ports"]}
                assert int(port) in own or host == "127.0.0.1", (name, value)


def check_references(rendered: Rendered) -> None:
    """What an object names is there, or is what an operator brings."""

    def names(*kinds: str) -> set[str]:
        return {found["metadata"]["name"] for found in rendered.kind(*kinds)}

    certificates = {found["spec"]["secretName"] for found in rendered.kind("Certificate")}
    secrets = SECRETS.keys() | certificates | names("ExternalSecret")
    for workload, pod in rendered.pods():
        spec = pod["spec"]
        assert spec["serviceAccountName"] in names("ServiceAccount")
        volumes = {}
        for volume in spec["volumes"]:
            volumes[volume["name"]] = volume
            kinds = volume.keys() - {"name"}
            assert len(kinds) == 1 and kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}, volume
            assert volume.get("secret", {"secretName": "edge-tls"})["secretName"] in secrets
            assert "configMap" not in volume or volume["configMap"]["name"] in names("ConfigMap")
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in names("PersistentVolumeClaim")
        containers = [*spec.get("initContainers", []), *spec["containers"]]
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        assert mounted == volumes.keys(), workload["metadata"]["name"]
        assert workload["spec"].get("selector", {}).get("matchLabels", {}).items() <= pod["metadata"]["labels"].items()
    labels = [pod.labels for pod in pods(rendered)]
    for budget in rendered.kind("PodDisruptionBudget"):
        assert any(budget["spec"]["selector"]["matchLabels"].items() <= one.items() for one in labels)
    for scaler in rendered.kind(*SCALERS):
        target = rendered.find("Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"]  # or each `kubectl apply` would set it
    for monitor in rendered.kind("PodMonitor"):
        (expression,) = monitor["spec"]["selector"]["matchExpressions"]
        named = {pod.labels["app.kubernetes.io/name"]: ports for pod, ports in pods(rendered).items()}
        for name in expression["values"]:
            assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= {p["name"] for p in named[name]}
    for route in rendered.kind("GRPCRoute"):
        (rule,) = route["spec"]["rules"]
        asked = {match["method"]["service"] for match in rule["matches"]}
        assert asked == {service.full_name for service in PUBLIC} | {"grpc.health.v1.Health"}
        for backend in rule["backendRefs"]:
            service = rendered.find("Service", backend["name"])
            assert backend["port"] in {port["port"] for port in service["spec"]["ports"]}


def check_security(rendered: Rendered) -> None:
    """The restricted profile of pod security, and what goes beyond it."""
    for workload, pod in rendered.pods():
        spec, name = pod["spec"], workload["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False and security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]} and not security.get("privileged"), name
            assert ":" in container["image"] and not container["image"].endswith(":latest"), name


def check_resources(rendered: Rendered) -> None:
    """Memory is asked for and bounded, processor time asked for; what is asked for is within the bound."""
    for workload, container in rendered.containers():
        resources, name = container["resources"], workload["metadata"]["name"]
        assert resources["requests"]["cpu"], name
        assert mebibytes(resources["requests"]["memory"]) <= mebibytes(resources["limits"]["memory"]), name


def check_drain(rendered: Rendered) -> None:
    """A pod is killed only after its wait and its program's own end."""
    for workload, pod in rendered.pods():
        if workload["kind"] != "Deployment":
            continue
        spec = pod["spec"]
        assert spec["terminationGracePeriodSeconds"] == KILLED_AFTER_S, workload["metadata"]["name"]
        for container in spec["containers"]:
            waits_s = container.get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})["sleep"]["seconds"]
            ends_s = DRAIN_S + LEAVE_S if container["name"] in SERVICES else 0
            assert waits_s + ends_s < spec["terminationGracePeriodSeconds"], workload["metadata"]["name"]
            # Whoever is called waits until nobody calls any more.
            assert (waits_s > 0) == (workload["metadata"]["name"] != "tuner")


def check_metrics(rendered: Rendered) -> None:
    """What autoscalers and alerts ask for is measured."""
    known = {sample.name for metric in metrics.REGISTRY.collect() for sample in metric.samples}
    known |= {
        f"{metric.name}{end}" for metric in metrics.REGISTRY.collect() for end in ("", "_total", "_count", "_sum")
    }
    for query in queries(rendered):
        names = set(re.findall(r"\bunitune_\w+", query))
        assert names and names <= known, query
    for scaler in rendered.kind("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            assert metric["type"] == "Resource"  # a part of what is asked for
            container = rendered.service(scaler["spec"]["scaleTargetRef"]["name"])
            assert metric["resource"]["name"] in container["resources"]["requests"]


def check_engines(rendered: Rendered) -> None:
    """The sampler opens the engine that is built for it, for the backend that it has."""
    pod = rendered.find("Deployment", "sampler")["spec"]["template"]["spec"]
    container = rendered.service("sampler")
    environment = rendered.environment(container, SECRETS)
    builds = [one for one in pod["initContainers"] if one["name"] == "build-engine"]
    builds += [one["spec"]["template"]["spec"]["containers"][0] for one in rendered.kind("Job")]
    for build in builds:
        given = dict(zip(build["args"][::2], build["args"][1::2], strict=True))
        assert given["--out"] == environment["UNITUNE_ENGINE"] and build["image"] == container["image"]
        assert given.get("--backend", "onnxruntime") == environment.get("UNITUNE_SAMPLER_BACKEND", "onnxruntime")


CHECKS: tuple[Callable[[Rendered], None], ...] = (
    *(check_schemas, check_settings, check_probes, check_ports, check_references, check_security, check_resources),
    *(check_drain, check_metrics, check_engines),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_what_is_rendered_is_right(rendered: Rendered, check: Callable[[Rendered], None]) -> None:
    """Each overlay, and each component over the base: taken by strict schemas, read by the programs, and consistent
    (F46)."""
    check(rendered)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_all_components_go_together(everything: Rendered, check: Callable[[Rendered], None]) -> None:
    """All components at once are right, too."""
    check(everything)


def spec_of(rendered: Rendered, deployment: str) -> Object:
    """The pod of a Deployment."""
    found: Object = rendered.find("Deployment", deployment)["spec"]["template"]["spec"]
    return found


def variable(rendered: Rendered, service: str, name: str) -> Object:
    """A variable of a service's environment."""
    return next(one for one in rendered.service(service)["env"] if one["name"] == name)


# What somebody could get wrong, and the check that finds it.
MISTAKES: Mapping[str, tuple[Callable[[Rendered], None], Callable[[Rendered], Any]]] = {
    "a field that is none": (check_schemas, lambda r: spec_of(r, "tuner").update(terminationGraceSeconds=45)),
    "a probe of a named port": (
        check_schemas,
        lambda r: r.service("gateway")["readinessProbe"].update(grpc={"port": "health"}),
    ),
    "a trigger's field that is none": (
        check_schemas,
        lambda r: r.find("ScaledObject", "tuner")["spec"]["triggers"][0]["metadata"].update(targetQuery="1"),
    ),
    "a field that KEDA does not know": (
        check_schemas,
        lambda r: r.find("ScaledObject", "tuner")["spec"].update(minReplicas=0),
    ),
    "a setting that is none": (
        check_settings,
        lambda r: variable(r, "gateway", "UNITUNE_SAMPLER").update(name="UNITUNE_SAMPLERS"),
    ),
    "a store that is not set": (
        check_settings,
        lambda r: next(one for one in r.kind("ConfigMap") if "UNITUNE_STORE" in one["data"])["data"].clear(),
    ),
    "a health port that is another one": (
        check_probes,
        lambda r: variable(r, "tuner", "UNITUNE_HEALTH_ADDRESS").update(value="0.0.0.0:50061"),
    ),
    "a Service that selects nobody": (
        check_ports,
        lambda r: r.find("Service", "sampler")["spec"]["selector"].update({"app.kubernetes.io/name": "samplers"}),
    ),
    "a Service with one address": (check_ports, lambda r: r.find("Service", "sampler")["spec"].pop("clusterIP")),
    "a sampler at another port": (
        check_ports,
        lambda r: variable(r, "gateway", "UNITUNE_SAMPLER").update(value="sampler:50051"),
    ),
    "a Secret that nobody brings": (
        check_references,
        lambda r: spec_of(r, "gateway")["volumes"].append({"name": "x", "secret": {"secretName": "nobodys"}}),
    ),
    "a number of pods beside an autoscaler": (
        check_references,
        lambda r: r.find("Deployment", "gateway")["spec"].update(replicas=3),
    ),
    "variables of all Services": (check_security, lambda r: spec_of(r, "edge").update(enableServiceLinks=True)),
    "root": (check_security, lambda r: spec_of(r, "edge")["securityContext"].update(runAsUser=0)),
    "memory without a bound": (
        check_resources,
        lambda r: r.service("tuner")["resources"].update(limits={"memory": "1Mi"}),
    ),
    "a wait that leaves no time": (
        check_drain,
        lambda r: r.service("gateway").update(lifecycle={"preStop": {"sleep": {"seconds": 15}}}),
    ),
    "a metric that is none": (
        check_metrics,
        lambda r: r.find("ScaledObject", "sampler")["spec"]["triggers"][0]["metadata"].update(
            query="sum(unitune_edit)"
        ),
    ),
    "an engine elsewhere": (
        check_engines,
        lambda r: variable(r, "sampler", "UNITUNE_ENGINE").update(value="/var/lib/unitune/engines/other"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    """What is wrong in one place of the overlay `prod` fails its check."""
    check, make = MISTAKES[mistake]
    wrong = Rendered(mistake, copy.deepcopy(overlay("prod").objects))
    make(wrong)
    with pytest.raises((AssertionError, BadSetting, jsonschema.ValidationError)):
        check(wrong)


def queries(rendered: Rendered) -> Iterator[str]:
    """What is asked of Prometheus."""
    for scaler in rendered.kind("ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            if trigger["type"] == "prometheus":
                yield trigger["metadata"]["query"]
    for rules in rendered.kind("PrometheusRule"):
        for group in rules["spec"]["groups"]:
            yield from (rule["expr"] for rule in group["rules"])


def mebibytes(quantity: str) -> float:
    """Of a quantity of memory."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


def test_alerts_are_the_same_for_the_operator_of_prometheus() -> None:
    """k8s/monitoring/rules.yaml has the groups of alerts.yaml, which promtool tests."""
    rules = yaml.safe_load((FOLDER / "monitoring" / "rules.yaml").read_text())
    alerts = yaml.safe_load((FOLDER / "monitoring" / "alerts.yaml").read_text())
    assert rules["spec"]["groups"] == alerts["groups"]


def test_no_tuner_is_no_alert_where_they_scale_to_none() -> None:
    """With tuners down to none, one is missed only when tunings wait; the sampler as ever."""
    (told,) = (
        rule
        for rule in overlay("prod").kind("PrometheusRule")[0]["spec"]["groups"][0]["rules"]
        if rule["alert"] == "UniTuneUpstreamSilent"
    )
    assert overlay("prod").find("ScaledObject", "tuner")["spec"]["minReplicaCount"] == 0
    silent, waits = told["expr"].split(" or ")
    assert 'upstream="sampler"' in silent and "and on () max(unitune_oldest_wait_seconds" in waits


def outside(namespace: str) -> Party:
    """Any pod of another namespace."""
    return Party(namespace, namespace=namespace)


WORLD = Party("world", namespace="", address="203.0.113.7")
METADATA = Party("metadata", namespace="", address="169.254.169.254")
STRANGER = Party("stranger", {"app.kubernetes.io/name": "stranger"})  # another pod of the namespace
OTHERS = (WORLD, STRANGER, *map(outside, ("default", "gateway-system", "keda", "kube-system", "monitoring")))


def test_only_who_has_to_reaches_a_service() -> None:
    """Of all pairs in the overlay `prod`, these and no others may connect; health is asked for by the kubelet, which
    policies let through."""
    rendered = overlay("prod")
    assert {found["metadata"]["namespace"] for found in rendered.kind("Deployment")} == {OURS}
    assert reached(rendered, OTHERS) == {
        ("edge", "gateway", "grpc"),
        ("gateway", "sampler", "grpc"),
        ("gateway-system", "gateway", "grpc"),
        ("monitoring", "gateway", "metrics"),
        ("monitoring", "sampler", "metrics"),
        ("monitoring", "tuner", "metrics"),
        ("tuner", "gateway", "internal"),
        *((source, "edge", "https") for source in ("default", "gateway-system", "keda", "kube-system", "monitoring")),
        ("world", "edge", "https"),
    }


def test_only_what_has_to_leaves_a_pod() -> None:
    """In the overlay `prod`: names are asked for by all, the database by gateways, buckets by all three services, the
    machines' metadata by nobody."""
    rendered = overlay("prod")

    def senders(to: Party, port: int, protocol: str = "TCP") -> set[str]:
        asked = {"containerPort": port, "protocol": protocol}
        return {pod.name for pod in pods(rendered) if may_send(rendered, pod, to, asked)}

    everybody = {*SERVICES, "edge"}
    names = outside("kube-system")
    assert senders(names, 53, "UDP") == senders(names, 53) == everybody
    assert senders(WORLD, 443) == {*SERVICES} and senders(WORLD, 5432) == {"gateway"}
    assert senders(WORLD, 80) == senders(WORLD, 22) == set() == senders(METADATA, 443) == senders(METADATA, 80)
    assert senders(outside("default"), 443) == set()


def test_without_egress_rules_the_base_still_closes_what_is_internal() -> None:
    """With k8s/base alone the sampler hears gateways only, the internal port tuners only, and a tuner nobody."""
    found = reached(overlay("base"), OTHERS)
    assert {source for source, to, port in found if (to, port) == ("sampler", "grpc")} == {"gateway"}
    assert {source for source, to, port in found if (to, port) == ("gateway", "internal")} == {"tuner"}
    assert not [source for source, to, _ in found if to == "tuner"]
