"""Which machine has which GPUs, and what is said to those who mistake it."""

import pytest
from google.cloud.aiplatform_v1 import types

from launch import accelerators
from launch.accelerators import ACCELERATORS, Choice
from trainer import errors


def _choose(accelerator=None, count=None, machine=None, **how):
    return accelerators.choose(
        accelerator, count, machine, **({"spot": False} | how)
    )


def test_vertex_ai_knows_all_names():
    for kind in ACCELERATORS.values():
        assert kind.vertex in types.AcceleratorType.__members__


def test_the_table_has_what_was_promised():
    assert sorted(ACCELERATORS) == [
        *("a100-40gb", "a100-80gb", "b200", "h100", "h100-mega", "h200"),
        *("l4", "rtx-pro-6000", "t4", "v100"),
    ]


@pytest.mark.parametrize("kind", ACCELERATORS.values(), ids=ACCELERATORS.keys())
def test_gpus_are_attached_to_n1_and_part_of_all_others(kind):
    for machine, counts in kind.machines.items():
        assert machine.startswith("n1-") or len(counts) == 1
        # The name of some machines ends in their count.
        if machine.endswith("g"):
            assert machine.endswith(f"-{counts[0]}g")
        others = [k for k in ACCELERATORS.values() if machine in k.machines]
        assert machine.startswith("n1-") or others == [kind]


@pytest.mark.parametrize(
    ("arguments", "machine", "vertex", "count"),
    [
        ((), "n1-standard-8", "", 0),
        (("t4",), "n1-standard-8", "NVIDIA_TESLA_T4", 1),
        (("t4", 4), "n1-standard-8", "NVIDIA_TESLA_T4", 4),
        (("v100", 8), "n1-standard-8", "NVIDIA_TESLA_V100", 8),
        (("t4", 2, "n1-highmem-8"), "n1-highmem-8", "NVIDIA_TESLA_T4", 2),
        (("v100", 4, "n1-highcpu-32"), *("n1-highcpu-32", "NVIDIA_TESLA_V100"),
         4),
        (("l4",), "g2-standard-8", "NVIDIA_L4", 1),
        (("l4", 2), "g2-standard-24", "NVIDIA_L4", 2),
        (("nvidia-l4", 8), "g2-standard-96", "NVIDIA_L4", 8),
        (("L4", 1, "g2-standard-32"), "g2-standard-32", "NVIDIA_L4", 1),
        ((None, None, "g2-standard-48"), "g2-standard-48", "NVIDIA_L4", 4),
        ((None, None, "n2-standard-8"), "n2-standard-8", "", 0),
        (("NVIDIA_TESLA_A100", 16), "a2-megagpu-16g", "NVIDIA_TESLA_A100", 16),
        (("a100-80gb", 4), "a2-ultragpu-4g", "NVIDIA_A100_80GB", 4),
        (("h100", 8), "a3-highgpu-8g", "NVIDIA_H100_80GB", 8),
        (("h100-mega", 8), "a3-megagpu-8g", "NVIDIA_H100_MEGA_80GB", 8),
        (("h200", 8), "a3-ultragpu-8g", "NVIDIA_H200_141GB", 8),
        (("b200", 8), "a4-highgpu-8g", "NVIDIA_B200", 8),
        (("rtx_pro_6000", 2), "g4-standard-96", "NVIDIA_RTX_PRO_6000", 2),
        ((None, None, "a3-ultragpu-8g"), *("a3-ultragpu-8g",),
         "NVIDIA_H200_141GB", 8),
    ],
)  # fmt: skip
def test_what_is_left_out_follows(arguments, machine, vertex, count):
    choice = _choose(*arguments)
    assert (choice.machine, choice.vertex, choice.count) == (
        machine,
        vertex,
        count,
    )


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("a100",), ["a100 is not known", "Nearest: a100-40gb, a100-80gb."]),
        (("tpu-v4",), ["not known", "Known: t4, v100"]),
        (("l4", 3), ["no machine has 3 l4", "Nearest: 2 or 4", "1, 2, 4 or 8"]),
        (("h200",), ["no machine has 1 h200", "possible: 8"]),
        (("l4", 2, "g2-standard-8"), ["which has 1", "g2-standard-24"]),
        (("t4", 8, "n1-standard-8"), ["has 1, 2 or 4", "Machines with it"]),
        (("t4", 1, "n1-standard-32"), ["has 2 or 4", "n1-standard-8"]),
        (("l4", 1, "n1-standard-8"), ["cannot have", "g2-standard-24 (2)"]),
        (("h100", 1), ["--spot or --flex_start", "a3-highgpu-8g"]),
        ((None, 1, "n1-standard-8"), ["needs --accelerator: t4 or v100"]),
        (("t4", 1, "n1-highcpu-8"), ["cannot have"]),
        ((None, 1, None), ["needs --accelerator"]),
        ((None, None, "g2-standard-7"), ["is not known", "g2-standard-"]),
        (("gb200",), ["Arm", "b200"]),
        (("NVIDIA_GB200", 4), ["Arm"]),
        ((None, None, "a4x-highgpu-4g"), ["a4x-highgpu-4g", "Arm"]),
        ((None, None, "c4a-standard-8"), ["Arm"]),
    ],
)
def test_what_does_not_exist_is_refused_with_what_comes_nearest(
    arguments, texts
):
    with pytest.raises(errors.UsageError) as caught:
        _choose(*arguments)
    for text in texts:
        assert text in str(caught.value)


def test_what_is_to_be_had_as_spot_only():
    assert _choose("h100", 1, spot=True).machine == "a3-highgpu-1g"
    assert _choose("h100", 8).machine == "a3-highgpu-8g"


def test_the_way_out_takes_everything_as_it_is():
    assert _choose("NVIDIA_X1", 3, "x1-mega-3g", unchecked=True) == Choice(
        "x1-mega-3g", "NVIDIA_X1", "NVIDIA_X1", 3
    )
    # A name of the table still means what it says there.
    assert _choose("l4", 2, "g9-standard-1", unchecked=True) == Choice(
        "g9-standard-1", "NVIDIA_L4", "nvidia-l4", 2
    )
    for arguments in (("l4", 1, None), ("l4", None, "g9"), (None, None, None)):
        with pytest.raises(errors.UsageError, match="derives nothing"):
            _choose(*arguments, unchecked=True)


def test_the_way_out_does_not_lead_to_arm():
    for arguments in (("gb200", 4, "a4x-highgpu-4g"), (None, None, "c4a-x-9")):
        with pytest.raises(errors.UsageError, match="Arm processors"):
            _choose(*arguments, unchecked=True)
