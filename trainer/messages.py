"""What the log says at the start and at the end of a run."""

from trainer.run_directory import RunDirectory
from trainer.schedule import Schedule


def batch_arithmetic(
    *,
    dataset: str,
    num_examples: int,
    global_batch_size: int,
    batches_per_step: int,
    num_replicas: int,
    schedule: Schedule,
) -> str:
    """Says how the data become batches, steps and epochs."""
    remainder = num_examples % (global_batch_size * batches_per_step)
    left_out = ""
    if remainder:
        left_out = (
            f"; {_count(remainder, 'image')}, others each time, left out of it"
        )
    of_step = ""
    if batches_per_step > 1:
        of_step = f", {batches_per_step} of them a step"
    return (
        f"{dataset}: {_count(num_examples, 'image')}. "
        f"Global batch {global_batch_size} = {_count(num_replicas, 'replica')} "
        f"x {global_batch_size // num_replicas}{of_step}. "
        f"{_count(schedule.steps_per_epoch, 'step')} an epoch{left_out}. "
        f"{_count(schedule.epochs, 'epoch')} = "
        f"{_count(schedule.final_step, 'step')}."
    )


def where_it_stands(
    *, schedule: Schedule, step: int, directory: RunDirectory
) -> str:
    """Says how far the run has come, and where its files are."""
    epoch = schedule.epoch(step)
    if step >= schedule.final_step:
        headline = f"Finished: {_count(epoch, 'epoch')}, {_count(step, 'step')}"
    elif schedule.max_steps is not None and step >= schedule.max_steps:
        headline = (
            f"At step {step}, epoch {epoch}; --max_steps={schedule.max_steps} "
            "ends it here: raise it or leave it out to go on"
        )
    else:
        headline = (
            f"Stopped at step {step}, epoch {epoch}; the same command goes on"
        )
    return (
        f"{headline}.\n"
        f"  report       {directory.report}\n"
        f"  samples      {directory.samples}\n"
        f"  metrics      {directory.metrics}\n"
        f"  TensorBoard  tensorboard --logdir {directory.events}\n"
        f"  checkpoints  {directory.checkpoints}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
