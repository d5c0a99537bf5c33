"""The `latentomni` command: a verb names a module of `latentomni_jax.commands`, nothing else.

Such a module has `add_arguments(parser)` and `run(args) -> int`. Only the verb's own is imported,
so that help and mistakes answer at once, without waiting for JAX.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from latentomni_jax import __version__

VERBS = {
    "answer": "ask a question about a video, a recording or a picture",
    "inspect": "show what the model would receive for a question, without running it",
    "generate": "answer a file of questions, on one machine or many, losing none",
    "eval": "score a model on a benchmark: Daily-Omni, WorldSense, Video-MME and others",
    "port": "turn a Hugging Face checkpoint into a model directory",
    "export": "write a model directory as Hugging Face safetensors",
    "data": "make a feature cache of training data, a tiny training set, or AV-Events",
    "train": "train LatentOmni from a checkpoint or from nothing",
    "aot": "compile a config's programs for a TPU topology: memory, traffic, verdict",
    "attention": "answer a question, and show where the model looked",
    "probe": "change a model's latents and see what becomes of its answers",
    "report": "write one page about runs of eval, to look at and to look inside",
    "app": "ask about clips of your own, in a browser on this machine",
    "doctor": "check this machine: versions, devices, codecs",
}
HELP = """\
usage: latentomni VERB [options]

LatentOmni in JAX: answers questions about video and sound, reasoning partly in latent states.

verbs:
{verbs}

examples:
  latentomni doctor
  latentomni port --from qwen7b --to models/qwen7b
  latentomni answer --model models/qwen7b --video clip.mp4 --question "What is said first?"

Each verb explains itself: latentomni answer --help. Version: latentomni --version.
""".format(verbs="\n".join(f"  {verb:<10}{purpose}" for verb, purpose in VERBS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit code: 0, 2 for unusable input, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(HELP, end="", file=sys.stderr)
        return 2
    verb, *rest = argv
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if verb == "--version":
        print(f"latentomni_jax {__version__}")
        return 0
    if verb not in VERBS:
        known = ", ".join(VERBS)
        print(f"latentomni: error: no verb {verb!r}; there are {known}", file=sys.stderr)
        return 2
    return _run(verb, rest)


def _run(verb: str, argv: Sequence[str]) -> int:
    from latentomni_jax.layout import InputError

    command = importlib.import_module(f"latentomni_jax.commands.{verb}")
    name = f"latentomni {verb}"
    parser = argparse.ArgumentParser(
        prog=name, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        # One line each, as errors are. The place in our code would not help a user.
        warnings.showwarning = lambda message, *_, **__: print(
            f"{name}: warning: {message}", file=sys.stderr
        )
        try:
            code = command.run(args)
            sys.stdout.flush()
            return code
        except InputError as error:
            print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # `latentomni inspect ... | head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


if __name__ == "__main__":
    sys.exit(main())
