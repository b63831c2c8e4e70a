"""One contestant in a process of its own: what runs in that process.

  python -m tests.benchmarks.child MODULE:FUNCTION JSON

calls FUNCTION with the arguments in the JSON object. It returns what runs a
number of steps and comes back when their results are there. After a warm-up the
process answers "ready"; then every number of steps that it reads, a line each,
is a turn, which it answers with its seconds. An exception is answered in a few
words; its traceback goes to stderr. The process ends, even in the middle of a
turn, when there is nobody left to write to it.
"""

import importlib
import json
import os
import queue
import sys
import textwrap
import threading
import time
import traceback

# Traces, compiles, and fills the buffers.
_WARM_UP_STEPS = 3
_MESSAGE_WIDTH = 120


def main() -> None:
    """Answers on stdout until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no answer.
    turns: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=[turns], daemon=True).start()
    try:
        module, _, function = sys.argv[1].partition(":")
        build = getattr(importlib.import_module(module), function)
        run = build(**json.loads(sys.argv[2]))
        run(_WARM_UP_STEPS)
        print(json.dumps({"ready": True}), file=answers)
        while True:
            num_steps = turns.get()
            start_secs = time.monotonic()
            run(num_steps)
            secs = time.monotonic() - start_secs
            print(json.dumps({"secs": secs}), file=answers)
    except Exception as error:
        traceback.print_exc()
        message = textwrap.shorten(
            f"{type(error).__name__}: {error}", _MESSAGE_WIDTH
        )
        print(json.dumps({"failed": message}), file=answers)
    # Without the clean-up, which the other thread would block.
    os._exit(1)


def _listen(turns: "queue.SimpleQueue[int]") -> None:
    for line in sys.stdin:
        turns.put(int(line))
    os._exit(0)


if __name__ == "__main__":
    main()
