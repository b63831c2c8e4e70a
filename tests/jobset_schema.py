"""Whether an object is a JobSet, to the last field.

Those fields of `jobset.x-k8s.io/v1alpha2` that our manifests may have, written
after JobSet's API reference (0.10 or newer); any other is wrong. The Job within
is checked by Kubernetes' own models.
"""

import re

import jsonschema

from tests import kubernetes_schema


def _object(required, **properties):
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_STRINGS = {
    "type": "array",
    "items": _STRING,
    "minItems": 1,
    "uniqueItems": True,
}
_RULE = _object(
    ["name", "action"],
    name={
        "type": "string",
        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        "maxLength": 128,
    },
    action={
        "enum": [
            "FailJobSet",
            "RestartJobSet",
            "RestartJobSetAndIgnoreMaxRestarts",
            "RestartJob",
            "RestartJobAndIgnoreMaxRestarts",
        ]
    },
    onJobFailureReasons={
        **_STRINGS,
        "items": {
            "enum": [
                "BackoffLimitExceeded",
                "DeadlineExceeded",
                "FailedIndexes",
                "MaxFailedIndexesExceeded",
                "PodFailurePolicy",
            ]
        },
    },
    onJobFailureMessagePatterns=_STRINGS,
    targetReplicatedJobs=_STRINGS,
)
_REPLICATED_JOB = _object(
    ["name", "template"],
    name=_STRING,
    replicas=_COUNT,
    template=_object(["spec"], spec={"type": "object"}),
)
_SCHEMA = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_object(
        ["name", "namespace", "labels"],
        name=_STRING,
        namespace=_STRING,
        labels={"type": "object", "additionalProperties": _STRING},
    ),
    spec=_object(
        ["replicatedJobs"],
        network=_object(
            [],
            enableDNSHostnames={"type": "boolean"},
            publishNotReadyAddresses={"type": "boolean"},
            subdomain=_STRING,
        ),
        successPolicy=_object(
            ["operator"],
            operator={"enum": ["All", "Any"]},
            targetReplicatedJobs=_STRINGS,
        ),
        failurePolicy=_object(
            [],
            maxRestarts=_COUNT,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
            rules={"type": "array", "items": _RULE},
        ),
        ttlSecondsAfterFinished=_COUNT,
        suspend={"type": "boolean"},
        replicatedJobs={"type": "array", "items": _REPLICATED_JOB},
    ),
)


def problem(manifest):
    """Returns what is wrong with a JobSet, or "" """
    try:
        jsonschema.validate(manifest, _SCHEMA)
    except jsonschema.ValidationError as error:
        return error.message
    for group in manifest["spec"]["replicatedJobs"]:
        # The limits of names, which JobSet's webhook checks.
        spec = group["template"]["spec"]
        pod = (
            f"{manifest['metadata']['name']}-{group['name']}"
            f"-{group.get('replicas', 1) - 1}-{spec['completions'] - 1}-abcde"
        )
        if not re.fullmatch("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", pod):
            return f"{pod} is no name of a pod"
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "job"},
            "spec": spec,
        }
        if problem := kubernetes_schema.problem(job):
            return problem
    return ""
