"""Every hyperparameter, declared once, with the values that it may have.

The flags, `--help`, `config.json` and what may change when a run resumes are
all derived from the fields of `Config`, a table that is as long as there are
hyperparameters. To add one, add a field: `_fixed` if its value decides which
weights come out, else `_free`. Which values cannot come together is said in
`trainer.config_rules`.

This module imports no TensorFlow, so a typo in a flag is answered at once.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from typing import Any

from trainer import config_rules, options

# The tables `data.ARRAYS`, `data.SOURCES`, `geometry.RESIZERS`, `models.MODELS`
# and those of the training import much; the names are repeated here, and a test
# holds them in agreement.
SOURCES = {
    "tfds": "tfds:<name>[:config]",
    "folder": "folder:<path>",
    "tfrecord": "tfrecord:<glob>",
}
DEFAULT_BATCH_SIZES = {
    "digits": 32,
    "mnist": 256,
    "fashion_mnist": 256,
    "cifar10": 128,
    **dict.fromkeys(SOURCES, 64),
}
ARRAYS = tuple(name for name in DEFAULT_BATCH_SIZES if name not in SOURCES)
RESIZERS = ("fit", "crop", "pad")
MODELS = ("dcgan28", "dcgan", "sngan", "r3gan", "gangogh")
OPTIMIZERS = ("adam", "rmsprop")
LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine")
LOSSES = (
    "non_saturating",
    "minimax",
    "hinge",
    "least_squares",
    "wasserstein",
    "relativistic",
)
PENALTIES = ("none", "r1", "r2", "r1_r2", "wgan_gp", "dragan")
AUGMENTATIONS = ("flip", "colour", "translate", "cutout")
# The others have logits of which only differences matter, or whose middle
# between real and generated samples is elsewhere.
LOSSES_WITH_A_ZERO = ("non_saturating", "minimax", "hinge")


def _some_of(names: tuple[str, ...]) -> dict[str, str]:
    """Returns the rules of an option that is a list of names, or none."""
    name = f"({'|'.join(names)})"
    return {
        # First, that no name comes again.
        "pattern": rf"none|(?!.*\b(\w+),(.*,)?\1\b){name}(,{name})*",
        "rule": "none, or names with commas between, each at most once, of"
        f" {', '.join(names)}",
    }


_fixed = functools.partial(options.declare, True)
_free = functools.partial(options.declare, False)

_RUN = "Run"
DATA = "Data"
_MODEL = "Model and optimization"
_OBJECTIVE = "What the networks are trained for"
_SPEED = "Distribution and speed"
_OUTPUT = "Output"
_EVALUATION = "Evaluation"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one training run."""

    workdir: str | None = _free(
        _RUN,
        None,
        "Directory of the run, or gs://bucket/prefix: everything is written"
        " there, and the same command continues what it finds there.",
        "directory",
        default_text="./runs/<dataset>-<model>",
    )
    local_dir: str | None = _free(
        _RUN,
        None,
        "Where a run in a bucket is written first; it may be lost at any time.",
        "directory",
        default_text="./runs/<bucket>/<prefix>",
    )
    upload_deadline_secs: int = _free(
        _RUN,
        300,
        "At the end, a run in a bucket waits so long for its uploads.",
        "seconds",
        minimum=0,
    )
    stop_upload_deadline_secs: int | None = _free(
        _RUN,
        None,
        "Once a signal to stop has come, it waits so long at most; choose it"
        " below the time that there is before SIGKILL.",
        "seconds",
        minimum=0,
        default_text="upload_deadline_secs",
    )
    resume: str = _free(
        _RUN,
        "auto",
        "auto: continue the run in workdir, or start one; never: refuse if"
        " there is a run; must: refuse if there is no checkpoint.",
        choices=("auto", "never", "must"),
    )
    seed: int = _fixed(
        _RUN,
        0,
        "Decides every random draw: the same seed gives the same weights.",
        "seed",
        minimum=0,
        maximum=2**31 - 1,
    )
    epochs: int = _free(
        _RUN,
        50,
        "Train until the data has been seen this often. Raise it to go on"
        " with a finished run.",
        "epochs",
        minimum=1,
    )
    max_steps: int | None = _free(
        _RUN,
        None,
        "Stop early, at this global step: for trials.",
        "steps",
        minimum=1,
        default_text="no limit",
    )
    dataset: str = _fixed(
        DATA,
        "digits",
        "digits: 1,797 handwritten digits, nothing to download; mnist,"
        " fashion_mnist, cifar10: through tensorflow-datasets or from"
        " data_dir; tfds:<name>[:config]: anything with images in its"
        " catalogue; folder:<path>: image files, in a sub-folder for each"
        " class or with a labels.csv; tfrecord:<glob>: examples with images."
        " Paths may be in a bucket, gs://bucket/folder.",
        "data set",
        pattern=rf"{'|'.join(ARRAYS)}|({'|'.join(SOURCES)}):.+",
        rule=f"one of {', '.join([*ARRAYS, *SOURCES.values()])}",
    )
    data_dir: str | None = _free(
        DATA,
        None,
        "Directory with data prepared before: that of tensorflow-datasets, or"
        " the original files. Relative paths in dataset start here.",
        "directory",
        default_text="that of tensorflow-datasets",
    )
    split: str | None = _fixed(
        DATA,
        None,
        "Which part of the data: train, test, or of tfds also train[:80%] and"
        " the like; of a folder, a sub-folder.",
        "part",
        default_text="train; of a folder, all of it",
    )
    image_size: str | None = _fixed(
        DATA,
        None,
        "Bring the images to this size: 64, or 48x64 for height x width.",
        "size",
        default_text="that of the data, if all are alike",
        pattern=r"[1-9]\d{0,3}(x[1-9]\d{0,3})?",
        rule="a size in pixels such as 64, or height x width such as 48x64",
    )
    channels: str = _fixed(
        DATA,
        "auto",
        "1: grey; 3: colours; auto: grey if all images are, else colours.",
        choices=("auto", "1", "3"),
    )
    resize: str = _fixed(
        DATA,
        "crop",
        "fit: stretch, whatever the aspect ratio; crop: cover the size and cut"
        " off the rest; pad: fit into the size with black around.",
        choices=RESIZERS,
    )
    random_flip: bool = _fixed(
        DATA, False, "Mirror half of the images, others in each epoch."
    )
    max_bad_fraction: float = _free(
        DATA,
        0.01,
        "Damaged or unreadable images are left out and named; if more than"
        " this fraction is, exit 3.",
        "fraction",
        minimum=0,
        maximum=1,
    )
    max_pixels: int = _free(
        DATA,
        100_000_000,
        "Images with more pixels than this are not decoded, but left out.",
        "pixels",
        minimum=1,
    )
    data_memory_mib: int = _free(
        DATA,
        4096,
        "Decoded data up to this size are kept in memory; what is larger is"
        " decoded while it is read. Either gives the same batches.",
        "MiB",
        minimum=0,
    )
    batch_size: int | None = _fixed(
        DATA,
        None,
        "Global batch: images a step, over all replicas together.",
        "images",
        minimum=1,
        default_text=", ".join(
            f"{size} for {name}" for name, size in DEFAULT_BATCH_SIZES.items()
        ),
    )
    model: str = _fixed(
        _MODEL,
        "dcgan28",
        "The two networks. dcgan28: the DCGAN of TensorFlow's tutorial, for"
        " 28x28 grey images; dcgan: that of Radford et al., for any size from"
        " 16 to 256, grey or in colours; sngan: the ResNets of spectral norm,"
        " for 32x32 or 64x64, with --loss=hinge; r3gan: for 32x32, 64x64,"
        " 128x128 or 256x256, with --loss=relativistic and --penalty=r1_r2;"
        " gangogh: with gates that know the class, for 32 to 128 in steps of"
        " 16.",
        choices=MODELS,
    )
    model_width: int | None = _fixed(
        _MODEL,
        None,
        "Channels of the generator at the full size. In dcgan, each halving of"
        " it doubles them, up to 8 times (the paper's has 128); in sngan at"
        " 64x64 and in r3gan down to 32x32, too.",
        "channels",
        minimum=1,
        maximum=2048,
        default_text="64 for dcgan and gangogh, the paper's for sngan and"
        " r3gan; dcgan28 has no choice",
    )
    conditional: bool = _fixed(
        _MODEL,
        False,
        "Tell both networks the classes of the images, so that the generator"
        " can be asked for one. The data must have several.",
    )
    latent_dim: int = _fixed(
        _MODEL,
        100,
        "Length of the random vector that an image is made from.",
        "numbers",
        minimum=1,
        maximum=65536,
    )
    optimizer: str = _fixed(
        _MODEL,
        "adam",
        "Of both networks.",
        choices=OPTIMIZERS,
    )
    g_learning_rate: float = _fixed(
        _MODEL, 1e-4, "The generator's learning rate.", "rate"
    )
    d_learning_rate: float = _fixed(
        _MODEL, 1e-4, "The discriminator's learning rate.", "rate"
    )
    g_beta_1: float = _fixed(
        _MODEL,
        0.9,
        "Decay of the first moments in the generator's Adam. GANs often take"
        " 0.5 or 0.",
        "decay",
        minimum=0,
        maximum=0.9999,
    )
    d_beta_1: float = _fixed(
        _MODEL,
        0.9,
        "The same of the discriminator's.",
        "decay",
        minimum=0,
        maximum=0.9999,
    )
    g_beta_2: float = _fixed(
        _MODEL,
        0.999,
        "Decay of the second moments in the generator's Adam.",
        "decay",
        minimum=0,
        maximum=0.9999,
    )
    d_beta_2: float = _fixed(
        _MODEL,
        0.999,
        "The same of the discriminator's.",
        "decay",
        minimum=0,
        maximum=0.9999,
    )
    learning_rate_schedule: str = _fixed(
        _MODEL,
        "constant",
        "How both learning rates go down in learning_rate_decay_steps.",
        choices=LEARNING_RATE_SCHEDULES,
    )
    learning_rate_warmup_steps: int = _fixed(
        _MODEL,
        0,
        "Both learning rates rise in so many steps first.",
        "steps",
        minimum=0,
    )
    learning_rate_decay_steps: int | None = _fixed(
        _MODEL,
        None,
        "So many steps after the warm-up a schedule has come to its end; the"
        " rates stay there.",
        "steps",
        minimum=1,
        default_text="none; needed by linear and cosine",
    )
    learning_rate_final_factor: float = _fixed(
        _MODEL,
        0.0,
        "Part of the learning rates that is left at the end of a schedule.",
        "factor",
        minimum=0,
        maximum=1,
    )
    max_rollbacks: int = _free(
        _MODEL,
        3,
        "When a loss or weight is no longer finite, go back to the newest"
        " checkpoint and on with other random draws; after so many times, exit"
        " 5.",
        "rollbacks",
        minimum=0,
        maximum=1000,
    )
    rollback_learning_rate_factor: float = _fixed(
        _MODEL,
        1.0,
        "Each rollback multiplies both learning rates by this.",
        "factor",
    )
    loss: str = _fixed(
        _OBJECTIVE,
        "non_saturating",
        "What each network minimizes. wasserstein needs a penalty, or a"
        " discriminator with spectral norm.",
        choices=LOSSES,
    )
    penalty: str = _fixed(
        _OBJECTIVE,
        "none",
        "Of the discriminator's slope: r1 at real images, r2 at generated"
        " ones; wgan_gp, dragan: its distance from 1, between them or around"
        " real ones. Always in float32.",
        choices=PENALTIES,
    )
    penalty_weight: float = _fixed(
        _OBJECTIVE,
        10.0,
        "The paper's gamma (of which r1 and r2 take half) or lambda. The larger"
        " the images, the larger gamma; R3GAN has 0.05 for 32x32.",
        "weight",
    )
    penalty_every_steps: int = _fixed(
        _OBJECTIVE,
        1,
        "Penalize only every so many steps of the discriminator, with so many"
        " times the weight; StyleGAN2 takes 16.",
        "steps",
        minimum=1,
    )
    augment: str = _fixed(
        _OBJECTIVE,
        "none",
        "Change what the discriminator sees, real and generated images alike,"
        " which helps where images are few. Some of"
        f" {', '.join(AUGMENTATIONS)}, with commas between; Zhao et al. have"
        " colour,translate,cutout. With flip, mirrored images may be"
        " generated, which is wrong for writing.",
        "augmentations",
        **_some_of(AUGMENTATIONS),
    )
    augment_probability: float = _fixed(
        _OBJECTIVE,
        1.0,
        "Of each augmentation, for each image.",
        "probability",
        minimum=0,
        maximum=1,
    )
    augment_target: float | None = _fixed(
        _OBJECTIVE,
        None,
        "Adapt the probability, from 0 on: up while the mean sign of the logits"
        " of real images is above this, else down. The larger, the later it"
        " augments; StyleGAN2-ADA has 0.6.",
        "sign",
        minimum=0,
        maximum=1,
        default_text="none: it is fixed",
    )
    augment_speed_images: int = _fixed(
        _OBJECTIVE,
        500_000,
        "So many images bring an adaptive probability from 0 to 1; a run of"
        " less than millions needs fewer.",
        "images",
        minimum=1,
    )
    num_discriminator_steps: int = _fixed(
        _OBJECTIVE,
        1,
        "Updates of the discriminator for each of the generator, every one"
        " from a global batch of its own: a step takes so many batches, and an"
        " epoch has so many times fewer steps.",
        "steps",
        minimum=1,
        maximum=64,
    )
    ema_half_life_images: int = _fixed(
        _OBJECTIVE,
        0,
        "Average the generator over the images shown, those so long ago"
        " counting half, and draw samples from the average; 0: no average."
        " StyleGAN2 has 10,000 to 500,000; at first it is a twentieth of the"
        " images shown.",
        "images",
        minimum=0,
    )
    strategy: str = _free(
        _SPEED,
        "mirrored",
        "one_device: the first GPU, or the CPU; mirrored: one replica on each"
        " GPU of this machine, or on each logical CPU; multi_worker: the GPUs"
        " of all processes that TF_CONFIG or Slurm names.",
        choices=("one_device", "mirrored", "multi_worker"),
    )
    worker_wait_secs: int = _free(
        _SPEED,
        600,
        "Workers of multi_worker wait so long for each other to start.",
        "seconds",
        minimum=1,
    )
    num_logical_cpus: int = _free(
        _SPEED,
        0,
        "Split the CPU into this many devices, so that mirrored runs as many"
        " replicas without a GPU; 0: use the devices as they are.",
        "devices",
        minimum=0,
        maximum=64,
    )
    sync_batch_norm: bool = _fixed(
        _SPEED,
        False,
        "Normalize over the global batch instead of each replica's share.",
    )
    precision: str = _fixed(
        _SPEED,
        "float32",
        "What layers compute in. Weights and losses stay float32;"
        " mixed_float16 scales the losses, one scale a network.",
        choices=("float32", "mixed_float16", "mixed_bfloat16"),
    )
    gradient_accumulation_steps: int = _fixed(
        _SPEED,
        1,
        "Each replica goes through its share of a batch in so many parts, for"
        " batches larger than its memory. Batch norm sees a part at a time.",
        "parts",
        minimum=1,
    )
    jit_compile: str = _free(
        _SPEED,
        "auto",
        "Compile each replica's computation with XLA; auto: on GPUs, unless"
        " batch norm is synchronized.",
        choices=("auto", "on", "off"),
    )
    steps_per_loop: int = _free(
        _SPEED,
        10,
        "Steps that run on the devices for one call from Python; fewer before"
        " a logged step, the end of an epoch and the last step.",
        "steps",
        minimum=1,
    )
    stall_timeout_secs: int = _free(
        _SPEED,
        300,
        "When no steps have finished for so long, and for 20 times longer than"
        " usual, dump all stacks and exit 142; 0: never.",
        "seconds",
        minimum=0,
    )
    deterministic: str = _free(
        _SPEED,
        "auto",
        "on: bit-identical repeats, slower on a GPU; auto: on where there is"
        " no GPU.",
        choices=("auto", "on", "off"),
    )
    checkpoint_every_epochs: int = _free(
        _OUTPUT, 5, "Save the whole state this often.", "epochs", minimum=1
    )
    keep_checkpoints: int = _free(
        _OUTPUT, 3, "Keep this many newest ones.", "checkpoints", minimum=1
    )
    keep_every_epochs: int | None = _free(
        _OUTPUT,
        None,
        "Keep those of each such epoch for ever, besides the newest.",
        "epochs",
        minimum=1,
        default_text="none",
    )
    sample_every_epochs: int = _free(
        _OUTPUT, 1, "Draw the sample grid this often.", "epochs", minimum=1
    )
    num_samples: int = _free(
        _OUTPUT,
        16,
        "Images in the sample grid; with --conditional in a column for each"
        " class, rounded up to as many of each.",
        "images",
        minimum=1,
        maximum=4096,
    )
    log_every_steps: int | None = _free(
        _OUTPUT,
        None,
        "Write metrics this often, which ends a loop.",
        "steps",
        minimum=1,
        default_text="steps_per_loop",
    )
    evaluate_every_epochs: int = _free(
        _EVALUATION,
        0,
        "Measure the samples this often, save that state, and keep the one with"
        " the least Frechet distance besides the newest; 0: never.",
        "epochs",
        minimum=0,
    )
    evaluation_split: str | None = _free(
        _EVALUATION,
        None,
        "Part of the data to compare with, such as test.",
        "part",
        default_text="what is trained on",
    )
    num_evaluation_samples: int = _free(
        _EVALUATION,
        10_000,
        "Fakes to make, and at most so many real samples.",
        "samples",
        minimum=20,
        maximum=10_000_000,
    )
    inception_weights: str | None = _free(
        _EVALUATION,
        None,
        "Local file inception_v3_weights_tf_dim_ordering_tf_kernels.h5: take"
        " the features of InceptionV3 instead of a classifier that is trained"
        " on the data's labels.",
        "file",
        default_text="the classifier",
    )
    cache_dir: str | None = _free(
        _EVALUATION,
        None,
        "Where trained classifiers are kept, and what was found in TFRecord"
        " files, which are then not read again at each start.",
        "directory",
        default_text="~/.cache/gan-trainer",
    )
    on_collapse: str = _free(
        _EVALUATION,
        "warn",
        "When samples lose half of their variety, or go to three times the"
        " distance of the best; rollback: go back to the best and on with other"
        " random draws, at most max_rollbacks times.",
        choices=("warn", "rollback"),
    )

    @property
    def global_batch_size(self) -> int:
        """`batch_size`, or the default of the data set."""
        kind = self.dataset.partition(":")[0]
        return self.batch_size or DEFAULT_BATCH_SIZES[kind]

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """`image_size` as two numbers."""
        if self.image_size is None:
            return None
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)

    @property
    def images_per_step(self) -> int:
        """Real images that a step takes, over all replicas."""
        return self.global_batch_size * self.num_discriminator_steps

    @property
    def bucket(self) -> tuple[str, str] | None:
        """The bucket and prefix of a run in one, else None."""
        return _split_address(str(self.workdir))

    @property
    def local_root(self) -> str:
        """The local directory of a resolved config's run."""
        return str(self.local_dir if self.bucket else self.workdir)

    def resolve(self) -> "Config":
        """Fills in the defaults that depend on other values."""
        # "folder:/data/cats" has characters that no directory should have.
        name = re.sub(r"[^\w.-]+", "_", self.dataset).strip("_")
        workdir = self.workdir or f"./runs/{name}-{self.model}"
        local_dir = self.local_dir
        if bucket_and_prefix := _split_address(workdir):
            local_dir = local_dir or os.path.join("./runs", *bucket_and_prefix)
        return dataclasses.replace(
            self,
            # The shell leaves the tilde of --workdir=~/run alone.
            workdir=os.path.expanduser(workdir),
            local_dir=local_dir and os.path.expanduser(local_dir),
            data_dir=self.data_dir and os.path.expanduser(self.data_dir),
            batch_size=self.global_batch_size,
            log_every_steps=self.log_every_steps or self.steps_per_loop,
            augment=_in_order(self.augment),
        )

    def validate(self) -> None:
        """Checks the values, alone and together.

        Raises:
            UsageError: The message says the value, the rule and the remedy.
        """
        options.check_values(Config, vars(self))
        config = self.resolve()
        workdir, is_bucket = str(config.workdir), config.bucket is not None
        changed = options.changed_values(Config, vars(config))
        config_rules.check_place(
            workdir, local_dir=config.local_dir, is_bucket=is_bucket
        )
        config_rules.check_collapse(
            config.on_collapse,
            evaluate_every_epochs=config.evaluate_every_epochs,
            workdir=workdir,
            is_bucket=is_bucket,
        )
        config_rules.check_evaluation(
            evaluate_every_epochs=config.evaluate_every_epochs, changed=changed
        )
        config_rules.check_encoding(workdir)
        config_rules.check_data_dir(config.data_dir, dataset=config.dataset)
        config_rules.check_compilation(
            config.jit_compile, sync_batch_norm=config.sync_batch_norm
        )
        config_rules.check_shares(
            config.global_batch_size,
            strategy=config.strategy,
            num_logical_cpus=config.num_logical_cpus,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
        )
        config_rules.check_optimizer(config.optimizer, changed=changed)
        config_rules.check_learning_rates(
            config.learning_rate_schedule,
            decay_steps=config.learning_rate_decay_steps,
            changed=changed,
        )
        config_rules.check_penalty(config.penalty, changed=changed)
        config_rules.check_augmentation(
            config.augment,
            target=config.augment_target,
            loss=config.loss,
            losses_with_a_zero=LOSSES_WITH_A_ZERO,
            changed=changed,
        )

    def to_json(self) -> str:
        """Returns the config as the text of `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "Config":
        """Returns the config that `to_json` wrote; errors name `source`."""
        return cls(**options.values_from_json(cls, text, source))

    def digest(self) -> str:
        """Returns 16 hex digits that stand for what decides the weights.

        Defaults do not count, so that a field which is added later, and whose
        default is what was done before, fits the checkpoints of older runs.
        """
        changed = options.changed_values(Config, _fixed_values(self))
        text = json.dumps(changed, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: Config, new: Config) -> list[str]:
    """Returns "name: old -> new" for what differs and decides the weights."""
    new_values = _fixed_values(new)
    return [
        f"{name}: {value} -> {new_values[name]}"
        for name, value in _fixed_values(old).items()
        if value != new_values[name]
    ]


def _split_address(workdir: str) -> tuple[str, str] | None:
    """Splits gs://bucket/prefix; None for anything else."""
    match = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]{2,})(/.*)?", workdir)
    if match is None:
        return None
    return match[1], (match[2] or "").strip("/")


def _in_order(augment: str) -> str:
    """Lists augmentations in the order in which they are made."""
    names = augment.split(",")
    return ",".join(n for n in ("none", *AUGMENTATIONS) if n in names)


def _fixed_values(config: Config) -> dict[str, Any]:
    resolved = config.resolve()
    return {
        field.name: getattr(resolved, field.name)
        for field, option in options.fields(Config)
        if option.changes_result
    }
