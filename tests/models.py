"""A small random model with a tokenizer of its own, for tests that need one on disk."""

import dataclasses
from pathlib import Path

import jax

from latentomni_jax.backbone.thinker import init_params
from latentomni_jax.layout import MediaSpec
from latentomni_jax.media.text import train_sentencepiece
from latentomni_jax.train.start import model_for
from latentomni_jax.weights.checkpoint import save_model

TEXT = """
A red disc, a green square and a blue triangle move across the screen, one after the other.
Each shape has a tone of its own: the disc is low, the square is higher, the triangle highest.
Which shape is on the screen when the tone changes? What is heard while the square is seen?
First the disc moves from left to right, then the square, and in the end the triangle.
The answer is the triangle. The sound fades within a second and starts again with the next shape.
Question, answer, video, audio, picture, sound, second, before, after, left, right, high, low.
You are a helpful assistant. system user assistant
"""


def make_model(directory: Path, seed: int = 0, *, is_trained: bool = False) -> None:
    """Writes the model to `directory`; replaces what is there.

    Args:
      is_trained: whether it says that it has learned its latents.
    """
    tokenizer_dir = directory.with_name(directory.name + "-tokenizer")
    train_sentencepiece(TEXT.strip().splitlines(), tokenizer_dir, vocab_size=400)
    config, latent = model_for(tokenizer_dir)
    latent = dataclasses.replace(latent, is_trained=is_trained)
    params = init_params(config, jax.random.key(seed))
    save_model(params, config, latent, MediaSpec(), tokenizer_dir, directory, overwrite=True)
