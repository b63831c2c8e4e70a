"""A program `docker` that keeps containers as files beside itself.

It knows what `launch.docker` says to it, and fails for anything else. A file
`fail` beside it makes the next `run` fail: its first line is the message; a
second line, "done", means after the container was created. A file `script`
holds what happens at each `logs`: a JSON list of [lines, new state].
"""

import json
import pathlib
import sys

_HOME = pathlib.Path(sys.argv[0]).parent
_STATE = _HOME / "containers.json"
_VALUED = {
    *("name", "tmpfs", "env", "cap-drop", "security-opt", "shm-size"),
    *("stop-timeout", "gpus", "cpus", "memory", "network", "label"),
    *("user", "mount"),
}
_FLAGS = {"detach", "read-only"}


def main(arguments: list[str]) -> int:
    """Runs one command; returns its exit code."""
    with open(_HOME / "calls", "a") as file:
        file.write(json.dumps(arguments) + "\n")
    containers = json.loads(_STATE.read_text()) if _STATE.exists() else {}
    verb, rest = arguments[0], arguments[1:]
    code = _VERBS[verb](containers, rest)
    _STATE.write_text(json.dumps(containers))
    return code


def _run(containers: dict, rest: list[str]) -> int:
    options: dict[str, list[str]] = {}
    while rest and rest[0].startswith("--"):
        name, _, value = rest.pop(0)[2:].partition("=")
        assert name in (_VALUED if value else _FLAGS), name
        options.setdefault(name, []).append(value)
    message = ""
    fail = _HOME / "fail"
    if fail.exists():
        message, _, when = fail.read_text().partition("\n")
        fail.unlink()
        if when.strip() != "done":
            print(message, file=sys.stderr)
            return 125
    [name] = options["name"]
    if name in containers:
        print(
            f'Conflict. The container name "/{name}" is already in use',
            file=sys.stderr,
        )
        return 125
    containers[name] = {
        "Id": f"{len(containers):064x}",
        "Name": f"/{name}",
        "Created": f"2030-01-01T00:00:0{len(containers)}Z",
        "State": {"Status": "running", "ExitCode": 0, "Error": ""},
        "Config": {
            "Labels": dict(each.split("=", 1) for each in options["label"]),
            "Image": rest[0],
            "Cmd": rest[1:],
        },
        "Options": options,
        "Logs": [],
    }
    if message:
        print(message, file=sys.stderr)
        return 125
    print(containers[name]["Id"])
    return 0


def _ps(containers: dict, rest: list[str]) -> int:
    assert rest[:3] == ["--all", "--quiet", "--no-trunc"]
    key, _, value = rest[3].removeprefix("--filter=label=").partition("=")
    for container in containers.values():
        labels = container["Config"]["Labels"]
        if key in labels and value in ("", labels[key]):
            print(container["Id"])
    return 0


def _inspect(containers: dict, rest: list[str]) -> int:
    found = [c for c in containers.values() if c["Id"] in rest]
    print(json.dumps(found))
    return 0


def _logs(containers: dict, rest: list[str]) -> int:
    container = containers[rest.pop()]
    since = ""
    for option in rest:
        name, _, value = option.partition("=")
        assert name in ("--timestamps", "--follow", "--since")
        since = value or since
    script = _HOME / "script"
    if script.exists():
        steps = json.loads(script.read_text())
        if steps:
            lines, state = steps.pop(0)
            container["Logs"] += lines
            container["State"].update(state)
        script.write_text(json.dumps(steps))
    for line in container["Logs"]:
        if line.split(" ")[0] >= since:
            print(line)
    return 0


def _stop(containers: dict, rest: list[str]) -> int:
    containers[rest[0]]["State"].update(Status="exited", ExitCode=143)
    print(rest[0])
    return 0


_VERBS = {
    "run": _run,
    "ps": _ps,
    "inspect": _inspect,
    "logs": _logs,
    "stop": _stop,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
