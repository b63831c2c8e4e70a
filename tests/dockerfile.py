"""Reads the Dockerfile."""

import re

# What a Dockerfile is here: the instructions of each stage, by its name; the
# global ARGs are those of the stage "".
Stages = dict[str, list[tuple[str, str]]]


def parse(text: str) -> Stages:
    """Returns the instructions of each stage, comments left out."""
    stages: Stages = {"": []}
    name = ""
    lines = [line for line in text.splitlines() if line.strip()[:1] != "#"]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line:
            continue
        instruction, value = line.split(maxsplit=1)
        if instruction == "FROM":
            name = value.split()[2]
            stages[name] = []
        stages[name].append((instruction, value))
    return stages


def values(stages: Stages, stage: str, instruction: str) -> list[str]:
    """Returns what follows an instruction, wherever a stage has it."""
    return [value for name, value in stages[stage] if name == instruction]


def inherited(stages: Stages, stage: str) -> list[tuple[str, str]]:
    """Returns a stage's instructions after those that its base has."""
    base = values(stages, stage, "FROM")[0].split()[0]
    below = inherited(stages, base) if base in stages else []
    return below + stages[stage]


def last(stages: Stages, stage: str, instruction: str) -> str:
    """Returns what follows an instruction that replaces those before it."""
    found = [v for n, v in inherited(stages, stage) if n == instruction]
    return found[-1] if found else ""


def pairs(stages: Stages, stage: str, instruction: str) -> dict[str, str]:
    """Returns the names and values of an instruction, such as ENV."""
    found = [v for n, v in inherited(stages, stage) if n == instruction]
    return dict(re.findall(r'([\w.]+)="?([^\s"]*)', " ".join(found)))
