import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from trainer import config, errors, options

RECIPES = Path(config.__file__).parent / "recipes"
FIELDS = [field.name for field in dataclasses.fields(config.Config)]

# Another legal value for every field: a new field must be classified here.
CHANGES_RESULT = {
    "seed": 1,
    "dataset": "mnist",
    "batch_size": 48,
    "latent_dim": 64,
    "g_learning_rate": 2e-4,
    "d_learning_rate": 2e-4,
    "sync_batch_norm": True,
    "precision": "mixed_float16",
    "gradient_accumulation_steps": 2,
    "optimizer": "rmsprop",
    "rollback_learning_rate_factor": 0.5,
    "split": "test",
    "image_size": "32x48",
    "channels": "3",
    "resize": "pad",
    "random_flip": True,
    "model": "dcgan",
    "model_width": 8,
    "conditional": True,
    "loss": "hinge",
    "ema_half_life_images": 10000,
    "augment": "translate,cutout",
    "augment_probability": 0.5,
    "augment_target": 0.6,
    "augment_speed_images": 100000,
    "num_discriminator_steps": 5,
    "penalty": "r1",
    "penalty_weight": 0.05,
    "penalty_every_steps": 16,
    "g_beta_1": 0.5,
    "d_beta_1": 0.0,
    "g_beta_2": 0.9,
    "d_beta_2": 0.99,
    "learning_rate_schedule": "cosine",
    "learning_rate_warmup_steps": 100,
    "learning_rate_decay_steps": 1000,
    "learning_rate_final_factor": 0.1,
}
MAY_CHANGE = {
    "workdir": "elsewhere",
    "local_dir": "near",
    "upload_deadline_secs": 1,
    "stop_upload_deadline_secs": 1,
    "resume": "must",
    "epochs": 60,
    "max_steps": 7,
    "data_dir": "data",
    "strategy": "one_device",
    "num_logical_cpus": 2,
    "max_rollbacks": 0,
    "worker_wait_secs": 5,
    "stall_timeout_secs": 0,
    "jit_compile": "off",
    "steps_per_loop": 1,
    "deterministic": "on",
    "checkpoint_every_epochs": 1,
    "keep_checkpoints": 1,
    "keep_every_epochs": 20,
    "sample_every_epochs": 2,
    "num_samples": 25,
    "log_every_steps": 1,
    "max_bad_fraction": 0.0,
    "max_pixels": 1000,
    "data_memory_mib": 0,
    "evaluate_every_epochs": 5,
    "evaluation_split": "test",
    "num_evaluation_samples": 100,
    "inception_weights": "inception.h5",
    "cache_dir": "cache",
    "on_collapse": "rollback",
}


def parse(*args: str) -> config.Config:
    flag_values = flags.FlagValues()
    options.define_flags(config.Config, flag_values)
    leftover = flag_values(["program", *args])[1:]
    assert leftover == []
    values = options.values_from_flags(config.Config, flag_values)
    return config.Config(**values)


def changed(name: str, value: object) -> config.Config:
    return dataclasses.replace(config.Config(), **{name: value})


def test_defaults_are_valid_and_resolved():
    config.Config().validate()
    resolved = config.Config().resolve()
    assert resolved.workdir == "./runs/digits-dcgan28"
    assert resolved.batch_size == 32
    assert config.Config(dataset="mnist").resolve().batch_size == 256
    assert resolved.resolve() == resolved


def test_given_values_are_kept_and_the_tilde_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    given = config.Config(workdir="~/run", data_dir="~/data", batch_size=8)
    resolved = given.resolve()
    assert resolved.workdir == "/home/someone/run"
    assert resolved.data_dir == "/home/someone/data"
    assert resolved.batch_size == 8


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("workdir", "", "name of a directory"),
        ("workdir", "s3://bucket/run", "gs://bucket/prefix"),
        ("workdir", "gs://", "gs://bucket/prefix"),
        ("local_dir", "near", "has no use"),
        ("resume", "always", "auto, never, must"),
        ("seed", -1, "0 to 2147483647"),
        ("seed", 2**31, "0 to 2147483647"),
        ("epochs", 0, "1 or more"),
        ("epochs", None, "1 or more"),
        ("epochs", 2.5, "whole number"),
        ("epochs", "5", "whole number"),
        ("epochs", True, "whole number"),
        ("max_steps", 0, "1 or more"),
        ("dataset", "minst", "digits, mnist"),
        ("dataset", "folder:", "folder:<path>"),
        ("dataset", "digits:x", "digits, mnist"),
        ("image_size", "0", "48x64"),
        ("image_size", "32x", "48x64"),
        ("image_size", "a", "48x64"),
        ("channels", "2", "auto, 1, 3"),
        ("resize", "stretch", "fit, crop, pad"),
        ("max_bad_fraction", 1.1, "from 0 to 1"),
        ("max_bad_fraction", -0.1, "from 0 to 1"),
        ("max_bad_fraction", float("nan"), "from 0 to 1"),
        ("data_memory_mib", -1, "0 or more"),
        ("data_dir", "", "name of a directory"),
        ("data_dir", "data", "embedded"),
        ("batch_size", 0, "1 or more"),
        ("model", "dcgan29", "dcgan28"),
        ("latent_dim", 0, "1 to 65536"),
        ("g_learning_rate", 0.0, "finite number above 0"),
        ("g_learning_rate", float("nan"), "finite number above 0"),
        ("d_learning_rate", -1e-4, "finite number above 0"),
        ("d_learning_rate", float("inf"), "finite number above 0"),
        ("g_beta_1", 1.0, "a number from 0 to 0.9999"),
        ("d_beta_1", -0.1, "a number from 0 to 0.9999"),
        ("g_beta_2", 1.0, "a number from 0 to 0.9999"),
        ("d_beta_2", float("nan"), "a number from 0 to 0.9999"),
        ("learning_rate_schedule", "step", "constant, linear, cosine"),
        ("learning_rate_schedule", "cosine", "--learning_rate_decay_steps"),
        ("learning_rate_decay_steps", 50, "constant does not decay"),
        ("learning_rate_final_factor", 0.5, "constant does not decay"),
        ("learning_rate_final_factor", 1.5, "a number from 0 to 1"),
        ("loss", "gan", "relativistic"),
        ("penalty", "r3", "wgan_gp"),
        ("augment", "flip,blur", "flip, colour, translate, cutout"),
        ("augment", "flip,colour,flip", "at most once"),
        ("augment", "flip,", "commas between"),
        ("augment", "none,flip", "none, or"),
        ("augment_probability", 1.1, "from 0 to 1"),
        ("augment_target", -0.1, "from 0 to 1"),
        ("augment_speed_images", 0, "1 or more"),
        ("penalty_weight", 1.0, "--penalty=none"),
        ("penalty_weight", 0.0, "above 0"),
        ("penalty_every_steps", 16, "--penalty=none"),
        ("strategy", "tpu", "one_device, mirrored"),
        ("num_logical_cpus", -1, "0 to 64"),
        ("num_logical_cpus", 3, "--batch_size=32"),
        ("sync_batch_norm", 1, "true or false"),
        ("steps_per_loop", 0, "1 or more"),
        ("deterministic", True, "auto, on, off"),
        ("checkpoint_every_epochs", 0, "1 or more"),
        ("keep_checkpoints", 0, "1 or more"),
        ("sample_every_epochs", 0, "1 or more"),
        ("num_samples", 0, "1 to 4096"),
        ("log_every_steps", 0, "1 or more"),
    ],
)
def test_an_illegal_value_is_named_with_its_rule(name, value, rule):
    with pytest.raises(errors.UsageError) as raised:
        changed(name, value).validate()
    assert f"--{name}={value}" in str(raised.value)
    assert rule in str(raised.value)


def test_a_rollback_that_could_not_be_done_is_refused():
    with pytest.raises(errors.UsageError, match="evaluate_every_epochs"):
        config.Config(on_collapse="rollback").validate()
    with pytest.raises(errors.UsageError, match="bucket are not taken back"):
        config.Config(
            on_collapse="rollback",
            evaluate_every_epochs=1,
            workdir="gs://bucket/run",
        ).validate()


def test_more_devices_than_the_strategy_uses_are_refused():
    with pytest.raises(errors.UsageError, match="num_logical_cpus=2.*mirrored"):
        config.Config(strategy="one_device", num_logical_cpus=2).validate()
    config.Config(strategy="one_device", num_logical_cpus=1).validate()
    with pytest.raises(errors.UsageError, match="--strategy=multi_worker"):
        config.Config(strategy="multi_worker", num_logical_cpus=2).validate()


def test_betas_are_adam_s():
    with pytest.raises(errors.UsageError, match="--d_beta_1=0.5 has no use"):
        config.Config(optimizer="rmsprop", d_beta_1=0.5).validate()
    config.Config(optimizer="rmsprop").validate()
    config.Config(d_beta_1=0.5, g_beta_1=0.0, g_beta_2=0.99).validate()


def test_augmentations_that_could_not_adapt_are_refused():
    adaptive = config.Config(augment="flip", augment_target=0.6)
    adaptive.validate()
    for name, value in (
        ("augment_target", 0.6),
        ("augment_probability", 0.5),
        ("augment_speed_images", 1000),
    ):
        with pytest.raises(errors.UsageError, match="--augment=none changes"):
            config.Config(**{name: value}).validate()
    with pytest.raises(errors.UsageError, match="nothing adapts"):
        config.Config(augment="flip", augment_speed_images=1000).validate()
    with pytest.raises(errors.UsageError, match="augment_target=0.6 adapts it"):
        dataclasses.replace(adaptive, augment_probability=0.5).validate()
    for loss in config.LOSSES:
        changed = dataclasses.replace(adaptive, loss=loss)
        if loss in config.LOSSES_WITH_A_ZERO:
            changed.validate()
            continue
        with pytest.raises(errors.UsageError) as raised:
            changed.validate()
        assert f"--loss={loss}" in str(raised.value)
        assert "--augment_probability" in str(raised.value)
        dataclasses.replace(changed, augment_target=None).validate()


def test_the_order_of_augmentations_makes_no_difference():
    one, other = (
        config.Config(augment=names)
        for names in ("cutout,flip,translate", "flip,translate,cutout")
    )
    one.validate()
    assert one.resolve().augment == other.resolve().augment == other.augment
    assert one.digest() == other.digest()
    assert config.difference(one, other) == []


def test_runs_of_before_the_objectives_could_be_chosen_keep_their_digest():
    # Computed by the version before; it stands in the runs' checkpoints.
    assert config.Config().digest() == "5c4d288de9dbabd3"
    assert config.Config(latent_dim=64).digest() == "07873f51f9f6eeb2"
    mnist = config.Config(dataset="mnist", g_learning_rate=2e-4, batch_size=48)
    assert mnist.digest() == "8bf403b8f1a16920"


@pytest.mark.parametrize("num_logical_cpus", [0, 1, 2, 4])
def test_a_batch_that_divides_is_accepted(num_logical_cpus):
    config.Config(num_logical_cpus=num_logical_cpus).validate()


def test_a_square_number_of_samples_is_not_needed():
    config.Config(num_samples=7).validate()


def test_flags_without_arguments_give_the_defaults():
    assert parse() == config.Config()


def every_other_value():
    return (CHANGES_RESULT | MAY_CHANGE).items()


@pytest.mark.parametrize(("name", "value"), every_other_value())
def test_each_flag_sets_its_field(name, value):
    assert parse(f"--{name}={value}") == changed(name, value)


def test_a_flag_of_truth_takes_no_value():
    assert parse("--sync_batch_norm").sync_batch_norm
    assert not parse("--nosync_batch_norm").sync_batch_norm


@pytest.mark.parametrize(
    "flag",
    ["--epochs=many", "--epochs=2.5", "--g_learning_rate=fast", "--dataset="],
)
def test_text_that_is_no_value_is_refused_by_the_parser(flag):
    with pytest.raises(errors.UsageError, match=f"{flag} is not valid"):
        parse(flag)


def test_every_field_is_classified():
    assert set(FIELDS) == CHANGES_RESULT.keys() | MAY_CHANGE.keys()


@pytest.mark.parametrize(("name", "value"), CHANGES_RESULT.items())
def test_what_changes_the_result_changes_the_digest(name, value):
    old, new = config.Config(), changed(name, value)
    assert new.digest() != old.digest()
    differing = [line.split(":")[0] for line in config.difference(old, new)]
    # Another data set brings another default batch.
    assert differing == ([name, "batch_size"] if name == "dataset" else [name])


@pytest.mark.parametrize(("name", "value"), MAY_CHANGE.items())
def test_what_may_change_leaves_the_digest(name, value):
    old, new = config.Config(), changed(name, value)
    assert new.digest() == old.digest()
    assert config.difference(old, new) == []


def test_the_model_changes_the_result():
    old, new = config.Config(), config.Config(model="another")
    assert new.digest() != old.digest()
    assert config.difference(old, new) == ["model: dcgan28 -> another"]


def test_a_default_written_out_is_no_difference():
    old, new = config.Config(), config.Config(batch_size=32)
    assert new.digest() == old.digest()
    assert config.difference(old, new) == []


@pytest.mark.parametrize(("name", "value"), every_other_value())
def test_json_round_trip(name, value):
    original = changed(name, value)
    text = original.to_json()
    assert config.Config.from_json(text, "config.json") == original
    assert text.endswith("}\n")


def test_a_field_that_is_newer_than_the_file_has_its_default():
    text = without("sync_batch_norm")
    assert config.Config.from_json(text, "config.json") == config.Config()


def test_a_new_field_does_not_orphan_old_checkpoints(monkeypatch):
    # As a version that had no seed yet would have seen it.
    before = config.Config().digest()
    fixed_values = config._fixed_values
    monkeypatch.setattr(
        config,
        "_fixed_values",
        lambda c: {k: v for k, v in fixed_values(c).items() if k != "seed"},
    )
    assert config.Config().digest() == before


def with_changes(**changes: object) -> str:
    return json.dumps(json.loads(config.Config().to_json()) | changes)


def without(name: str) -> str:
    values = json.loads(config.Config().to_json())
    del values[name]
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (with_changes(epoch=3), "unknown: epoch"),
        (with_changes(epochs="50"), "--epochs=50"),
        (with_changes(sync_batch_norm=0), "--sync_batch_norm=0"),
        (with_changes(dataset=None), "--dataset=None"),
        (with_changes(model="dcgan99"), "--model=dcgan99"),
        (config.Config().to_json().rpartition(":")[0][:-3], "Unterminated"),
        ("", "Expecting value"),
        ("3", "not a JSON object"),
        (b'"\xff"', "decode"),
    ],
)
def test_json_that_is_no_config_is_refused(text, complaint):
    with pytest.raises(errors.UsageError) as raised:
        config.Config.from_json(text, "runs/a/config.json")
    assert "runs/a/config.json" in str(raised.value)
    assert complaint in str(raised.value)


def test_help_names_every_flag_with_its_default_and_topic():
    text = options.help_text(config.Config)
    for field, option in options.fields(config.Config):
        assert f"--{field.name}" in text
        assert f"\n{option.topic}:" in f"\n{text}"
        assert text.count(f"\n{option.topic}:") <= 1  # Fields stay grouped.
        assert option.help.endswith(".")
    assert "Default: 50." in text
    assert "32 for" in text
    assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize("path", RECIPES.iterdir(), ids=lambda path: path.stem)
def test_recipes_are_valid_and_say_what_they_cost(path):
    parse(f"--flagfile={path}").validate()
    header = path.read_text()
    for word in (f"recipes/{path.name}", "Cost:", "Expected:"):
        assert word in header
    assert max(map(len, header.splitlines())) <= 80


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist"])
def test_recipes_of_the_default_model_hold_the_defaults(name):
    recipe = parse(f"--flagfile={RECIPES / name}.flags")
    assert recipe.resolve() == config.Config(dataset=name).resolve()


def test_config_and_the_entry_point_import_no_tensorflow():
    code = (
        "import sys; from trainer import config, main, run_directory;"
        " sys.exit(bool({'tensorflow', 'keras'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_loop_is_as_long_as_was_asked_for():
    # Logging ends one, and does so by default only where it ends anyhow.
    assert config.Config().resolve().log_every_steps == 10
    long = config.Config(steps_per_loop=100).resolve()
    assert long.log_every_steps == 100
    both = config.Config(steps_per_loop=100, log_every_steps=5).resolve()
    assert both.log_every_steps == 5


@pytest.mark.parametrize(
    ("workdir", "bucket", "local_root"),
    [
        ("runs/a", None, "runs/a"),
        ("gs://b-1/runs/a/", ("b-1", "runs/a"), "./runs/b-1/runs/a"),
        ("gs://b-1", ("b-1", ""), "./runs/b-1/"),
    ],
)
def test_a_bucket_has_a_local_directory(workdir, bucket, local_root):
    resolved = config.Config(workdir=workdir).resolve()
    assert resolved.bucket == bucket
    assert resolved.local_root == local_root
    given = config.Config(workdir=workdir, local_dir="near").resolve()
    assert given.local_root == ("near" if bucket else "runs/a")
