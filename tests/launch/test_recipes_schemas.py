"""YAML of recipes is what Kubernetes, JobSet and SkyPilot accept."""

import copy

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.recipes import AWKWARD, USUAL, recipe
from tests.pages_of_documents import ROOT, blocks_of

GKE = ["gke-tpu", "gke-gpu", "gke-bucket"]


def closed(properties: dict, required: tuple[str, ...] = ()) -> dict:
    """The schema of an object that has these fields and no other."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
# What JobSet v1alpha2 says of the fields that recipes have. The templates in it are Kubernetes' own Jobs.
RULE = closed(
    {
        "name": TEXT | {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "action": {
            "enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob",
                     "RestartJobAndIgnoreMaxRestarts"]
        },
        "onJobFailureReasons": {
            "items": {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded",
                               "PodFailurePolicy"]}
        },
        "targetReplicatedJobs": {"items": TEXT},
    },
    ("name", "action"),
)  # fmt: skip
JOBSET = closed(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": closed({"name": TEXT, "annotations": {"additionalProperties": TEXT}}, ("name",)),
        "spec": closed(
            {
                "failurePolicy": closed({"maxRestarts": NUMBER, "rules": {"items": RULE, "maxItems": 20}}),
                "replicatedJobs": {
                    "minItems": 1,
                    "items": closed(
                        {"name": TEXT, "replicas": NUMBER, "template": closed({"spec": {"type": "object"}}, ("spec",))},
                        ("name", "template"),
                    ),
                },
            }
        ),
    },
    ("apiVersion", "kind", "metadata", "spec"),
)
CODES = {"type": "array", "uniqueItems": True, "items": {"type": "integer", "minimum": 0, "maximum": 255}}
# What SkyPilot 0.14 says of them.
SKYPILOT = closed(
    {
        "name": TEXT,
        "num_nodes": NUMBER,
        "resources": closed(
            {
                "accelerators": TEXT | {"pattern": r"^[\w-]+(:\d+)?$"},
                "infra": TEXT,
                "image_id": TEXT,
                "use_spot": {"type": "boolean"},
                "job_recovery": closed({"recover_on_exit_codes": CODES}),
            }
        ),
        "volumes": {"type": "object", "propertyNames": {"pattern": "^/"}, "additionalProperties": TEXT},
        "envs": {"type": "object", "additionalProperties": TEXT},
        "run": TEXT,
    }
)


def loaded(name: str) -> dict:
    return yaml.safe_load(recipe(USUAL[name].split(), ["retsta", "train", *AWKWARD]))


def job_of(jobset: dict) -> dict:
    """The Job that JobSet makes of a recipe."""
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **template}


@pytest.mark.parametrize("name", GKE)
def test_a_jobset_has_the_fields_of_jobset(name):
    jsonschema.validate(loaded(name), JOBSET)


@pytest.mark.parametrize("name", GKE)
def test_its_job_is_one_that_kubernetes_accepts(name):
    job = job_of(loaded(name))
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    wrong = copy.deepcopy(job)
    wrong["spec"]["podFailurePolicy"]["rules"][0]["onExitCode"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", GKE)
def test_a_job_that_was_stopped_restarts_and_one_that_failed_does_not(name):
    spec = loaded(name)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    exits, disrupted = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    assert exits["action"] == disrupted["action"] == "FailJob"
    assert exits["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": [75, 143],
    }
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (job["backoffLimit"], pod["restartPolicy"], spec["failurePolicy"]["maxRestarts"]) == (0, "Never", 0)
    [rule] = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def pod_of(words: str) -> dict:
    return job_of(yaml.safe_load(recipe(words.split(), ["x"])))["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("--topology h100:8 --nodes 2", 86_400), ("--topology h100:8 --nodes 2 --join-timeout 60", 60),
        ("--topology h100-mega:8", 600), ("--topology v6e:4x4", 600),
    ],
)  # fmt: skip
def test_gpu_nodes_may_arrive_late_since_their_pods_start_one_by_one(options, seconds):
    variables = {row["name"]: row.get("value") for row in pod_of(f"gke --image i {options}")["containers"][0]["env"]}
    assert variables["MEDREPORT_JOIN_TIMEOUT"] == str(seconds)


@pytest.mark.parametrize("topology", ["h100:8", "v6e:4x4"])
def test_pods_of_spot_nodes_tolerate_their_taint_and_act_for_a_service_account(topology):
    pod = pod_of(f"gke --image i --topology {topology} --spot --service-account eyes")
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert pod["tolerations"] == [spot]
    assert pod["serviceAccountName"] == "eyes"
    assert not {"tolerations", "serviceAccountName"} & pod_of(f"gke --image i --topology {topology}").keys()


def test_gpu_nodes_meet_at_the_first_pod():
    jobset = loaded("gke-gpu")
    pod = job_of(jobset)["spec"]["template"]["spec"]
    variables = {row["name"]: row for row in pod["containers"][0]["env"]}
    # JobSet calls a pod JOBSET-JOB-REPLICA-INDEX, and its network by its own name.
    name, job = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"][0]["name"]
    assert variables["MEDREPORT_HOSTS"]["value"] == f"{name}-{job}-0-0.{name}:8476,2,$(NUMBER)"
    assert "job-completion-index" in variables["NUMBER"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert list(variables).index("NUMBER") < list(variables).index("MEDREPORT_HOSTS")  # or it would not be replaced


def test_the_claim_and_the_pod_of_the_page_are_what_kubernetes_accepts():
    [block] = [block for block in blocks_of(ROOT / "docs/how-to/gke.md") if block.language == "yaml"]
    claim, pod = yaml.safe_load_all(block.text)
    for one in (claim, pod):
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_a_job_of_skypilot_has_the_fields_of_skypilot():
    jsonschema.validate(loaded("skypilot"), SKYPILOT)
    assert loaded("skypilot")["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 143]
