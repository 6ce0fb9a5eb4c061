"""The chart, rendered by Helm's own engine: what it makes and refuses, and that the plain manifests are the same."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes_validate.utils import validate

from gasket.settings import Settings, is_secret, read_settings

if TYPE_CHECKING:
    from helm_python import Chart

helm = pytest.importorskip("helm_python", reason="helm-python-sdk has no wheel for this platform")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "gasket"
VERSIONS = ["1.25", "1.31", "1.37"]
"""The oldest that Chart.yaml allows, one in between, and the newest that kubernetes-validate knows."""

Values = dict[str, Any]
URL_IN_A_SECRET: Values = {"databaseUrl": {"secret": "postgresql", "key": "uri"}}
MIGRATION_URL = {"migrationDatabaseUrl": {"secret": "migrator"}}
EVERYTHING: Values = {
    "secrets": URL_IN_A_SECRET | {"migrationDatabaseUrl": {"value": "postgresql://ddl:p@db/gasket"}},
    "settings": {"GASKET_MAX_BODY_SIZE": 33_554_432, "GASKET_DRAIN_DELAY": 2.5, "GASKET_TRUSTED_PROXIES": "10.0.0.0/8"},
    "extraEnv": [{"name": "PGSSLROOTCERT", "value": "/etc/ca/ca.crt"}],
    "migration": {"job": True},
    "imagePullSecrets": [{"name": "registry"}],
    "podAnnotations": {"note": "x"},
    "podLabels": {"team": "ai"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    "serviceAccount": {"annotations": {"note": "x"}},
    "service": {"annotations": {"note": "x"}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "hosts": ["gasket.example"],
        "tls": [{"secretName": "tls", "hosts": ["gasket.example"]}],
        "annotations": {"note": "x"},
    },
    "autoscaling": {"enabled": True},
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}], "egress": [{"to": [{"podSelector": {}}]}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


def render(chart: Chart, values: Values | None = None, *, name: str = "gasket") -> dict[str, Any]:
    """The objects by kind, with a database's URL in a Secret unless the values have their own; none comes twice."""
    files = chart.render({"secrets": URL_IN_A_SECRET, **(values or {})}, name=name, namespace="ai")
    objects = [one for file, text in files.items() if file.endswith(".yaml") for one in yaml.safe_load_all(text) if one]
    named = {one["kind"] if one["kind"] != "Secret" else one["metadata"]["name"]: one for one in objects}
    assert len(named) == len(objects)
    return named


def pod(workload: Any) -> Any:
    return workload["spec"]["template"]["spec"]


def variables(workload: Any) -> dict[str, str]:
    [container] = pod(workload)["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


def test_by_default_there_is_no_hook_and_no_job(chart: Chart) -> None:
    """The start migrates."""
    files = chart.render({"secrets": URL_IN_A_SECRET}, name="gasket", namespace="ai")
    assert not re.search(r"helm\.sh/hook|argocd\.argoproj\.io", "".join(files.values()))
    assert render(chart).keys() == {
        "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "gasket-generated",
    }  # fmt: skip


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_what_is_rendered_is_valid(chart: Chart, values: Values) -> None:
    objects = render(chart, values)
    assert ("HorizontalPodAutoscaler" in objects) == (values is EVERYTHING)
    for one in objects.values():
        if one["kind"] != "ServiceMonitor":  # it is Prometheus Operator's, which has no schema here
            for version in VERSIONS:
                validate(one, version, strict=True)


def test_helm_has_nothing_to_say_against_the_chart() -> None:
    report = helm.lint(CHART, {"secrets": URL_IN_A_SECRET}, strict=True)
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


def test_every_pod_is_as_restricted_as_the_pod_security_standards_have_it(chart: Chart) -> None:
    """And as the image has its user: Kubernetes documentation, "Pod Security Standards", "Restricted"."""
    [user] = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    objects = render(chart, EVERYTHING)
    for workload in (objects["Deployment"], objects["Job"]):
        spec = pod(workload)
        context = spec["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == tuple(map(int, user))
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


REFUSED: list[tuple[Values, str]] = [
    ({"secrets": {}}, "secrets.databaseUrl is not set"),
    ({"secrets": {"databaseUrl": {"secret": "a", "value": "b"}}}, "secrets.databaseUrl has a secret and a value"),
    ({"replicas": 6}, "6 replicas, and one more during a rollout, open up to 98 connections (14 each)"),
    ({"settings": {"GASKET_DATABASE_POOL_SIZE": 26}}, "open up to 96 connections (32 each)"),
    ({"autoscaling": {"enabled": True, "maxReplicas": 6}}, "6 replicas, and one more"),
    (
        {"autoscaling": {"enabled": True, "minReplicas": 4, "maxReplicas": 3}},
        "autoscaling.minReplicas is 4, and autoscaling.maxReplicas is 3",
    ),
    (
        {"extraEnv": [{"name": "GASKET_DRAIN_TIMEOUT", "value": "300"}]},
        "extraEnv has GASKET_DRAIN_TIMEOUT, which settings has too",
    ),
    ({"extraEnv": [{"name": "DATABASE_URL", "value": "x"}]}, "extraEnv has DATABASE_URL, which the chart sets itself"),
    ({"extraEnv": [{"name": "GASKET_ADMIN_TOKEN_FILE", "value": "x"}]}, "extraEnv has GASKET_ADMIN_TOKEN_FILE, which"),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels has app.kubernetes.io/name, by which"),
    ({"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}, "resources.requests.cpu is not set"),
    ({"autoscaling": {"enabled": True}, "resources": {"requests": None}}, "resources.requests.cpu is not set"),
    ({"image": {"tag": "sha256:0123"}}, "at '/image/tag': 'sha256:0123' does not match pattern"),
    (
        {"image": {"repository": "r.example/gasket:1.2"}},
        "at '/image/repository': 'r.example/gasket:1.2' does not match",
    ),
    ({"ingress": {"enabled": True, "hosts": ["https://g.example/"]}}, "at '/ingress/hosts/0'"),
    ({"podDisruptionBudget": {"maxUnavailable": "many"}}, "at '/podDisruptionBudget/maxUnavailable'"),
    ({"terminationGracePeriodSeconds": 32}, "terminationGracePeriodSeconds is 32, and must be at least 33"),
    ({"settings": {"GASKET_DRAIN_DELAY": 5.5}}, "terminationGracePeriodSeconds is 35, and must be at least 35.5"),
    ({"migration": {"job": True}}, "migration.job is true, and secrets.migrationDatabaseUrl is not set"),
    ({"ingress": {"enabled": True}}, "ingress.hosts is empty"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "podDisruptionBudget.maxUnavailable is 0: no replica may ever"),
    ({"podDisruptionBudget": {"maxUnavailable": "0%"}}, "podDisruptionBudget.maxUnavailable is 0%: no replica may"),
    ({"podDisruptionBudget": {"minAvailable": 2}}, "additional properties 'minAvailable' not allowed"),
    ({"replica": 3}, "additional properties 'replica' not allowed"),
    ({"settings": {"GASKET_DRAIN_TIMEOUT": None}}, "missing property 'GASKET_DRAIN_TIMEOUT'"),
]


@pytest.mark.parametrize(("values", "problem"), REFUSED)
def test_what_cannot_work_is_not_rendered(chart: Chart, values: Values, problem: str) -> None:
    with pytest.raises(helm.HelmError) as refusal:
        render(chart, values)
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 5, "database": {"maxConnections": 84}},
        {"replicas": 50, "autoscaling": {"enabled": True, "maxReplicas": 5}},
        {"terminationGracePeriodSeconds": 33},
        {"image": {"repository": "r.example:5000/ai/gasket", "tag": "1.2-rc.1_x"}},
        {"ingress": {"enabled": True, "hosts": ["*.g.example", "localhost"]}},
        {"podDisruptionBudget": {"maxUnavailable": "1%"}},
        {"podDisruptionBudget": {"enabled": False, "maxUnavailable": 0}},
        {"settings": {"GASKET_DRAIN_DELAY": 0, "GASKET_DRAIN_TIMEOUT": 25}},
    ],
)
def test_what_just_works_is_rendered(chart: Chart, values: Values) -> None:
    assert render(chart, values)


def test_the_chart_counts_as_the_documents_do(chart: Chart) -> None:
    [others] = re.findall(r"`GASKET_DATABASE_POOL_SIZE` \+ (\d+)", (ROOT / "docs" / "settings.md").read_text())
    assert f"GASKET_DATABASE_POOL_SIZE) {others} " in (CHART / "templates" / "_helpers.tpl").read_text()
    defaults = {entry.metadata["env"]: entry.default for entry in fields(Settings)}
    assert all(defaults[name] == value for name, value in chart.values["settings"].items())


@pytest.mark.parametrize("entry", fields(Settings), ids=lambda entry: entry.metadata["env"])
def test_every_setting_can_be_set_and_no_secret(chart: Chart, entry: Any) -> None:
    """All but where the embedded PostgreSQL keeps its data: the image has none."""
    variable = entry.metadata["env"]
    values = {"settings": {variable: {"GASKET_METRICS_PUBLIC": True}.get(variable, 5)}}
    if is_secret(entry) or variable == "GASKET_DATA_DIR":
        with pytest.raises(helm.HelmValuesError):
            render(chart, values)
    else:
        assert variables(render(chart, values)["Deployment"])[variable] in ("5", "true")


def test_numbers_are_written_as_gasket_reads_them(chart: Chart) -> None:
    """Helm has them as floating point."""
    given = variables(render(chart, EVERYTHING)["Deployment"])
    assert given["GASKET_MAX_BODY_SIZE"] == "33554432"
    assert given["GASKET_DRAIN_DELAY"] == "2.5"
    assert given["GASKET_DRAIN_TIMEOUT"] == "20"


def test_secrets_that_are_nowhere_are_made_once(chart: Chart) -> None:
    first, second = (render(chart)["gasket-generated"] for _ in range(2))
    assert first["immutable"] is True
    assert first["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert first["data"].keys() == {"admin-token", "secret-key"}
    assert not set(first["data"].values()) & set(second["data"].values())
    token, key = (base64.b64decode(first["data"][name]).decode() for name in ("admin-token", "secret-key"))
    settings = read_settings({"GASKET_ADMIN_TOKEN": token, "GASKET_SECRET_KEY": key})
    assert (settings.admin_tokens, settings.secret_keys) == ((token,), (key,))
    assert 'lookup "v1" "Secret"' in (CHART / "templates" / "secrets.yaml").read_text()


def test_secrets_that_are_there_are_only_referred_to(chart: Chart) -> None:
    own = {"adminToken": {"secret": "own", "key": "token"}, "secretKey": {"secret": "own", "key": "fernet"}}
    objects = render(chart, {"secrets": URL_IN_A_SECRET | own, "serviceMonitor": {"enabled": True}})
    assert not [name for name, one in objects.items() if one["kind"] == "Secret"]
    assert files_of(objects["Deployment"]) == {
        "database-url": ("postgresql", "uri"),
        "admin-token": ("own", "token"),
        "secret-key": ("own", "fernet"),
    }
    [endpoint] = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "own", "key": "token"}}


def files_of(workload: Any) -> dict[str, tuple[str, str]]:
    """The Secret and the key that each mounted file comes from. Each has a variable that names it, and no other."""
    [mounted] = [volume["projected"] for volume in pod(workload)["volumes"] if volume["name"] == "secrets"]
    sources = [source["secret"] for source in mounted["sources"]]
    files = {item["path"]: (source["name"], item["key"]) for source in sources for item in source["items"]}
    named = {value for name, value in variables(workload).items() if name.endswith("_FILE")}
    assert named == {f"/run/secrets/gasket/{file}" for file in files}
    return files


def test_a_url_as_a_value_is_in_a_secret_and_nowhere_else(chart: Chart) -> None:
    url = "postgresql://gasket:hunter22@db/gasket"
    values = {"secrets": {"databaseUrl": {"value": url}}}
    objects = render(chart, values)
    assert objects["gasket-database"]["stringData"] == {"database-url": url}
    assert files_of(objects["Deployment"])["database-url"] == ("gasket-database", "database-url")
    assert "hunter22" not in str(objects["Deployment"])
    annotations = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    changed = render(chart, {"secrets": {"databaseUrl": {"value": f"{url}2"}}})["Deployment"]
    assert changed["spec"]["template"]["metadata"]["annotations"] != annotations


def test_with_a_job_the_replicas_wait_and_have_no_right_to_change_the_schema(chart: Chart) -> None:
    values = {"secrets": URL_IN_A_SECRET | MIGRATION_URL, "migration": {"job": True}}
    objects = render(chart, values)
    assert variables(objects["Deployment"])["GASKET_MIGRATE_ON_STARTUP"] == "false"
    assert "migration-database-url" not in files_of(objects["Deployment"])
    assert files_of(objects["Job"]).keys() == {"database-url", "migration-database-url"}
    assert pod(objects["Job"])["containers"][0]["command"] == ["gasket", "database", "upgrade"]
    labels = objects["Job"]["spec"]["template"]["metadata"]["labels"]
    assert not objects["Service"]["spec"]["selector"].items() <= labels.items()
    newer = render(chart, {**values, "image": {"tag": "0.2.0"}})["Job"]
    assert newer["metadata"]["name"] != objects["Job"]["metadata"]["name"]
    without = render(chart, {"secrets": URL_IN_A_SECRET | MIGRATION_URL})["Deployment"]
    assert "GASKET_MIGRATE_ON_STARTUP" not in variables(without)
    assert "migration-database-url" in files_of(without)


def test_two_releases_in_one_namespace_do_not_meet(chart: Chart) -> None:
    one, other = (render(chart, EVERYTHING, name=name) for name in ("gasket", "staging"))
    names = [{(each["kind"], each["metadata"]["name"]) for each in objects.values()} for objects in (one, other)]
    assert not names[0] & names[1]
    assert one["Service"]["spec"]["selector"] != other["Service"]["spec"]["selector"]


def test_the_plain_manifests_are_the_same(chart: Chart) -> None:
    """As the chart renders them with one Secret for everything, but for the labels that are Helm's."""
    secret = {name: {"secret": "gasket"} for name in ("databaseUrl", "adminToken", "secretKey")}
    rendered = render(chart, {"secrets": secret})
    for one in rendered.values():
        for labels in (one["metadata"]["labels"], one["spec"]["template"]["metadata"]["labels"] if pod_of(one) else {}):
            for label in ("helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"):
                labels.pop(label, None)
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    plain = [
        one
        for file in kustomization["resources"]
        for one in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text())
    ]
    assert {one["kind"]: one for one in plain} == rendered
    [image] = kustomization["images"]
    assert pod(rendered["Deployment"])["containers"][0]["image"] == f"{image['name']}:{image['newTag']}"


def pod_of(one: Any) -> bool:
    return "template" in one.get("spec", {})
