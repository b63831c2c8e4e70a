"""GPUs that one can rent, and the machines that have them.

The one table that names of GPUs and machine types are checked against before
anything is paid for. Names of Vertex AI are those of its `AcceleratorType`;
labels are the values of GKE's node label `cloud.google.com/gke-accelerator`.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping

from trainer import errors


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A kind of GPU.

    Attributes:
        vertex: Its name in Vertex AI's API.
        gke_label: Its name in the node label of GKE.
        machines: Machine types, each with the counts of GPUs that it can have:
            one, where the GPUs are part of the machine. The first that has a
            count is what is taken for it.
        only_spot: Machine types that Vertex AI offers as Spot or flex-start
            machines only.
        disk_type: The boot disk's type, where the machines cannot have that of
            Vertex AI's default; else "".
    """

    vertex: str
    gke_label: str
    machines: Mapping[str, tuple[int, ...]]
    only_spot: frozenset[str] = frozenset()
    disk_type: str = ""


def _n1(
    counts_by_cpus: Mapping[int, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """Returns n1 machines, which GPUs are attached to; standard ones first."""
    machines = {}
    for kind, min_cpus in (("standard", 0), ("highmem", 0), ("highcpu", 16)):
        for cpus, counts in counts_by_cpus.items():
            if cpus >= min_cpus:
                machines[f"n1-{kind}-{cpus}"] = counts
    return machines


# The newest machines take no Persistent Disk, which is Vertex AI's default for
# all but a3-ultragpu.
_HYPERDISK = "hyperdisk-balanced"
ACCELERATORS = {
    "t4": Accelerator(
        "NVIDIA_TESLA_T4",
        "nvidia-tesla-t4",
        # Eight CPUs a GPU feed it; the order is what is chosen first.
        _n1(
            {
                8: (1, 2, 4),
                4: (1, 2, 4),
                16: (1, 2, 4),
                32: (2, 4),
                64: (4,),
                96: (4,),
            }
        ),
    ),
    "v100": Accelerator(
        "NVIDIA_TESLA_V100",
        "nvidia-tesla-v100",
        _n1(
            {
                8: (1, 2, 4, 8),
                4: (1, 2, 4, 8),
                16: (2, 4, 8),
                32: (4, 8),
                64: (8,),
                96: (8,),
            }
        ),
    ),
    "l4": Accelerator(
        "NVIDIA_L4",
        "nvidia-l4",
        {
            "g2-standard-8": (1,),
            "g2-standard-4": (1,),
            "g2-standard-12": (1,),
            "g2-standard-16": (1,),
            "g2-standard-32": (1,),
            "g2-standard-24": (2,),
            "g2-standard-48": (4,),
            "g2-standard-96": (8,),
        },
    ),
    "a100-40gb": Accelerator(
        "NVIDIA_TESLA_A100",
        "nvidia-tesla-a100",
        {
            "a2-highgpu-1g": (1,),
            "a2-highgpu-2g": (2,),
            "a2-highgpu-4g": (4,),
            "a2-highgpu-8g": (8,),
            "a2-megagpu-16g": (16,),
        },
    ),
    "a100-80gb": Accelerator(
        "NVIDIA_A100_80GB",
        "nvidia-a100-80gb",
        {
            "a2-ultragpu-1g": (1,),
            "a2-ultragpu-2g": (2,),
            "a2-ultragpu-4g": (4,),
            "a2-ultragpu-8g": (8,),
        },
    ),
    "h100": Accelerator(
        "NVIDIA_H100_80GB",
        "nvidia-h100-80gb",
        {
            "a3-highgpu-1g": (1,),
            "a3-highgpu-2g": (2,),
            "a3-highgpu-4g": (4,),
            "a3-highgpu-8g": (8,),
        },
        only_spot=frozenset(
            {"a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g"}
        ),
    ),
    "h100-mega": Accelerator(
        "NVIDIA_H100_MEGA_80GB",
        "nvidia-h100-mega-80gb",
        {"a3-megagpu-8g": (8,)},
    ),
    "h200": Accelerator(
        "NVIDIA_H200_141GB", "nvidia-h200-141gb", {"a3-ultragpu-8g": (8,)}
    ),
    "b200": Accelerator(
        "NVIDIA_B200",
        "nvidia-b200",
        {"a4-highgpu-8g": (8,)},
        disk_type=_HYPERDISK,
    ),
    "rtx-pro-6000": Accelerator(
        "NVIDIA_RTX_PRO_6000",
        "nvidia-rtx-pro-6000",
        {
            "g4-standard-48": (1,),
            "g4-standard-96": (2,),
            "g4-standard-192": (4,),
            "g4-standard-384": (8,),
        },
        disk_type=_HYPERDISK,
    ),
}
# Machine types with Arm processors, for which TensorFlow with CUDA does not
# exist: Google's Axion and Ampere, and NVIDIA's Grace.
_ARM = re.compile(r"(a4x|c4a|n4a|t2a)-")
_ARM_ACCELERATORS = ("gb200", "gb300")
_UNCHECKED = "For what is newer than this table, there is --unchecked_machine."


@dataclasses.dataclass(frozen=True)
class Choice:
    """The machine that each worker gets, and its GPUs.

    Attributes:
        machine: A machine type.
        vertex: The GPU's name in Vertex AI's API; "" without GPUs.
        gke_label: The GPU's name in GKE's node label; "" without GPUs.
        count: GPUs on one machine.
        disk_type: The boot disk's type; "" for Vertex AI's default.
    """

    machine: str
    vertex: str
    gke_label: str
    count: int
    disk_type: str = ""


def choose(
    accelerator: str | None,
    count: int | None,
    machine: str | None,
    *,
    spot: bool,
    unchecked: bool = False,
) -> Choice:
    """Returns the machine that fits what was asked for.

    What is None follows from the others; without any, it is a machine without
    GPUs.

    Args:
        accelerator: A key of `ACCELERATORS`, or the name that Vertex AI or GKE
            has for one.
        count: GPUs on each machine.
        machine: A machine type.
        spot: Whether Spot or flex-start machines are asked for.
        unchecked: Take all three as they are, for what is newer than the
            table; but nothing with Arm processors.

    Raises:
        UsageError: There is no such machine; the message names those that come
            nearest.
    """
    # Even unchecked: the table knows them, and no image would run there.
    _refuse_arm(accelerator, machine)
    if unchecked:
        return _unchecked(accelerator, count, machine)
    if accelerator is None:
        return _from_machine(count, machine, spot)
    name = _canonical_name(accelerator)
    kind = ACCELERATORS[name]
    if machine is None:
        machine = _first_machine(name, 1 if count is None else count)
    elif machine not in kind.machines:
        raise errors.UsageError(
            f"--machine={machine} cannot have --accelerator={name}. Machines"
            f" with it: {_describe(kind.machines)}. {_UNCHECKED}"
        )
    counts = kind.machines[machine]
    count = counts[0] if count is None else count
    if count not in counts:
        elsewhere = _machines_with(kind, count)
        remedy = (
            f"{count} are on {', '.join(elsewhere)}"
            if elsewhere
            else f"Machines with it: {_describe(kind.machines)}"
        )
        raise errors.UsageError(
            f"--num_accelerators={count} does not go with --machine={machine},"
            f" which has {_or(counts)}. {remedy}. {_UNCHECKED}"
        )
    if machine in kind.only_spot and not spot:
        always = sorted(set(kind.machines) - kind.only_spot)
        raise errors.UsageError(
            f"--machine={machine} is to be had with --spot or --flex_start"
            f" only. Add one of them, or choose {_or(always)}. {_UNCHECKED}"
        )
    return Choice(machine, kind.vertex, kind.gke_label, count, kind.disk_type)


def _unchecked(
    accelerator: str | None, count: int | None, machine: str | None
) -> Choice:
    known = ACCELERATORS.get(accelerator or "")
    if not machine or (accelerator and not count):
        raise errors.UsageError(
            "--unchecked_machine derives nothing: it needs --machine, and with"
            " --accelerator also --num_accelerators."
        )
    name = accelerator or ""
    return Choice(
        machine,
        known.vertex if known else name,
        known.gke_label if known else name,
        count or 0,
    )


def _refuse_arm(accelerator: str | None, machine: str | None) -> None:
    normal = (accelerator or "").lower().replace("_", "-")
    arm = any(name in normal for name in _ARM_ACCELERATORS)
    if arm or (machine and _ARM.match(machine)):
        what = f"--accelerator={accelerator}" if arm else f"--machine={machine}"
        raise errors.UsageError(
            f"{what} means machines with Arm processors, for which there is no"
            " TensorFlow with CUDA. Choose b200, h200 or another"
            f" --accelerator of {', '.join(ACCELERATORS)}."
        )


def _canonical_name(accelerator: str) -> str:
    normal = accelerator.lower().replace("_", "-")
    for name, kind in ACCELERATORS.items():
        if normal in (name, kind.gke_label, kind.vertex.lower()):
            return name
        if normal == kind.vertex.lower().replace("_", "-"):
            return name
    near = [n for n in ACCELERATORS if n.startswith(f"{normal}-")]
    near = near or difflib.get_close_matches(
        normal, ACCELERATORS, n=3, cutoff=0.3
    )
    raise errors.UsageError(
        f"--accelerator={accelerator} is not known."
        f" {'Nearest: ' + ', '.join(near) + '. ' if near else ''}Known:"
        f" {', '.join(ACCELERATORS)}. {_UNCHECKED}"
    )


def _from_machine(count: int | None, machine: str | None, spot: bool) -> Choice:
    """Returns the choice where only a machine was named, or not even that."""
    machine = machine or "n1-standard-8"
    kinds = [n for n, k in ACCELERATORS.items() if machine in k.machines]
    attached = machine.startswith("n1-")
    if kinds and not attached:  # Its GPUs are part of it.
        return choose(kinds[0], count, machine, spot=spot)
    if count:
        raise errors.UsageError(
            f"--num_accelerators={count} on {machine} needs --accelerator:"
            f" {_or(kinds or list(ACCELERATORS))}."
        )
    if not attached:
        _check_family(machine)
    return Choice(machine, "", "", 0)


def _check_family(machine: str) -> None:
    """Refuses a mistyped machine of a family that has GPUs built in."""
    known = [m for k in ACCELERATORS.values() for m in k.machines]
    families = {m.partition("-")[0] for m in known} - {"n1"}
    if machine.partition("-")[0] in families:
        near = difflib.get_close_matches(machine, known, n=3)
        raise errors.UsageError(
            f"--machine={machine} is not known. Nearest: {', '.join(near)}."
            f" {_UNCHECKED}"
        )


def _machines_with(kind: Accelerator, count: int) -> list[str]:
    return [m for m, counts in kind.machines.items() if count in counts]


def _first_machine(name: str, count: int) -> str:
    kind = ACCELERATORS[name]
    machines = _machines_with(kind, count)
    if not machines:
        counts = sorted({n for ns in kind.machines.values() for n in ns})
        near = sorted(counts, key=lambda n: (abs(n - count), n))[:2]
        raise errors.UsageError(
            f"--num_accelerators={count}: no machine has {count} {name}."
            f" Nearest: {_or(sorted(near))}; possible: {_or(counts)}."
            f" {_UNCHECKED}"
        )
    return machines[0]


def _describe(machines: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{m} ({_or(counts)})" for m, counts in machines.items())


def _or(values: "tuple[int, ...] | list[int] | list[str]") -> str:
    texts = [str(value) for value in values]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} or {texts[-1]}"
