"""Text becomes token ids: tokenizers and the three latent tokens.

The latent tokens of the paper are added here and nowhere else; on Qwen2.5's vocabulary they get the
ids 151665, 151666 and 151667 of the released checkpoints.

Text of users is data. `encode` understands special tokens, because a rendered chat needs them, so
user text goes through `strip_special` before it is put into a message; the callers that accept
user text (processor, data pipeline) do that.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from latentomni_jax.layout import InputError
from latentomni_jax.media.chat import Template, load_template

LATENT_TOKENS = ("<Unified_Latent_pad>", "<Unified_Latent>", "</Unified_Latent>")
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MEDIA_TOKENS = (
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)
_EOS_TOKENS = ("<|im_end|>", "<|endoftext|>")


class Tokenizer(Protocol):
    """What `load_tokenizer` returns, whatever the file format.

    Attributes:
      vocab_size: one more than the largest id, latent tokens included.
      special: every string that `encode` turns into one special id.
      template: the chat template that came with the files, or the built-in one.
    """

    vocab_size: int
    special: tuple[str, ...]
    template: Template

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special token strings in it become their single ids."""
        ...

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; special tokens are left out, or spelled out. Unknown ids are skipped."""
        ...

    def id(self, token: str) -> int:
        """The id of a token. Raises InputError where the vocabulary has no such token."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: `<|im_end|>` and `<|endoftext|>`."""
        ...

    def save(self, directory: str | os.PathLike) -> None:
        """Writes what `load_tokenizer` needs: vocabulary (latent tokens included), template."""
        ...


def load_tokenizer(directory: str | os.PathLike) -> Tokenizer:
    """The tokenizer in a directory: `tokenizer.json`, else a sentencepiece `tokenizer.model`.

    Raises:
      InputError: where there is neither, or the file is broken.
    """
    directory = Path(directory)
    kinds = {"tokenizer.json": _HFTokenizer, "tokenizer.model": _SPTokenizer}
    for name, kind in kinds.items():
        path = directory / name
        if path.is_file():
            try:
                return kind(path.read_bytes(), load_template(directory))
            except InputError:
                raise
            except Exception as error:  # both libraries raise bare exceptions
                raise InputError(f"{path}: is not a valid tokenizer file: {error}") from error
    raise InputError(f"{directory}: has no tokenizer; expected {' or '.join(kinds)} in it")


class _Shared:
    """What both tokenizers do alike."""

    template: Template

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return tuple(self.id(token) for token in _EOS_TOKENS)

    def _save(self, directory: str | os.PathLike, name: str, data: bytes):
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
        template = json.dumps({"chat_template": self.template.text}, indent=2)
        (directory / "chat_template.json").write_text(template + "\n", encoding="utf-8")


class _HFTokenizer(_Shared):
    """A `tokenizer.json`, the format of Qwen's checkpoints."""

    def __init__(self, data: bytes, template: Template):
        self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        # Tokens that are already there keep their ids.
        latent = [tokenizers.AddedToken(t, special=True, normalized=False) for t in LATENT_TOKENS]
        self._tokenizer.add_special_tokens(latent)
        self.template = template
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = tuple(token.content for token in added.values())
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(_valid_unicode(text), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise InputError(f"the tokenizer has no token {token!r}")
        return found

    def save(self, directory: str | os.PathLike) -> None:
        self._save(directory, "tokenizer.json", self._tokenizer.to_str(pretty=True).encode())


class _SPTokenizer(_Shared):
    """A sentencepiece `tokenizer.model`; special tokens it lacks follow its vocabulary."""

    def __init__(self, data: bytes, template: Template):
        self._data = data
        self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.template = template
        self.special = CHAT_TOKENS + MEDIA_TOKENS + LATENT_TOKENS
        self._num_pieces = self._model.get_piece_size()
        self._special_ids: dict[str, int] = {}
        self.vocab_size = self._num_pieces
        for token in self.special:
            piece = self._model.piece_to_id(token)
            if self._model.id_to_piece(piece) == token:
                self._special_ids[token] = piece
            else:
                self._special_ids[token] = self.vocab_size
                self.vocab_size += 1
        self._special_strings = {i: token for token, i in self._special_ids.items()}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        # A group in the pattern makes split() keep what it splits at: every second part.
        for part in re.split(f"({_any_of(self.special).pattern})", _valid_unicode(text)):
            if part in self._special_ids:
                ids.append(self._special_ids[part])
            elif part:
                ids.extend(self._model.encode(part))
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        parts: list[str] = []
        run: list[int] = []
        for i in (*map(int, ids), None):
            if i is not None and 0 <= i < self._num_pieces and i not in self._special_strings:
                run.append(i)
                continue
            if i is None or (not skip_special and i in self._special_strings):
                parts += [self._model.decode(run), self._special_strings.get(i, "")]
                run = []
        return "".join(parts)

    def id(self, token: str) -> int:
        if token in self._special_ids:
            return self._special_ids[token]
        piece = self._model.piece_to_id(token)
        if self._model.id_to_piece(piece) != token:
            raise InputError(f"the tokenizer has no token {token!r}")
        return piece

    def save(self, directory: str | os.PathLike) -> None:
        self._save(directory, "tokenizer.model", self._data)


def strip_special(text: str, tokenizer: Tokenizer) -> str:
    """User text without special token strings, so that it cannot pose as the chat's structure.

    Each is replaced by a space: removing it could join what is around it to a new one
    (`<|im_<|im_end|>end|>`).
    """
    return _any_of(tokenizer.special).sub(" ", _valid_unicode(text))


@functools.cache
def _any_of(strings: tuple[str, ...]) -> re.Pattern:
    """Matches any of the strings, the longest first where one begins another."""
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))))


def _valid_unicode(text: str) -> str:
    """Half surrogate pairs, which JSON can smuggle in and no tokenizer accepts, become `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


# ---------------------------------------------------------------------------- from nothing


def train_sentencepiece(
    texts: Iterable[str], directory: str | os.PathLike, vocab_size: int = 512
) -> None:
    """Trains a small lossless tokenizer and writes `directory/tokenizer.model`; deterministic.

    Any text survives encode and decode, unseen characters as bytes. For demos and tests.

    Args:
      texts: what to learn from.
      directory: created where it is missing.
      vocab_size: pieces, at most; at least 257 bytes and unknown, and the characters of the texts.

    Raises:
      InputError: where the texts are too few or `vocab_size` is too small.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{directory}: no tokenizer can be trained: {reason}") from error
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())


class TextStream:
    """Text as it grows; holds back a character whose bytes are not all there yet."""

    def __init__(self, tokenizer: Tokenizer | None):
        self.tokenizer, self.shown = tokenizer, ""

    def push(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids).rstrip("�") if self.tokenizer else ""
        new = text[len(self.shown) :] if text.startswith(self.shown) else ""
        self.shown += new
        return new
