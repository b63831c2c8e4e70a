"""Says whether a trainer lives in this container: `python -m trainer.health`.

For Docker's HEALTHCHECK and Kubernetes' exec probes. It never calls a trainer
dead that may be healthy: one that was stopped (Ctrl-Z) or that cannot write its
heartbeat counts as alive.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import heartbeat

_HELP = """\
Says whether a trainer of this user lives on this machine, in one line.

usage: python -m trainer.health

Takes no flags. It looks into $TMPDIR, or /tmp, so let that be the trainer's.

exit codes: 0 alive, 1 stale or none, 2 usage."""

# After a pause of a whole machine, the check may come before the heartbeat.
_SECOND_LOOK_SECS = heartbeat.INTERVAL_SECS + 1.0


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, program name first; returns its code."""
    if argv[1:] in (["--help"], ["-help"], ["-h"]):
        print(_HELP)
        return 0
    if argv[1:]:
        print(f"error: {argv[1]!r}: no flags are understood.", file=sys.stderr)
        return 2
    alive, line = check()
    print(line)
    return 0 if alive else 1


def check(sleep: Callable[[float], None] = time.sleep) -> tuple[bool, str]:
    """Returns whether all trainers here live, and a line about it.

    Args:
      sleep: waits so many seconds, before a second look at a stale one.
    """
    alive, line = _look()
    if not alive:
        sleep(_SECOND_LOOK_SECS)
        alive, line = _look()
    return alive, line


def _look() -> tuple[bool, str]:
    records = heartbeat.read_all()
    if not records:
        # It starts, or its temporary directory is full or read-only.
        if pid := _pid_without_heartbeat():
            return True, f"alive: process {pid}, without a heartbeat"
        return False, "no trainer runs here"
    ages_secs = [_age_secs(record) for record in records]
    stale = [
        _is_stale(r, age) for r, age in zip(records, ages_secs, strict=True)
    ]
    worst = max(range(len(records)), key=lambda i: (stale[i], ages_secs[i]))
    line = _describe(records[worst], ages_secs[worst], stale[worst])
    if len(records) > 1:
        line += f"; {len(records) - sum(stale)} of {len(records)} are alive"
    return not any(stale), line


def _age_secs(record: Mapping[str, Any]) -> float:
    # All processes of a machine share this clock, which no one sets.
    return time.monotonic() - record["monotonic_secs"]


def _is_stale(record: Mapping[str, Any], age_secs: float) -> bool:
    limit_secs = record["limit_secs"]
    return (
        limit_secs is not None
        and age_secs > limit_secs
        and not record["stopped"]
    )


def _describe(record: Mapping[str, Any], age_secs: float, stale: bool) -> str:
    verdict = "stale" if stale else "alive"
    if record["stopped"]:
        verdict = "alive but stopped"
    step, limit_secs = record["step"], record["limit_secs"]
    where = "" if step is None else f" after step {step}"
    limit = "any age" if limit_secs is None else f"{limit_secs:.0f} s"
    return (
        f"{verdict}: {record['phase']}{where}, process {record['pid']}, "
        f"heartbeat {age_secs:.0f} s old, {limit} allowed"
    )


def _pid_without_heartbeat() -> int | None:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return next(filter(_is_trainer, pids), None)


def _is_trainer(pid: int) -> bool:
    directory = Path(f"/proc/{pid}")
    try:
        arguments = (directory / "cmdline").read_bytes().split(b"\0")
        is_own = directory.stat().st_uid == os.getuid()
    except OSError:
        return False  # It has ended.
    is_python = os.path.basename(arguments[0]).startswith(b"python")
    return is_own and is_python and arguments[1:3] == [b"-m", b"trainer.main"]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
