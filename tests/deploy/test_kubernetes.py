"""The Kubernetes overlays, rendered: what schemas, the pod security standard and we demand."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.server.settings import SECRETS, Settings
from tests.deploy.known import known_variables
from tests.deploy.kustomize import Resource, build

OVERLAYS = Path(__file__).parents[2] / "deploy" / "kubernetes" / "overlays"
NAMES = ("single", "replicas", "ingress")
#: Versions of Kubernetes that the overlays are for.
VERSIONS = ("1.29", "1.34")


@pytest.fixture(params=NAMES)
def resources(request: pytest.FixtureRequest) -> list[Resource]:
    return build(OVERLAYS / request.param)


def pods(resources: list[Resource]) -> dict[str, dict[str, Any]]:
    """Component -> specification of its pods."""
    return {
        resource["metadata"]["name"]: resource["spec"]["template"]["spec"]
        for resource in resources
        if "template" in resource.get("spec", {})
    }


def environment(pod: dict[str, Any], resources: list[Resource]) -> dict[str, str]:
    """What the only container of a pod has in its environment."""
    (container,) = pod["containers"]
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        (found,) = [
            resource
            for resource in resources
            if (resource["kind"], resource["metadata"]["name"]) == ("ConfigMap", name)
        ]
        values |= found["data"]
    for entry in container.get("env", []):
        if "value" in entry:
            values[entry["name"]] = entry["value"]
        else:
            asked = entry["valueFrom"]["configMapKeyRef"]
            data = of_kind(resources, "ConfigMap")[asked["name"]]["data"]
            values[entry["name"]] = data[asked["key"]]
    return values


def of_kind(resources: list[Resource], kind: str) -> dict[str, Resource]:
    return {
        resource["metadata"]["name"]: resource for resource in resources if resource["kind"] == kind
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_follows_its_published_schema(
    resources: list[Resource], version: str
) -> None:
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    (backend,) = of_kind(build(OVERLAYS / "single"), "StatefulSet").values()
    backend["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(backend, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_kustomize_renders_the_same(name: str) -> None:
    kustomize, kubectl = (shutil.which(name) for name in ("kustomize", "kubectl"))
    command = [kustomize, "build"] if kustomize else [kubectl, "kustomize"]
    if command[0] is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    told = subprocess.run(
        [*command, str(OVERLAYS / name)], check=True, capture_output=True, text=True
    )
    # Names of generated ones end in a digest of their content.
    text = re.sub(r"\b(lidiv|balancer)-[a-z0-9]{10}\b", r"\1", told.stdout)
    assert by_name(list(yaml.safe_load_all(text))) == by_name(build(OVERLAYS / name))


def by_name(resources: list[Resource]) -> dict[str, str]:
    return {
        f"{resource['kind']} {resource['metadata']['name']}": json.dumps(
            resource, sort_keys=True, indent=1
        )
        for resource in resources
    }


def test_only_variables_that_are_read_are_set(resources: list[Resource]) -> None:
    known = known_variables()
    for component, pod in pods(resources).items():
        ours = set(environment(pod, resources))
        if component == "balancer":
            named = {"BACKEND_1", "BACKEND_2", "NGINX_ENTRYPOINT_LOCAL_RESOLVERS"}
            assert ours == named | {"LIDIV_PROXIES"}
        else:
            assert ours
            assert ours <= known


def test_what_is_set_are_settings_that_the_server_and_the_worker_take(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secrets = {
        "label-studio-token": "t0ken",
        "webhook-secret": "s3cret",
        "basic-auth-password": "passw0rd",
        "database-url": "postgresql+psycopg://lidiv@database/lidiv",
    }
    for name, value in secrets.items():
        (tmp_path / name).write_text(value)
    for component in ("backend", "worker"):
        values = environment(pods(resources)[component], resources)
        with monkeypatch.context() as patched:
            for name in [name for name in os.environ if name.startswith("LIDIV_")]:
                patched.delenv(name)
            for name, value in values.items():
                patched.setenv(name, value.replace("/run/secrets/lidiv", str(tmp_path)))
            settings = Settings.from_environment()
            assert settings.label_studio_token.get_secret_value() == "t0ken"
            assert LearningSettings.from_environment().worker is False


def test_replicas_can_be_applied_over_a_single_one() -> None:
    """An API server refuses to change these once they are there."""
    before, after = build(OVERLAYS / "single"), build(OVERLAYS / "replicas")
    (old,), (new,) = (of_kind(found, "StatefulSet").values() for found in (before, after))
    for field in ("podManagementPolicy", "selector", "serviceName", "volumeClaimTemplates"):
        assert old["spec"].get(field) == new["spec"].get(field), field
    for kind in ("PersistentVolumeClaim", "Deployment"):
        stay, become = of_kind(before, kind), of_kind(after, kind)
        for name in stay.keys() & become.keys():
            for field in ("accessModes", "selector"):
                assert stay[name]["spec"].get(field) == become[name]["spec"].get(field), name


def test_every_claim_is_there(resources: list[Resource]) -> None:
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods(resources).values()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == of_kind(resources, "PersistentVolumeClaim").keys()


def test_an_image_that_was_loaded_into_the_node_is_not_pulled(resources: list[Resource]) -> None:
    for pod in pods(resources).values():
        for container in pod["containers"]:
            # Kubernetes pulls ":latest" always unless it is told otherwise.
            latest = container["image"].endswith(":latest")
            assert container.get("imagePullPolicy") == "IfNotPresent" or not latest


def test_the_idle_server_is_the_server_without_its_probes() -> None:
    patch = yaml.safe_load((OVERLAYS.parent / "idle.yaml").read_text())
    (idle,) = patch["spec"]["template"]["spec"]["containers"]
    (container,) = pods(build(OVERLAYS / "single"))["backend"]["containers"]
    assert idle["name"] == container["name"]
    probes = {field for field in container if field.endswith("Probe")}
    assert {field for field, value in idle.items() if value is None} == probes


def test_no_secret_is_written_into_a_file(resources: list[Resource]) -> None:
    assert not of_kind(resources, "Secret")
    for pod in pods(resources).values():
        for name, value in environment(pod, resources).items():
            if name.removeprefix("LIDIV_").removesuffix("_FILE").lower() in SECRETS:
                assert name.endswith("_FILE")
                assert value.startswith("/run/secrets/lidiv/")


def test_every_pod_keeps_to_the_restricted_standard(resources: list[Resource]) -> None:
    """As the standard puts it, https://kubernetes.io/docs/concepts/security/pod-security-standards."""
    (namespace,) = of_kind(resources, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"}
    allowed |= {"persistentVolumeClaim", "projected", "secret"}
    for pod in pods(resources).values():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert pod["automountServiceAccountToken"] is False
        for volume in pod.get("volumes", []):
            assert set(volume) - {"name"} <= allowed
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
            assert "privileged" not in context


def test_every_container_has_limits_and_whoever_listens_has_probes(
    resources: list[Resource],
) -> None:
    for component, pod in pods(resources).items():
        for container in pod["containers"]:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind])
            probes = {
                name: container[name]["httpGet"]["path"]
                for name in ("startupProbe", "readinessProbe", "livenessProbe")
                if name in container
            }
            if component == "backend":
                assert probes == {
                    "startupProbe": "/ready",
                    "readinessProbe": "/ready",
                    "livenessProbe": "/health",
                }
            elif component == "balancer":
                assert set(probes.values()) == {"/balancer"}
            else:
                assert not container.get("ports")


def test_a_pod_is_given_longer_to_stop_than_gunicorn_takes(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lidiv_backend.server import gunicorn_settings

    grace = pods(resources)["backend"]["terminationGracePeriodSeconds"]
    assert grace > gunicorn_settings.graceful_timeout


def test_images_that_are_mounted_and_claims_exist(resources: list[Resource]) -> None:
    claims = set(of_kind(resources, "PersistentVolumeClaim"))
    maps = set(of_kind(resources, "ConfigMap"))
    for pod in pods(resources).values():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps


def test_services_lead_to_pods_that_there_are(resources: list[Resource]) -> None:
    labels = [
        resource["spec"]["template"]["metadata"]["labels"]
        for resource in resources
        if "template" in resource.get("spec", {})
    ]
    for service in of_kind(resources, "Service").values():
        wanted = service["spec"]["selector"].items()
        assert sum(wanted <= having.items() for having in labels) == 1
    for ingress in of_kind(resources, "Ingress").values():
        assert ingress["spec"]["tls"]
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"]["service"]["name"] in of_kind(resources, "Service")


def test_network_policies_let_through_what_is_needed_and_no_more(
    resources: list[Resource],
) -> None:
    policies = of_kind(resources, "NetworkPolicy")
    assert policies["deny-all"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    components = {
        policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for name, policy in policies.items()
        if name != "deny-all"
    }
    assert components == set(pods(resources))
    assert not policies["worker"]["spec"].get("ingress")
    for name in ("backend", "worker"):
        blocks = [
            peer["ipBlock"]
            for rule in policies[name]["spec"]["egress"]
            for peer in rule["to"]
            if "ipBlock" in peer
        ]
        metadata = ipaddress.ip_address("169.254.169.254")
        for block in blocks:
            assert any(metadata in ipaddress.ip_network(net) for net in block["except"])
    has_server = "LIDIV_DATABASE_URL_FILE" in environment(pods(resources)["backend"], resources)
    for name in ("backend", "worker"):
        ports = {
            port["port"] for rule in policies[name]["spec"]["egress"] for port in rule["ports"]
        }
        assert (5432 in ports) == has_server


def test_replicas_share_a_database_and_the_files_and_have_a_gpu_each() -> None:
    resources = build(OVERLAYS / "replicas")
    (backend,) = of_kind(resources, "StatefulSet").values()
    assert backend["spec"]["replicas"] == 2
    for component in ("backend", "worker"):
        pod = pods(resources)[component]
        assert environment(pod, resources)["LIDIV_DATABASE_URL_FILE"]
        assert environment(pod, resources)["LIDIV_DEVICE"] == "cuda"
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert "podAffinity" not in pod.get("affinity", {})
    (claim,) = of_kind(resources, "PersistentVolumeClaim").values()
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    balancer = pods(resources)["balancer"]
    names = [environment(balancer, resources)[f"BACKEND_{number}"] for number in (1, 2)]
    service = backend["spec"]["serviceName"]
    assert names == [f"backend-{n}.{service}.lidiv.svc.cluster.local:9090" for n in (0, 1)]
    assert service in of_kind(resources, "Service")


@pytest.mark.parametrize(("name", "proxies"), [("replicas", "1"), ("ingress", "2")])
def test_the_server_and_the_balancer_count_the_same_proxies(name: str, proxies: str) -> None:
    resources = build(OVERLAYS / name)
    for component in ("backend", "balancer"):
        assert environment(pods(resources)[component], resources)["LIDIV_PROXIES"] == proxies
