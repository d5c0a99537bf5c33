"""PyAV, tamed: what every reader of media files shares.

PyAV brings its own FFmpeg. Files are untrusted: whatever is wrong with one ends in an `InputError`
of one line, and no file can make the reader open another.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import av.container
import av.error
import av.stream

from latentomni_jax.layout import InputError

# FFmpeg "plays" these, but they are text, or lists of other files, which we do not follow.
_NOT_MEDIA = {"tty", "hls", "dash", "concat", "concatf", "imf", "sdp", "rtsp", "webm_dash_manifest"}
# Metadata that is no UTF-8 opens too: PyAV 19 does so unasked, and before it has to be asked.
_OPEN = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a container; whatever goes wrong inside becomes an InputError naming the file."""
    try:
        # "file:" and the whitelist: a name with a colon is no protocol, a playlist opens nothing.
        options = {"protocol_whitelist": "file"}
        with av.open(f"file:{path}", options=options, **_OPEN) as container:
            if container.format.name in _NOT_MEDIA:
                raise InputError(f"{path}: is not a media file; expected video, sound or an image")
            yield container
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputError(f"{path}: {error}") from error
    except (av.error.FFmpegError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error)}); expected a complete video, sound or "
            "image file; check that it plays, or re-encode it"
        ) from error


def packets_of(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator:
    """The packets of streams, in the file's order; a file cut short just ends."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        yield packet


def decode(
    path: Path,
    container: av.container.InputContainer,
    stream: av.stream.Stream,
    before: Callable[[av.Packet], None] = lambda packet: None,
) -> Iterator:
    """The frames of a stream; damaged packets are passed over, with one warning.

    `before` is called with each packet before it is decoded.
    """
    damaged = False
    for packet in packets_of(container, stream):
        before(packet)
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if not damaged:
                time = float((packet.pts or 0) * stream.time_base)
                message = f"{path}: {stream.type} is damaged near {time:.1f} s, the rest is used"
                warnings.warn(f"{message} ({one_line(error)})", stacklevel=3)
            damaged = True
            continue
        yield from frames


def existing_file(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory; expected a video, sound or image file")
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a video, sound or image file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty; copy or download it again")
    return path


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
