"""Causal probes: what a trained model's latents do for its answers (docs/method.md 9).

A probe answers the same questions again with the latents changed, and everything else as it was:

```
own          the model's own states                zeros, noise   of the same norm
other        another clip's, see `donors`           permuted       slots of a block in another order
markers      no slots, trigger and stop alone      off            no blocks at all
K = n        n slots at inference, whatever the model was trained with
```

If answers survive all of that, latents are decoration. Each probe is compared with "own" question
by question (exact McNemar test).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.answers import Scored, answer_all
from latentomni_jax.evaluate.scores import mcnemar
from latentomni_jax.layout import InputError, LatentSpec
from latentomni_jax.model import LatentOmni

Edit = Callable[[Sequence[Scored], np.random.Generator], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Probe:
    """How the questions were answered under one change.

    Attributes:
      right, asked, well_formed: counts of questions. blocks: latent blocks per answer.
      gained, lost: questions that only this probe, only "own" has right. p_value: two-sided, that
        the two are equally good.
    """

    name: str
    right: int
    asked: int
    well_formed: int
    blocks: float
    gained: int = 0
    lost: int = 0
    p_value: float = 1.0

    @classmethod
    def of(cls, name: str, answers: Sequence[Scored], own: Sequence[Scored]) -> Probe:
        gained = sum(a.is_right and not b.is_right for a, b in zip(answers, own, strict=True))
        lost = sum(b.is_right and not a.is_right for a, b in zip(answers, own, strict=True))
        return cls(
            name,
            sum(a.is_right for a in answers),
            len(answers),
            sum(a.well_formed for a in answers),
            sum(len(a.generation.latents) for a in answers) / max(len(answers), 1),
            gained,
            lost,
            mcnemar(gained, lost),
        )


def run_probes(
    model: LatentOmni,
    questions: Sequence[Trajectory],
    root: Path,
    *,
    slot_counts: Sequence[int] = (),
    batch: int = 32,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[Probe, list[Scored]]]:
    """Runs every probe, "own" first.

    Args:
      root: what the questions' paths are relative to.
      slot_counts: values of K to try, split into visual and audio as the model's own.
      batch: questions at a time. seed: of noise and permutations.
      options: of `LatentOmni.generate`.

    Raises:
      InputError: no questions, or an unreadable clip.
    """
    if not questions:
        raise InputError("probes need at least one question")
    options = {"max_new_tokens": 64} | options

    def ask(asked: LatentOmni, **more) -> list[Scored]:
        return list(answer_all(asked, questions, root, batch=batch, **options | more))

    own = ask(model)
    yield Probe.of("own", own, own), own
    for name, edit in EDITS.items():
        answers = ask(model, given=edit(own, np.random.default_rng(seed)))
        yield Probe.of(name, answers, own), answers
    answers = ask(model.with_latent(num_visual=0, num_audio=0))
    yield Probe.of("markers", answers, own), answers
    answers = ask(model, latents="off")
    yield Probe.of("off", answers, own), answers
    for count in slot_counts:
        if count and count != model.latent.num_latents:
            answers = ask(model.with_latent(**split(model.latent, count)))
            yield Probe.of(f"K = {count}", answers, own), answers


def split(spec: LatentSpec, count: int) -> dict[str, int]:
    """K slots shared out between the modalities as a spec shares out its own."""
    visual = round(count * spec.num_visual / max(spec.num_latents, 1))
    return {"num_visual": visual, "num_audio": count - visual}


def donors(own: Sequence[Scored]) -> list[int]:
    """For every answer the one that lends it its states: about another clip, if there is any; of
    these one to a question of the same type with as many blocks, so that nothing but the clip
    differs; else one with as many blocks. The search begins half of the set away."""
    count, found = len(own), []
    for i, mine in enumerate(own):
        ring = [(i + count // 2 + k) % count for k in range(count)]
        others = [j for j in ring if own[j].question.path != mine.question.path] or ring[:1]

        def likeness(j, mine=mine):
            same = len(own[j].generation.latents) == len(mine.generation.latents)
            return same and own[j].type == mine.type, same

        found.append(max(others, key=likeness))
    return found


def _states(own):
    return [answer.generation.latents for answer in own]


def _zeros(own, rng):
    return [np.zeros_like(one) for one in _states(own)]


def _noise(own, rng):
    out = []
    for one in _states(own):
        noise = rng.normal(size=one.shape)
        norm = np.linalg.norm(one, axis=-1, keepdims=True)
        out.append(noise / np.linalg.norm(noise, axis=-1, keepdims=True) * norm)
    return out


def _other(own, rng):
    return [own[j].generation.latents for j in donors(own)]


def _permuted(own, rng):
    return [one[:, rng.permutation(one.shape[1])] for one in _states(own)]


EDITS: dict[str, Edit] = {"zeros": _zeros, "noise": _noise, "other": _other, "permuted": _permuted}
