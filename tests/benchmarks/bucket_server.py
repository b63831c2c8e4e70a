"""The tests' Cloud Storage in a process of its own, as slow as a network.

  python -m tests.benchmarks.bucket_server LATENCY_SECS

prints its address and serves a bucket named "bucket" until stdin ends.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from tests.fake_gcs import FakeGcs


@contextlib.contextmanager
def start(latency_secs: float) -> Iterator[str]:
    """Yields the address of a server that waits before each answer."""
    command = [sys.executable, "-m", __name__, str(latency_secs)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def main() -> None:
    """Serves until nobody is left who wants it."""
    with FakeGcs() as fake:
        fake.latency_secs = float(sys.argv[1])
        fake.objects.add_bucket("bucket")
        print(fake.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
