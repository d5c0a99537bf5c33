"""A question and its media become prompt parts: token ids, patches, spectrograms."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from latentomni_jax.layout import (
    AudioPart,
    Clip,
    EncodedPart,
    InputError,
    MediaSpec,
    Part,
    TextPart,
    VisionPart,
)
from latentomni_jax.media.audio import log_mel
from latentomni_jax.media.chat import chat_prompt
from latentomni_jax.media.patches import patchify, pixel_patches
from latentomni_jax.media.text import Tokenizer, strip_special

# What chat templates write for one media item; the tokens inside are laid out later.
_PLACEHOLDERS = {
    "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
    "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
}
_PLACEHOLDER = re.compile("|".join(re.escape(text) for text in _PLACEHOLDERS.values()))
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def clip_part(
    clip: Clip, spec: MediaSpec, *, nominal_clock: bool = False, pixels: bool = False
) -> VisionPart | AudioPart:
    """The encoders' view of a clip.

    Args:
      nominal_clock: date the temporal patches by the sampling rate, as the reference does, and
        not by the frames' own timestamps.
      pixels: patches u8 as the pixels are, a quarter of the memory, instead of f32 normalised.

    Raises:
      InputError: the clip holds neither pictures nor sound.
    """
    mel = None if clip.audio is None else log_mel(clip.audio, spec)
    if clip.frames is None:
        if mel is None:
            raise InputError("a clip without pictures and without sound: nothing to show the model")
        return AudioPart(mel)
    patches, grid = (pixel_patches if pixels else patchify)(clip.frames, spec)
    if clip.is_image or nominal_clock:
        seconds = np.arange(grid[0], dtype=np.float32) * (spec.temporal_patch_size / spec.fps)
    else:
        seconds = clip.frame_times[:: spec.temporal_patch_size].astype(np.float32)
    return VisionPart(patches, grid, seconds, mel, clip.is_image)


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question as it is asked: options listed with letters, and the letter asked for."""
    if not choices:
        return question
    listed = "\n".join(f"{LETTERS[i]}. {text}" for i, text in enumerate(choices))
    return f"{question}\n{listed}\nGive the letter of the right option in \\boxed{{}}."


def build_prompt(
    tokenizer: Tokenizer,
    question: str,
    media: Sequence[VisionPart | AudioPart | EncodedPart] = (),
    *,
    system: str | None = None,
    choices: Sequence[str] = (),
    text_first: bool = False,
) -> list[Part]:
    """The chat up to the assistant's turn: media first, then the question.

    Args:
      question: user text; special token strings in it are blanked (it is data, not structure).
      media: from `clip_part`, or encoded, in order.
      system: system turn; None leaves it to the checkpoint's template.
      choices: option texts, see `with_choices`.
      text_first: the question before the media.

    Raises:
      InputError: the template does not place every media item exactly once.
    """
    question = with_choices(question, choices)
    kinds = [part.kind for part in media]
    content = [{"type": kind} for kind in kinds]
    told = {"type": "text", "text": strip_special(question, tokenizer)}
    content.insert(0 if text_first else len(content), told)
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": strip_special(system, tokenizer)})
    rendered = chat_prompt(messages, tokenizer.template)
    found = _PLACEHOLDER.findall(rendered)
    if found != [_PLACEHOLDERS[kind] for kind in kinds]:
        raise InputError(
            f"{tokenizer.template.source}: the chat template wrote {len(found)} media placeholders "
            f"for {len(kinds)} items ({', '.join(kinds) or 'text only'})"
        )
    parts: list[Part] = []
    remaining = list(media)
    for text in re.split(f"({_PLACEHOLDER.pattern})", rendered):
        if _PLACEHOLDER.fullmatch(text):
            parts.append(remaining.pop(0))
        elif text:
            parts.append(TextPart(np.array(tokenizer.encode(text), np.int32)))
    return parts
