"""The rules that tests/test_config.py does not meet through a whole config."""

import pytest

from trainer import config, config_rules, errors


def test_what_xla_cannot_compile_is_not_compiled():
    with pytest.raises(errors.UsageError, match="jit_compile=on.*sync_batch"):
        config.Config(jit_compile="on", sync_batch_norm=True).validate()
    for jit_compile, sync_batch_norm in (("on", False), ("auto", True)):
        config_rules.check_compilation(
            jit_compile, sync_batch_norm=sync_batch_norm
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("evaluation_split", "test"),
        ("num_evaluation_samples", 100),
        ("inception_weights", "inception.h5"),
    ],
)
def test_what_is_never_measured_has_no_settings(name, value):
    given = {name: value}
    with pytest.raises(errors.UsageError, match=f"--{name}={value} has no use"):
        config.Config(**given).validate()
    config.Config(**given, evaluate_every_epochs=1).validate()


def test_a_run_has_a_name_that_its_files_can_hold():
    with pytest.raises(errors.UsageError, match=r"'a\\udce9b'.*UTF-8"):
        config.Config(workdir="a\udce9b").validate()
    config_rules.check_encoding("überall")


def test_all_shares_are_equal():
    config_rules.check_shares(
        12,
        strategy="mirrored",
        num_logical_cpus=3,
        gradient_accumulation_steps=4,
    )
    with pytest.raises(
        errors.UsageError, match="accumulation_steps=5: 2 would"
    ):
        config_rules.check_shares(
            12,
            strategy="mirrored",
            num_logical_cpus=0,
            gradient_accumulation_steps=5,
        )
