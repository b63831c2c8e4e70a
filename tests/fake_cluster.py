"""What a cluster does with Jobs and JobSets, a step at a time.

The rules are those of Kubernetes' Job controller (`podFailurePolicy`,
`backoffLimit`) and of JobSet's (`failurePolicy`), read from the objects that
were submitted, so that a test sees what they lead to.
"""

import re

from tests import fake_kubernetes

_INDEX = "batch.kubernetes.io/job-completion-index"


class FakeCluster:
    """The controllers and machines of a `FakeKubernetes`.

    Attributes:
        namespace: The one that everything is in.
    """

    def __init__(self, server, namespace="default"):
        self._server = server
        self.namespace = namespace
        self._num_pods = 0
        self._num_failures = {}

    def job(self, name):
        """Returns the Job or JobSet of a name."""
        for plural in ("jobs", "jobsets"):
            if found := self._server.objects.get(
                (plural, self.namespace, name)
            ):
                return found
        raise KeyError(name)

    def pods(self, name):
        """Returns the pods of a job that have not ended, by index."""
        alive = [
            pod
            for pod in self._all_pods(name)
            if pod["status"]["phase"] in ("Pending", "Running")
        ]
        return sorted(alive, key=_index)

    def make_pods(self, name, why="0/3 nodes are available"):
        """Makes the pods, for which there is no machine yet."""
        missing = set(range(_job_spec(self.job(name))["completions"]))
        missing -= {
            int(_index(pod))
            for pod in self._all_pods(name)
            if pod["status"]["phase"] != "Failed"
        }
        for index in sorted(missing):
            self._make_pod(name, index, why)

    def start(self, name):
        """Finds machines for all pods."""
        for pod in self.pods(name):
            pod["status"] = {"phase": "Running"}

    def say(self, name, text, moment=None, index=0):
        """Makes a running worker write a line."""
        pod = self.pods(name)[index]["metadata"]["name"]
        lines = self._server.logs.setdefault(pod, [])
        lines.append((moment or f"2026-01-01T00:00:{len(lines):02d}Z", text))

    def end(self, name, exit_code, *, index=0, message="", disrupted=False):
        """Ends a running worker; the controllers do what follows."""
        pod = self.pods(name)[index]
        terminated = {"exitCode": exit_code, "message": message}
        pod["status"] = {
            "phase": "Failed" if exit_code else "Succeeded",
            "containerStatuses": [
                {"name": "trainer", "state": {"terminated": terminated}}
            ],
            "conditions": [{"type": "DisruptionTarget", "status": "True"}]
            if disrupted
            else [],
        }
        verdict = self._judge(name, pod) if exit_code else self._completed(name)
        if verdict:
            self._conclude(name, *verdict)

    def exceed_deadline(self, name):
        """Ends a job that has run for too long."""
        assert "activeDeadlineSeconds" in _job_spec(self.job(name))
        text = "Job was active longer than specified deadline"
        self._conclude(name, "Failed", "DeadlineExceeded", text)

    def suspend(self, name):
        """Does what Kueue does while a queue is full."""
        condition = _condition("Suspended", "JobSuspended", "Job suspended")
        self.job(name)["status"]["conditions"] = [condition]

    def finish_deletion(self, name):
        """Lets go of what was deleted, once its pods have saved."""
        assert "deletionTimestamp" in self.job(name)["metadata"]
        for key in list(self._server.objects):
            owner = self._server.objects[key]["metadata"]
            if name in (owner["name"], owner["labels"]["gan-trainer-job"]):
                del self._server.objects[key]

    def _all_pods(self, name):
        return [
            value
            for (plural, _, _), value in self._server.objects.items()
            if plural == "pods"
            and value["metadata"]["labels"]["gan-trainer-job"] == name
        ]

    def _make_pod(self, name, index, why):
        spec = _job_spec(self.job(name))
        self._num_pods += 1
        pod = f"{name}-{index}-{self._num_pods:05d}"
        scheduled = {
            **_condition("PodScheduled", "Unschedulable", why),
            "status": "False",
        }
        self._server.objects["pods", self.namespace, pod] = {
            "metadata": {
                "name": pod,
                "uid": f"pod-{self._num_pods}",
                "creationTimestamp": f"2026-01-01T00:00:{self._num_pods:02d}Z",
                "labels": spec["template"]["metadata"]["labels"],
                "annotations": {_INDEX: str(index)},
            },
            "status": {"phase": "Pending", "conditions": [scheduled]},
        }

    def _judge(self, name, pod):
        """Returns how a Job ends by its rules, or None if it goes on."""
        spec = _job_spec(self.job(name))
        rules = spec["podFailurePolicy"]["rules"]
        for i, rule in enumerate(rules):
            if not (what := _match(rule, pod)):
                continue
            if rule["action"] == "Ignore":
                self.make_pods(name)
                return None
            assert rule["action"] == "FailJob"
            text = f"{what} matching FailJob rule at index {i}"
            return ("Failed", "PodFailurePolicy", text)
        self._num_failures[name] = self._num_failures.get(name, 0) + 1
        if self._num_failures[name] > spec["backoffLimit"]:
            text = "Job has reached the specified backoff limit"
            return ("Failed", "BackoffLimitExceeded", text)
        status = self.job(name)["status"]
        status["failed"] = status.get("failed", 0) + 1
        self.make_pods(name)
        return None

    def _completed(self, name):
        if self.pods(name):
            return None
        return ("Complete", "", "")

    def _conclude(self, name, kind, reason, message):
        job = self.job(name)
        status = job["status"]
        if job["kind"] == "Job":
            if kind == "Failed":
                status["failed"] = status.get("failed", 0) + 1
        elif kind == "Complete":
            kind = "Completed"
        else:
            action = _action(job, reason, message)
            counted = self._num_failures.get(name, 0)
            limit = job["spec"]["failurePolicy"]["maxRestarts"]
            if action == "RestartJobSetAndIgnoreMaxRestarts" or (
                action == "RestartJobSet" and counted <= limit
            ):
                self._restart(name)
                return
            reason, message = f"{action}: {reason}", message
        status["conditions"] = [_condition(kind, reason, message)]
        for pod in self.pods(name):
            pod["status"] = {"phase": "Failed"}

    def _restart(self, name):
        status = self.job(name)["status"]
        status["restarts"] = status.get("restarts", 0) + 1
        for pod in self._all_pods(name):
            key = ("pods", self.namespace, pod["metadata"]["name"])
            del self._server.objects[key]
        self.make_pods(name)


def _job_spec(job):
    if job["kind"] == "Job":
        return job["spec"]
    return job["spec"]["replicatedJobs"][0]["template"]["spec"]


def _index(pod):
    return pod["metadata"]["annotations"][_INDEX]


def _condition(kind, reason, message):
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": fake_kubernetes.now(),
    }


def _match(rule, pod):
    """Returns what of a failed pod a rule fits, or "" """
    name = pod["metadata"]["name"]
    if on_exit := rule.get("onExitCodes"):
        for container in pod["status"]["containerStatuses"]:
            code = container["state"]["terminated"]["exitCode"]
            assert on_exit["operator"] == "In"
            if (
                container["name"] == on_exit["containerName"]
                and code in on_exit["values"]
            ):
                return (
                    f"Container {container['name']} for pod default/{name}"
                    f" failed with exit code {code}"
                )
    for wanted in rule.get("onPodConditions", []):
        for condition in pod["status"]["conditions"]:
            if condition["type"] == wanted["type"]:
                return f"Pod default/{name} has condition {wanted['type']}"
    return ""


def _action(job_set, reason, message):
    """Returns what a JobSet does when its Job has failed."""
    for rule in job_set["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule.get("onJobFailureReasons", [reason]) and any(
            re.search(pattern, message) for pattern in patterns
        ):
            return rule["action"]
    return "RestartJobSet"
