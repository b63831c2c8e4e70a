"""What a batch script starts in the trainer's place: it tells and obeys.

Run as the Python of a job, `fake_trainer.py -m trainer.main FLAG...`, it writes
its environment and arguments to $FAKE_TRAINER/<rank>.json; then it exits with
the code that $FAKE_TRAINER/exit has for its rank or, if there is none, waits
for a signal and exits as the trainer does, after $FAKE_TRAINER/save_secs.
"""

import json
import os
import pathlib
import signal
import sys
import time

directory = pathlib.Path(os.environ["FAKE_TRAINER"])
rank = os.environ["SLURM_PROCID"]


def stop(number, frame):
    """Saves, for a moment, and exits."""
    print(f"rank {rank}: signal {number}", flush=True)
    file = directory / "save_secs"
    time.sleep(float(file.read_text()) if file.exists() else 0.1)
    os._exit(128 + number)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
told = {"arguments": sys.argv[1:], "environ": dict(os.environ)}
(directory / f"{rank}.tmp").write_text(json.dumps(told))
(directory / f"{rank}.tmp").rename(directory / f"{rank}.json")
codes = json.loads((directory / "exit").read_text())
print(f"rank {rank}: here", flush=True)
if rank in codes:
    sys.exit(codes[rank])
while True:
    time.sleep(1)
