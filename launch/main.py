"""Submits the trainer to a platform: `python -m launch.main submit ...`.

This module turns the command line into a `JobSpec`, calls the platform's module
and prints what comes back. `help_pages.py` has what `--help` says.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags

from launch import help_pages, platforms, secret_values, trainer_flags
from launch.job_spec import JobSpec, Place
from launch.platforms import JobStatus
from trainer import errors, options

_POLL_SECS = 5.0


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, program name first; returns its exit code.

    The trainer's flags stand after `--`.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    own = argv[1:end]
    verb = own[0] if own and not own[0].startswith("-") else None
    try:
        if verb is not None and verb not in _VERBS:
            raise errors.UsageError(
                f"{verb!r} is not something to do: one of {', '.join(_VERBS)}."
                " `python -m launch.main --help` says more."
            )
        if {"--help", "-help", "-h"}.intersection(own) or not own:
            _print(help_pages.page(verb))
            return 0 if own else errors.UsageError.exit_code
        if verb is None:
            raise errors.UsageError(
                f"{own[0]!r} comes before what is to be done: one of"
                f" {', '.join(_VERBS)}."
            )
        return _VERBS[verb](own[1:], argv[end + 1 :])
    except errors.TrainerError as error:
        _tell(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _tell("interrupted")
        return errors.EXIT_INTERRUPTED


def _submit(arguments: Sequence[str], trainers: Sequence[str]) -> int:
    values = _parse("submit", arguments)
    spec = _job_spec(values, trainers)
    _warn(spec)
    status = _platform(spec).submit(spec)
    if status.exit_code is not None and spec.platform == "local":
        return status.exit_code
    if values["json"].value:
        _print(_as_json(status))
    else:
        _print(_as_text(status))
    _tell(_what_was_done(status))
    where = help_pages.place_flags(spec)
    _tell(f"follow: python -m launch.main logs {status.name} {where} --follow")
    if not status.state.is_final:
        _tell(f"stop:   python -m launch.main cancel {status.name} {where}")
    return 0


def _what_was_done(status: JobStatus) -> str:
    if status.created and status.attempt > 1:
        return (
            f"started: attempt {status.attempt}, after one that failed or was"
            " cancelled"
        )
    if status.created:
        return "started"
    if status.state is platforms.State.SUCCEEDED:
        return (
            "has succeeded; nothing was started. To run it anew, choose another"
            " --name"
        )
    return "already there; nothing was started"


def _render(arguments: Sequence[str], trainers: Sequence[str]) -> int:
    spec = _job_spec(_parse("render", arguments), trainers)
    text = _platform(spec).render(spec)
    _warn(spec)
    _print(text.removesuffix("\n"))
    return 0


def _status(arguments: Sequence[str], trainers: Sequence[str]) -> int:
    name, place, values = _job_and_place("status", arguments, trainers)
    status = _platform(place).status(place, name)
    _print(_as_json(status) if values["json"].value else _as_text(status))
    return 0


def _logs(arguments: Sequence[str], trainers: Sequence[str]) -> int:
    name, place, values = _job_and_place("logs", arguments, trainers)
    platform = _platform(place)
    follow = bool(values["follow"].value)
    try:
        for line in platform.logs(place, name, follow):
            _print(line)
    except KeyboardInterrupt:
        where = help_pages.place_flags(place)
        _tell(
            f"\ndetached: {name} goes on, and costs what it costs.\n"
            f"stop: python -m launch.main cancel {name} {where}"
        )
        return errors.EXIT_INTERRUPTED
    if not follow:
        return 0
    status = platform.status(place, name)
    _tell(f"{name}: {status.state.value} ({status.detail})")
    return 0 if status.state is platforms.State.SUCCEEDED else 1


def _cancel(arguments: Sequence[str], trainers: Sequence[str]) -> int:
    name, place, _ = _job_and_place("cancel", arguments, trainers)
    platform = _platform(place)
    platform.cancel(place, name)
    told = None
    try:
        while True:
            status = platform.status(place, name)
            if status.state is not told:
                _tell(f"{name}: {status.state.value}")
                told = status.state
            if status.state.is_final:
                return 0
            time.sleep(_POLL_SECS)
    except platforms.JobNotFoundError:
        _tell(f"{name}: cancelled; nothing is kept of it")
        return 0
    except KeyboardInterrupt:
        where = help_pages.place_flags(place)
        _tell(
            f"\n{name} was told to end, but has not ended yet. Look again:"
            f" python -m launch.main status {name} {where}"
        )
        return errors.EXIT_INTERRUPTED


def _list(arguments: Sequence[str], trainers: Sequence[str]) -> int:
    _refuse_trainer_flags("list", trainers)
    values = _parse("list", arguments)
    place = _place(values)
    statuses = _platform(place).list_jobs(place)
    if values["json"].value:
        objects = [_as_object(status) for status in statuses]
        _print(json.dumps(objects, indent=2))
        return 0
    width = max((len(status.name) for status in statuses), default=0)
    for status in statuses:
        _print(
            f"{status.name:{width}}  {status.state.value:10}"
            f"  {status.created_at:20}  {status.detail}".rstrip()
        )
    return 0


_VERBS: dict[str, Callable[[Sequence[str], Sequence[str]], int]] = {
    "submit": _submit,
    "render": _render,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "list": _list,
}


def _parse(verb: str, arguments: Sequence[str]) -> flags.FlagValues:
    hint = f"`python -m launch.main {verb} --help` lists the flags."
    if verb in ("submit", "render"):
        hint += " The trainer's stand after `--`."
    return options.parse(help_pages.FLAGS[verb], [verb, *arguments], hint)


def _job_spec(values: flags.FlagValues, trainers: Sequence[str]) -> JobSpec:
    fields = options.values_from_flags(JobSpec, values)
    workdir, others = trainer_flags.read(
        trainers, workdir=fields["workdir"], num_workers=fields["num_workers"]
    )
    spec = JobSpec(**{**fields, "workdir": workdir, "trainer_flags": others})
    spec.validate()
    trainer_flags.check(spec)
    return spec


def _warn(spec: JobSpec) -> None:
    for warning in spec.warnings():
        _tell(f"warning: {warning}")


def _job_and_place(
    verb: str, arguments: Sequence[str], trainers: Sequence[str]
) -> tuple[str, Place, flags.FlagValues]:
    _refuse_trainer_flags(verb, trainers)
    if not arguments or arguments[0].startswith("-"):
        raise errors.UsageError(
            f"{verb} of which job? Name it first: `python -m launch.main {verb}"
            " <job> --platform=...`. `submit` has said its name, and `list`"
            " does."
        )
    values = _parse(verb, arguments[1:])
    return arguments[0], _place(values), values


def _refuse_trainer_flags(verb: str, trainers: Sequence[str]) -> None:
    if trainers:
        raise errors.UsageError(
            f"{trainers[0]!r} after `--` has no use with {verb}. Leave it out."
        )


def _place(values: flags.FlagValues) -> Place:
    place = Place(**options.values_from_flags(Place, values))
    place.validate()
    return place


def _platform(place: Place) -> platforms.Platform:
    return platforms.get(str(place.platform))


def _as_object(status: JobStatus) -> dict[str, object]:
    fields = dataclasses.asdict(status)
    if status.created is None:
        del fields["created"]
    return {**fields, "state": status.state.value}


def _as_json(status: JobStatus) -> str:
    return json.dumps(_as_object(status), indent=2)


def _as_text(status: JobStatus) -> str:
    lines = [f"{status.name}: {status.state.value}"]
    for name, value in _as_object(status).items():
        if name not in ("name", "state", "created") and value not in ("", None):
            lines.append(f"  {name}: {value}")
    return "\n".join(lines)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # `| head` has read enough; Python's own flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _tell(text: str) -> None:
    """Says what is not the answer itself, without secrets."""
    with contextlib.suppress(BrokenPipeError):
        print(secret_values.redact(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
