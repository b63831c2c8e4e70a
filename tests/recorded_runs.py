"""A run directory as training leaves it, made without any training."""

import json
import pathlib

import numpy as np
import PIL.Image

from trainer.config import Config
from trainer.run_directory import RunDirectory
from trainer.storage import files, manifest
from trainer.storage.local import LocalStore

STEPS_PER_EPOCH = 10


def make(root: pathlib.Path, *, epochs: int = 4, **changes) -> RunDirectory:
    """Writes a finished run of `epochs`, with all that a page can show."""
    run = RunDirectory(root)
    config = Config(
        workdir=str(root), epochs=epochs, evaluate_every_epochs=2, **changes
    ).resolve()
    run.samples.mkdir(parents=True)
    run.config.write_text(config.to_json())
    environment = {"devices": "CPU:0", "command": ["python", "-m", "trainer"]}
    run.environment.write_text(json.dumps(environment))
    lines = [_record(step) for step in range(1, epochs * STEPS_PER_EPOCH + 1)]
    lines += [_evaluation(step, 1000.0 / step) for step in (20, 40)]
    write_lines(run.metrics, lines)
    write_lines(run.evaluations, [_evaluation(40, 7.5, seed=1)])
    starts = [(0, 0), (20, 0), (30, 1)]
    write_lines(
        run.starts,
        [{"step": step, "num_rollbacks": number} for step, number in starts],
    )
    for epoch in range(1, epochs + 1):
        write_grid(run.samples / f"epoch_{epoch:04d}.png", epoch)
    write_grid(run.samples / "real.png", 0)
    save(run, config, epochs * STEPS_PER_EPOCH)
    return run


def save(run: RunDirectory, config: Config, step: int) -> None:
    """Commits a checkpoint of a few bytes."""
    store = LocalStore(run.checkpoints)
    staging = store.stage(manifest.checkpoint_name(step), attempt="one")
    (staging / "state.index").write_bytes(b"index")
    host_state = {
        "best_evaluation": {"step": 20, "values": {"frechet_distance": 25.0}},
        "num_bad_images": 3,
        "num_images": 1794,
        "num_rollbacks": 1,
        "steps_per_epoch": STEPS_PER_EPOCH,
    }
    (staging / "host_state.json").write_text(json.dumps(host_state))
    record = files.describe(
        staging, step=step, attempt="one", config_digest=config.digest()
    )
    store.commit(staging, record)


def write_lines(path: pathlib.Path, lines: list[dict]) -> None:
    """Writes one object in each line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_grid(path: pathlib.Path, seed: int) -> None:
    """Writes noise of 20x20 pixels, enlarged three times."""
    pixels = np.random.default_rng(seed).integers(0, 256, [20, 20], np.uint8)
    enlarged = pixels.repeat(3, axis=0).repeat(3, axis=1)
    PIL.Image.fromarray(enlarged).save(path)


def _record(step: int) -> dict:
    return {
        "step": step,
        "epoch": -(-step // STEPS_PER_EPOCH),
        "g_loss": 0.5 + step / 100,
        "d_loss": None if step == 7 else 1.5 - step / 100,
        "images_per_sec": 320.0,
        "data_wait_secs": 0.01,
        "save_secs": 0.0,
        "failed_saves": 0,
        "a_new_metric": step % 3,
    }


def _evaluation(step: int, distance: float, seed: int = 0) -> dict:
    return {
        "step": step,
        "kind": "evaluation",
        "epoch": step // STEPS_PER_EPOCH,
        "features": "classifier-1",
        "features_description": "97% right",
        "split": "digits as trained on",
        "num_fake": 1000,
        "num_real": 1000,
        "num_floor": 500,
        "evaluation_seed": seed,
        "frechet_distance": distance,
        "frechet_distance_floor": 0.3,
    }
