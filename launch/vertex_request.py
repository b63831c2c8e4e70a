"""The request that makes a CustomJob of Vertex AI.

It is that of the REST method `projects.locations.customJobs.create`.
"""

import re
from typing import Any

from launch import accelerators
from launch.job_spec import DISK_GIB, JobSpec, Place
from trainer import errors

_ENDPOINT = "https://{region}-aiplatform.googleapis.com"
_EMAIL = re.compile(r"[\w.-]+@[\w.-]+\.[a-z]+")
_NETWORK = re.compile(r"projects/[0-9]+/global/networks/[\w.-]+")
_TENSORBOARD = re.compile(
    r"projects/[\w:.-]+/locations/(?P<region>[\w-]+)/tensorboards/[0-9]+"
)


def endpoint(place: Place) -> str:
    """Returns the address of the API in the region."""
    return _ENDPOINT.format(region=place.region)


def parent(place: Place) -> str:
    """Returns the resource that jobs belong to."""
    return f"projects/{place.project}/locations/{place.region}"


def check_place(place: Place) -> None:
    """Raises UsageError if it is not said where jobs are."""
    for name in ("project", "region"):
        if not getattr(place, name):
            raise errors.UsageError(
                f"--{name} is missing, which --platform=vertex needs: say it as"
                f" in --{name}="
                f"{'my-project' if name == 'project' else 'us-central1'}."
            )


def _check(spec: JobSpec) -> None:
    if not spec.image:
        raise errors.UsageError(
            "--image is missing, which --platform=vertex needs. BUILD.md says"
            " how to build and push one."
        )
    if not spec.in_bucket:
        raise errors.UsageError(
            f"--workdir={spec.workdir} is lost with the machine. With"
            " --platform=vertex it must be gs://bucket/prefix."
        )
    if spec.num_workers > 1 and "TF_CONFIG" in spec.environment:
        raise errors.UsageError(
            "--env=TF_CONFIG=... would hide who the workers are, which Vertex"
            " AI tells each of them. Leave it out."
        )
    if not _EMAIL.fullmatch(spec.service_account or ""):
        raise errors.UsageError(
            f"--service_account={spec.service_account} is not the e-mail"
            " address of a service account, which --platform=vertex needs:"
            " without one, the job would act as an account that all jobs of the"
            " project share. README.md says which roles it needs."
        )
    if spec.network and not _NETWORK.fullmatch(spec.network):
        raise errors.UsageError(
            f"--network={spec.network} is not valid: it must be"
            " projects/<project number>/global/networks/<name>."
        )
    tensorboard = _TENSORBOARD.fullmatch(spec.tensorboard or "")
    if spec.tensorboard and (
        not tensorboard or tensorboard["region"] != spec.region
    ):
        raise errors.UsageError(
            f"--tensorboard={spec.tensorboard} is not valid: it must be"
            f" projects/<project>/locations/{spec.region}"
            "/tensorboards/<number>, in the job's region."
        )


def custom_job(spec: JobSpec) -> dict[str, Any]:
    """Returns the CustomJob in the form of its JSON.

    Raises:
        UsageError: Vertex AI cannot do what the spec asks for.
    """
    check_place(spec)
    _check(spec)
    # The first pool is the chief, which TF_CONFIG names beside the workers.
    pools = [_pool(spec, 1)]
    if spec.num_workers > 1:
        pools.append(_pool(spec, spec.num_workers - 1))
    job_spec = {
        "workerPoolSpecs": pools,
        "scheduling": _scheduling(spec),
        "serviceAccount": spec.service_account,
    }
    if spec.network:
        job_spec["network"] = spec.network
    if spec.tensorboard:
        job_spec["tensorboard"] = spec.tensorboard
        # It shows the events in `logs` there, where the trainer then writes.
        job_spec["baseOutputDirectory"] = {"outputUriPrefix": spec.workdir}
    return {
        "displayName": spec.job_name,
        "labels": spec.all_labels,
        "jobSpec": job_spec,
    }


def _pool(spec: JobSpec, replicas: int) -> dict[str, Any]:
    choice = accelerators.choose(
        spec.accelerator,
        spec.num_accelerators,
        spec.machine,
        spot=spec.spot or spec.flex_start,
        unchecked=spec.unchecked_machine,
    )
    machine: dict[str, Any] = {"machineType": choice.machine}
    if choice.count:
        machine["acceleratorType"] = choice.vertex
        machine["acceleratorCount"] = choice.count
    disk: dict[str, Any] = {"bootDiskSizeGb": spec.disk_gib or DISK_GIB}
    if disk_type := spec.disk_type or choice.disk_type:
        disk["bootDiskType"] = disk_type
    container: dict[str, Any] = {
        "imageUri": spec.image,
        "args": list(spec.container_args),
        "env": [
            {"name": name, "value": value}
            for name, value in spec.environment.items()
        ],
    }
    return {
        "machineSpec": machine,
        "replicaCount": str(replicas),  # An int64, so JSON has it as a string.
        "diskSpec": disk,
        "containerSpec": container,
    }


def _scheduling(spec: JobSpec) -> dict[str, Any]:
    strategy = "STANDARD"
    if spec.spot:
        strategy = "SPOT"
    elif spec.flex_start:
        strategy = "FLEX_START"
    scheduling: dict[str, Any] = {"strategy": strategy}
    if spec.timeout_secs:
        scheduling["timeout"] = f"{spec.timeout_secs}s"
    if spec.flex_start:
        scheduling["maxWaitDuration"] = f"{spec.max_wait_secs}s"
    if spec.num_workers > 1:
        # The others end too when one does, and can only begin together.
        scheduling["restartJobOnWorkerRestart"] = True
    return scheduling
