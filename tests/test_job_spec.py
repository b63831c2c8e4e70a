"""What a job is, what it is called, and what it may not hold."""

import dataclasses
import random
import string

import pytest

from launch import job_spec, platforms, secret_values, trainer_flags
from launch.job_spec import JobSpec
from launch.platforms import AnswerLostError, JobStatus, State
from trainer import errors, options

_DIGEST = f"r/i@sha256:{'0' * 64}"


def _spec(**fields):
    spec = JobSpec(**({"platform": "vertex"} | fields))
    spec.validate()
    return spec


def test_equal_jobs_have_one_name_and_others_another():
    spec = _spec(image="i", trainer_flags=("--epochs=2",))
    assert (
        spec.job_name
        == _spec(image="i", trainer_flags=("--epochs=2",)).job_name
    )
    assert spec.job_name == f"train-{spec.digest}"
    others = [
        dataclasses.replace(spec, **{name: value})
        for name, value in {
            "image": "j",
            "trainer_flags": ("--epochs=3",),
            "env": ("A=b",),
            "num_workers": 2,
            "spot": True,
            "project": "p",
            "platform": "kubernetes",
        }.items()
    ]
    assert len({s.digest for s in [spec, *others]}) == len(others) + 1


def test_the_same_in_another_order_or_writing_is_the_same_job():
    one = _spec(workdir="gs://b/run", env=("A=1", "B=2"), labels=("a=1", "b="))
    other = _spec(
        workdir="gs://b/run/", env=("B=2", "A=1"), labels=("b=", "a=1")
    )
    assert one.digest == other.digest
    assert one.digest != _spec(workdir="gs://b/run2").digest
    root = _spec(platform="slurm", workdir="/")
    assert root.digest != _spec(platform="slurm").digest


@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        ({"machine": "n1-standard"}, True),
        ({"machine": "big"}, True),
        ({"machine": "big", "unchecked_machine": True}, False),
        ({"machine": "n2d-highmem-96"}, False),
        ({"machine": "a2-ultragpu-4g"}, False),
        ({}, False),
    ],
)
def test_a_machine_of_unknown_shape_is_warned_of(fields, warned):
    assert bool(_spec(**fields).warnings()) == warned


def test_attempts_are_of_one_job():
    spec = _spec(name="a" * 30)
    second = dataclasses.replace(spec, attempt=2)
    assert second.digest == spec.digest
    assert second.job_name == f"{spec.job_name}-2"
    assert second.all_labels == {
        job_spec.JOB_LABEL: second.job_name,
        job_spec.DIGEST_LABEL: spec.digest,
        job_spec.ATTEMPT_LABEL: "2",
    }
    assert len(second.job_name) <= 43


def test_every_field_that_a_platform_ignores_is_one():
    fields = {field.name for field, _ in options.fields(JobSpec)}
    assert job_spec.UNDERSTOOD_BY.keys() <= fields
    for names in job_spec.UNDERSTOOD_BY.values():
        assert set(names) <= set(job_spec.PLATFORMS)
    assert tuple(platforms.MODULES) == job_spec.PLATFORMS


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"platform": None}, "--platform is missing"),
        ({"platform": "mars"}, "--platform=mars"),
        ({"name": "Train"}, "--name=Train"),
        ({"name": "a" * 31}, "--name=aaa"),
        ({"name": "a-"}, "--name=a-"),
        ({"env": ("A",)}, "--env=A is not valid"),
        ({"env": ("1=2",)}, "--env=1=... is not valid"),
        ({"env": ("A=1", "A=2")}, "--env=A=... is given twice"),
        ({"labels": ("team",)}, "--labels=team is not valid"),
        ({"labels": ("Team=a",)}, "--labels=Team=a is not valid"),
        ({"labels": ("team=A",)}, "--labels=team=A is not valid"),
        ({"labels": ("gan-trainer-job=a",)}, "which is ours"),
        ({"labels": ("a=1", "a=2")}, "--labels=a=... is given twice"),
        ({"spot": True, "flex_start": True}, "Leave one out"),
        ({"num_workers": 0}, "--num_workers=0"),
        ({"queue": "q"}, "--queue has no use with --platform=vertex"),
    ],
)
def test_what_cannot_be_is_refused(fields, text):
    with pytest.raises(errors.UsageError) as caught:
        _spec(**fields)
    assert text in str(caught.value)


def _random(alphabet, count):
    return "".join(random.Random(1).choices(alphabet, k=count))


# Made up here, so that nobody takes them for real ones.
_LETTERS = string.ascii_letters + string.digits
_SECRETS = [
    "AKIA" + _random(string.ascii_uppercase, 16),
    "AIza" + _random(_LETTERS, 35),
    "ya29." + _random(_LETTERS, 30),
    "ghp_" + _random(_LETTERS, 36),
    "hf_" + _random(_LETTERS, 34),
    "glpat-" + _random(_LETTERS, 20),
    "sk-" + _random(_LETTERS, 40),
    "xoxb-" + _random(string.digits, 20),
    f"eyJ{_random(_LETTERS, 20)}.eyJ{_random(_LETTERS, 20)}.x",
    f"https://me:{_random(_LETTERS, 12)}@example.com/data",
    "-----BEGIN " + "PRIVATE KEY-----",
    "AccountName=a;AccountKey=" + _random(_LETTERS, 44),
]


@pytest.mark.parametrize("secret", _SECRETS)
def test_values_that_look_like_secrets_are_refused_and_not_shown(secret):
    for fields in (
        {"env": (f"A={secret}",)},
        {"trainer_flags": (f"--data_dir={secret}",)},
        {"workdir": secret},
        {"image": secret},
    ):
        with pytest.raises(errors.UsageError, match="secret") as caught:
            _spec(**fields)
        assert secret not in str(caught.value)
    assert secret not in secret_values.redact(f"it said {secret}, and")


@pytest.mark.parametrize(
    "name",
    [
        *("API_KEY", "WANDB_API_KEY", "DB_PASSWORD", "SECRET", "HF_TOKEN"),
        *("AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "apikey"),
        *("OPENAI_KEY", "ENCRYPTION_KEY", "DBPASSWORD", "GITHUB_PAT"),
        *("HF_TOKENS", "MY_SECRETS", "AZURE_STORAGE_CONNECTION_STRING", "KEY"),
        *("DB_PASS", "SMTP_PASS"),
    ],
)
def test_names_that_promise_secrets_are_refused(name):
    with pytest.raises(errors.UsageError, match=f"--env={name}=... looks"):
        _spec(env=(f"{name}=x",))


def test_a_value_is_never_shown_even_if_the_name_is_not_valid():
    with pytest.raises(errors.UsageError) as caught:
        _spec(env=("API-KEY=hunter2",))
    assert "--env=API-KEY=... is not valid" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_on_a_cluster_with_shared_files_credentials_may_be_named_by_path():
    name = "GOOGLE_APPLICATION_CREDENTIALS"
    _spec(platform="slurm", env=(f"{name}=/home/me/key.json",))
    for platform, value in (("slurm", "{}"), ("kubernetes", "/key.json")):
        with pytest.raises(errors.UsageError, match="looks like a secret"):
            _spec(platform=platform, env=(f"{name}={value}",))


@pytest.mark.parametrize(
    "variable",
    [
        "XLA_FLAGS=--xla_gpu_autotune_level=2",
        "TF_CPP_MIN_LOG_LEVEL=0",
        "MONKEY=banana",
        "TOKENIZERS_PARALLELISM=false",
        "HTTPS_PROXY=http://proxy.example.com:3128",
        "AUTHOR=me",
        "PATH=/bin",
        "KEYBOARD=us",
        "PASSES=2",
    ],
)
def test_ordinary_variables_are_not_secrets(variable):
    _spec(env=(variable,))
    assert secret_values.redact(variable) == variable


@pytest.mark.parametrize(
    ("image", "warned"),
    [(_DIGEST, False), ("r/i", True), ("r/i:v1", True), (None, False)],
)
def test_an_image_by_tag_is_warned_of(image, warned):
    assert bool(_spec(image=image).image_warning()) == warned


def test_what_lies_in_a_bucket_is_written_to_scratch_space_first():
    spec = _spec(workdir="gs://bucket/run", num_workers=2)
    args = (
        "--strategy=multi_worker",
        "--stop_upload_deadline_secs=40",
        "--workdir=gs://bucket/run",
    )
    assert spec.trainer_args == args
    assert spec.container_args == (*args, "--local_dir=/scratch/run")
    own = dataclasses.replace(spec, trainer_flags=("--local_dir=/x",))
    assert "--local_dir=/scratch/run" not in own.container_args
    volume = dataclasses.replace(spec, workdir="/volume/run")
    assert volume.container_args == volume.trainer_args


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["--stop_upload_deadline_secs=40"]),
        ({"grace_secs": 120}, ["--stop_upload_deadline_secs=100"]),
        ({"spot": True}, ["--stop_upload_deadline_secs=5"]),
        (
            {"trainer_flags": ("--stop_upload_deadline_secs=9",)},
            ["--stop_upload_deadline_secs=9"],
        ),
        ({"workdir": "/volume/run"}, []),
    ],
)
def test_uploads_end_before_the_job_is_killed(fields, expected):
    defaults = {"platform": "kubernetes", "workdir": "gs://bucket/run"}
    args = _spec(**defaults | fields).trainer_args
    assert [a for a in args if a.startswith("--stop_upload")] == expected


@pytest.mark.parametrize("platform", ["docker", "kubernetes", "slurm"])
@pytest.mark.parametrize(
    ("fields", "legal"),
    [
        ({"trainer_flags": ("--stop_upload_deadline_secs=60",)}, False),
        ({"trainer_flags": ("--stop_upload_deadline_secs=59",)}, True),
        ({"grace_secs": 5}, False),
        ({"grace_secs": 6}, True),
        (
            {
                "workdir": "runs/one",
                "trainer_flags": ("--stop_upload_deadline_secs=60",),
            },
            True,
        ),
    ],
)
def test_uploads_that_would_be_killed_are_refused(platform, fields, legal):
    spec = _spec(
        **{"platform": platform, "workdir": "gs://bucket/run"} | fields
    )
    if legal:
        trainer_flags.check(spec)
        return
    with pytest.raises(errors.UsageError, match="is not below the") as caught:
        trainer_flags.check(spec)
    deadline = 5 if "grace_secs" in fields else 60
    assert f"--stop_upload_deadline_secs={deadline} " in str(caught.value)
    assert f"or --grace_secs={deadline + 20}" in str(caught.value)


def test_a_long_grace_on_spot_machines_is_warned_of():
    spot = {"platform": "kubernetes", "spot": True, "image": _DIGEST}
    assert _spec(**spot).grace_period_secs == 25
    assert _spec(**spot).warnings() == []
    assert _spec(**spot, grace_secs=25).warnings() == []
    (warning,) = _spec(**spot, grace_secs=26).warnings()
    assert "--grace_secs=26 with --spot" in warning
    on_demand = {**spot, "spot": False}
    assert _spec(**on_demand, grace_secs=300).warnings() == []


class _Jobs:
    """A platform whose creations go wrong as is told."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)  # Of each creation: done, lost.
        self.there = []
        self.creations = 0

    def find(self, spec):
        return list(self.there)

    def create(self, spec):
        self.creations += 1
        done, lost = self.outcomes.pop(0) if self.outcomes else (True, False)
        status = JobStatus(spec.job_name, State.QUEUED, attempt=spec.attempt)
        if done:
            self.there.append(status)
        if lost:
            raise AnswerLostError("no answer.")
        return status

    def submit(self):
        self.waits = []
        return platforms.submit_once(
            _spec(), self.find, self.create, self.waits.append
        )


def test_a_job_that_was_created_without_an_answer_is_found():
    jobs = _Jobs((True, True))
    status = jobs.submit()
    assert (status.name, status.created) == (_spec().job_name, True)
    assert (jobs.creations, len(jobs.there)) == (1, 1)


def test_a_job_that_was_not_created_is_created_after_looking_for_a_while():
    jobs = _Jobs((False, True), (True, False))
    jobs.submit()
    assert (jobs.creations, len(jobs.there)) == (2, 1)
    assert sum(jobs.waits) > 10


def test_who_never_answers_is_not_asked_for_ever():
    jobs = _Jobs(*[(False, True)] * 9)
    with pytest.raises(AnswerLostError, match="Submit it again"):
        jobs.submit()
    assert jobs.creations == 3


@pytest.mark.parametrize("state", State)
def test_only_what_has_failed_or_was_cancelled_is_started_again(state):
    jobs = _Jobs()
    jobs.there = [JobStatus(_spec().job_name, state)]
    status = jobs.submit()
    again = state in (State.FAILED, State.CANCELLED)
    assert (jobs.creations, status.attempt) == ((1, 2) if again else (0, 1))
    assert status.created is again
