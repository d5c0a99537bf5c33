"""A file of questions in, a line with an answer for each of them out, in order.

    questions   0 1 2 3 4 5 6 7 | 8 9 ...       windows of consecutive questions
    lengths     9 2 8 2 3 9 - 2                 of prompts; - cannot be read
    batches     [0 5 2] [4 1 3] [7 7 7]         longest first, of one size, the last one filled up

Which questions share a batch follows from the file alone, and so does every bit of an answer: in
another batch it may differ by rounding. A window's lines are kept when they are done
(`evaluate.parts`), so a run that is killed goes on with the next window, to the same file. Hosts
take every n-th window each and never wait for one another.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
import tqdm

import latentomni_jax
from data_pipeline.trajectories import DataProblem, Trajectory, read_jsonl
from latentomni_jax.evaluate.answers import (
    HOUSE,
    Read,
    Style,
    View,
    prompt_of,
    read_part,
    score,
)
from latentomni_jax.evaluate.clips import Clips, FeatureStore, readers
from latentomni_jax.evaluate.parts import Parts
from latentomni_jax.layout import InputError, Part
from latentomni_jax.model import Generation, LatentOmni
from latentomni_jax.weights.checkpoint import TEXT_FILES
from latentomni_jax.weights.specs import MANIFEST, PARAMS

Question = Trajectory | DataProblem  # one of them for each line of a file
_ENDS = 1 << 16  # bytes at both ends of a file of weights by which it is known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions are asked.

    Attributes:
      root: what their paths are relative to.
      view: what the model is given of a clip, see `answers.answer_all`.
      batch: questions at a time. window: batches to a window, whose clips are in memory together.
      longest: tokens that a prompt may have; a question with more gets no answer.
      seed: of the draws, where there is a temperature.
      options: of `LatentOmni.generate`, over those of `style`.
      style: how they are asked, and answers found.
      needs_sound: a prompt without audio tokens is an error.
      features: where those of clips are kept; None keeps them for a window.
      tell: what else the line of a question holds.
    """

    root: Path
    view: View = "both"
    batch: int = 16
    window: int = 4
    longest: int | None = None
    seed: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    style: Style = HOUSE
    needs_sound: bool = False
    features: FeatureStore | None = None
    tell: Callable[[Trajectory], Mapping[str, Any]] = lambda question: {}

    def __post_init__(self):
        if self.view not in get_args(View):
            raise InputError(f"view must be {', '.join(get_args(View))}, got {self.view!r}")
        longest = 1 if self.longest is None else self.longest
        if min(self.batch, self.window, longest) < 1 or self.seed < 0:
            raise InputError(
                "expected at least one question a batch, one batch a window and one token a "
                f"prompt, and no negative seed; got {self.batch}, {self.window}, {self.longest} "
                f"and {self.seed}"
            )


def read_questions(path: Path) -> list[Question]:
    """The questions of a file in order; a problem stands where a line is no question.

    Raises:
      InputError: no such file, or nothing in it.
    """
    trajectories, problems = read_jsonl(path)
    questions = sorted([*trajectories, *problems], key=line_of)
    if not questions:
        raise InputError(f"{path}: is empty; expected questions as JSON lines")
    return questions


def line_of(question: Question) -> int:
    """The line of its file that a question stands in, from 1."""
    return int(question.where.rpartition(":")[2])


def windows_of(questions: Sequence[Question], asking: Asking) -> list[Sequence[Question]]:
    """Consecutive questions, as many to a window as `asking` says."""
    size = asking.batch * asking.window
    return [questions[start : start + size] for start in range(0, len(questions), size)]


def generate(
    model: LatentOmni,
    windows: Sequence[Sequence[Question]],
    asking: Asking,
    parts: Parts,
    mine: Sequence[int],
    *,
    stop: Callable[[int], bool] = lambda window: False,
    progress: bool = True,
    cost: Counter[str] | None = None,
) -> bool:
    """Answers the windows that are not done. The clips of the next are read meanwhile.

    Args:
      windows: of all questions. mine: those that this process answers.
      stop: asked after each window, whether to end.
      progress: show a bar on stderr.
      cost: to which are added questions, text_tokens, latent_steps, prompt_tokens, and seconds:
        encode_s, prefill_s, decode_s.

    Returns:
      Whether all of `mine` are done; False where `stop` ended it.

    Raises:
      InputError: unusable options, or a batch that does not divide over the model's mesh.
    """
    todo = [window for window in mine if not parts.is_done(window)]
    total = sum(len(windows[window]) for window in mine)
    done = total - sum(len(windows[window]) for window in todo)
    pool = readers()
    bar = tqdm.tqdm(
        total=total, initial=done, unit="question", file=sys.stderr, disable=not progress
    )
    try:
        ahead = _read_clips(model, windows[todo[0]], asking, pool) if todo else None
        for place, window in enumerate(todo):
            read, ahead = ahead, None
            if place + 1 < len(todo):
                ahead = _read_clips(model, windows[todo[place + 1]], asking, pool)
            parts.write(window, answer_window(model, windows[window], asking, read, cost))
            bar.update(len(windows[window]))
            if ahead is not None and stop(window):
                return False
        return True
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        bar.close()


def answer_window(
    model: LatentOmni,
    questions: Sequence[Question],
    asking: Asking,
    read: Read | None = None,
    cost: Counter[str] | None = None,
) -> list[dict[str, Any]]:
    """A line for each question, in order.

    A line has `line` (of the file) and `id`, and either `error`, or

        text            what the model said        answer     the letter, or an open answer
        rule            what found the answer      expected   the right one
        right           whether it is
        finished        not cut off by the limit   tokens     generated, latent slots among them
        latent_blocks, latent_steps                prompt_tokens   {"text", "video", "audio"}

    Args:
      read: see `answers.prompt_of`; default reads every clip when it is asked for.
      cost: see `generate`.
    """
    read = read or functools.partial(read_part, model, clock=asking.style.clock)
    lines: dict[int, dict[str, Any]] = {}
    asked: dict[int, _Asked] = {}
    for place, question in enumerate(questions):
        lines[place] = {"line": line_of(question), "id": question.id}
        if isinstance(question, DataProblem):
            lines[place]["error"] = f"{question.reason}: {question.detail}"
            continue
        lines[place] |= asking.tell(question)
        try:
            prompt = prompt_of(
                model, question, asking.root, view=asking.view, style=asking.style, read=read
            )
            counts = model.prompt_tokens(prompt, asking.style.clock)
            if asking.needs_sound and not counts["audio"]:
                raise InputError(
                    f"{question.path}: no audio tokens in the prompt of a question about sound"
                )
            if asking.longest and sum(counts.values()) > asking.longest:
                raise InputError(
                    f"the prompt has {sum(counts.values())} tokens, more than {asking.longest}"
                )
        except InputError as error:
            lines[place]["error"] = " ".join(str(error).split())
            continue
        asked[place] = _Asked(question, prompt, counts)
    lengths = {place: sum(one.counts.values()) for place, one in asked.items()}
    for places in batches(lengths, asking.batch):
        rows, seconds = [asked[place] for place in places], {}
        generations = model.generate(
            [row.prompt for row in rows],
            seeds=[seed_of(asking.seed, row.question.id) for row in rows],
            clock=asking.style.clock,
            timings=None if cost is None else seconds,
            **{**asking.style.options, **asking.options},
        )
        for place, row, generation in zip(places, rows, generations, strict=True):
            lines[place] |= _answered(model, row, generation, asking.style)
        if cost is not None:
            cost.update(seconds)
    if cost is not None:
        said = [line for line in lines.values() if "error" not in line]
        cost["questions"] += len(lines)
        cost["latent_steps"] += sum(line["latent_steps"] for line in said)
        cost["text_tokens"] += sum(line["tokens"] - line["latent_steps"] for line in said)
        cost["prompt_tokens"] += sum(sum(line["prompt_tokens"].values()) for line in said)
    return [lines[place] for place in range(len(questions))]


class _Asked(NamedTuple):
    """A question that a model can be asked, and how many tokens of each kind that is."""

    question: Trajectory
    prompt: list[Part]
    counts: dict[str, int]


def batches(lengths: dict[int, int], size: int) -> Iterator[list[int]]:
    """Places of prompts of these lengths in batches of one size, longest first.

    Neighbours then need the same bucket, and what fills the last batch is short.
    """
    order = sorted(lengths, key=lambda place: (-lengths[place], place))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        yield places + places[-1:] * (size - len(places))  # one shape, one program


def _answered(
    model: LatentOmni, row: _Asked, generation: Generation, style: Style
) -> dict[str, Any]:
    scored = score(row.question, generation, style)
    return {
        "text": generation.text,
        "answer": scored.given,
        "rule": scored.rule,
        "expected": scored.expected,
        "right": None if scored.expected is None else scored.is_right,
        "finished": generation.finished,
        "latent_blocks": len(generation.latents),
        "latent_steps": int(np.sum(generation.token_ids == model.latent.pad_id)),
        "tokens": len(generation.token_ids),
        "prompt_tokens": row.counts,
    }


def seed_of(seed: int, id: str) -> int:
    """A question's own: the same wherever it stands, and however many others there are."""
    text = f"{seed} {id}".encode("utf-8", "surrogatepass")  # JSON has half surrogate pairs
    return int.from_bytes(hashlib.sha256(text).digest()[:4])


# ---------------------------------------------------------------------------- clips


def _read_clips(model: LatentOmni, questions: Sequence[Question], asking: Asking, pool) -> Clips:
    """Begins to read the clips of questions."""
    wanted = [
        (asking.root / str(question.path), question.kind)
        for question in questions
        if isinstance(question, Trajectory) and question.kind and asking.view != "question"
    ]
    return Clips(model, wanted, pool, clock=asking.style.clock, store=asking.features)


# ---------------------------------------------------------------------------- identity


def identity(data: Path, directory: Path, asking: Asking, **more: Any) -> dict[str, Any]:
    """All that the answers depend on, see `Parts`; `more` is what only the caller knows."""
    how = {field.name: getattr(asking, field.name) for field in dataclasses.fields(asking)}
    for name in ("style", "features", "tell"):  # not what an answer depends on, or told by `more`
        del how[name]
    return {
        "data": str(data),
        "questions": hashlib.sha256(data.read_bytes()).hexdigest()[:16],
        "media_root": str(how.pop("root")),
        "model": digest_of_model(directory),
        "device": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
        "latentomni_jax": latentomni_jax.__version__,
        **asking.style.options,
        **how.pop("options"),
        **how,
        **more,
    }


def digest_of_model(directory: Path) -> str:
    """Tells one model directory from another, wherever it is.

    By its text files and, of the files of weights, name, size and both ends: another training of
    the same model differs everywhere, and 18 GB are not read for it.
    """
    patterns = (MANIFEST, "config.json", *TEXT_FILES, f"{PARAMS}/**/*", "*.safetensors*")
    found = sorted(
        {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    )
    digest = hashlib.sha256()
    for path in found:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    return digest.hexdigest()[:16]
