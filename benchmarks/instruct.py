"""LatentOmni-Instruct against a scripted model server: calls a second, and memory over the run.

    python benchmarks/instruct.py                    2,000 captions of 20 clips

The server (a process of its own) replies after 0.2 s, and 64 calls may be under way: 320 calls a
second at most. Frames and sound are sent as to a model that sees and hears.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_pipeline.av_events.tiny import make_tiny_set
from data_pipeline.instruct import pipeline, replies
from data_pipeline.instruct.settings import Settings

_CLIPS = 20
_UNUSUAL = (5, 9, 13)  # of the tiny set: no sound, sound alone, no clip
_SAMPLES = 10  # of memory, in the table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=2000, help="(%(default)s)")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="(%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args)


def run(folder: Path, args: argparse.Namespace) -> None:
    make_tiny_set(folder / "set", n=32)
    clips = [f"clips/{n:04d}.mp4" for n in range(32) if n % 16 not in _UNUSUAL][:_CLIPS]
    captions = folder / "captions.jsonl"
    with captions.open("w") as lines:
        for n in range(args.captions):
            text = f"Caption {n}: shapes of several colours are seen, and tones are heard. " * 4
            lines.write(json.dumps({"video": clips[n % _CLIPS], "caption": text}) + "\n")
    command = [sys.executable, "-m", "tests.data_pipeline.model_server"]
    command += ["--latency", str(args.latency)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        settings = Settings(url=url, concurrency=args.concurrency, segment_seconds=2.0)
        settings = asyncio.run(replies.resolve_models(settings, {}))
        with Memory() as memory:
            began = time.monotonic()
            outcome = pipeline.run([str(captions)], folder / "set", folder / "out", settings)
            seconds = time.monotonic() - began
    finally:
        server.kill()
    rate = outcome.usage["calls"] / seconds
    calls, most = outcome.usage["calls"], args.concurrency / args.latency
    fates = Counter(entry.fate for entry in pipeline.ended(folder / "out"))
    print(
        f"{args.captions} captions, {calls} calls in {seconds:.1f} s: "
        f"{rate:.0f} calls/s, {100 * rate / most:.0f}% of {most:.0f}; items {dict(fates)}"
    )
    print("memory, MB: " + memory.told())


class Memory:
    """This process's memory (RSS), ten times a second."""

    def __enter__(self):
        self.seen: list[float] = []
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._ended.set()

    def _look(self):
        process = psutil.Process()
        while not self._ended.wait(0.1):
            self.seen.append(process.memory_info().rss / 2**20)

    def told(self) -> str:
        places = [len(self.seen) * n // _SAMPLES for n in range(1, _SAMPLES)]
        by_time = ", ".join(f"{self.seen[i]:.0f}" for i in places)
        return f"{by_time} after each tenth of the run; at most {max(self.seen):.0f}"


if __name__ == "__main__":
    main()
