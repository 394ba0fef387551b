"""Many episodes in few mp4 files, whose frame k lies at k / fps exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from kairos_env.records import Array

# Every second frame is a keyframe: training reads frames at random. No frame refers to a later one, which would
# shift all times.
KEYFRAMES = 2


@dataclass(frozen=True)
class Coding:
    """H.264 settings: chroma subsampling and quality (0 is lossless, 51 the worst)."""

    pixels: str
    crf: int


@dataclass(frozen=True)
class Span:
    """Location of an episode: the file's number and seconds on its own clock."""

    file: int
    begin: float
    end: float


FilePath = Callable[[int], Path]


class FilmWriter:
    """Writes episodes of one camera one after the other, into a next file where one gets too large.

    Args:
        path: of the numbered file; its folder is created.
        fps: frames per second.
        coding: see `Coding`.
        most_bytes: a file that has reached them takes no further episode.
        most_seconds: a file takes no episode that would end later.
    """

    def __init__(self, path: FilePath, fps: int, coding: Coding, most_bytes: int, most_seconds: float) -> None:
        self._path_of, self._fps, self._coding = path, fps, coding
        self._most_bytes, self._most_seconds = most_bytes, most_seconds
        self._number = self._frames = self._bytes = 0
        self._container: Any = None

    def add(self, pixels: Array) -> Span:
        """Appends the frames of an episode, uint8 (T, H, W, 3); the first becomes a keyframe.

        Raises:
            OSError: they could not be written.
        """
        full = self._bytes >= self._most_bytes or (self._frames + len(pixels)) / self._fps > self._most_seconds
        if self._container is not None and full:
            self.close()
            self._number += 1
        with self._blamed():
            if self._container is None:
                self._open(*pixels.shape[1:3])
            begin = self._frames
            for image in pixels:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = self._frames, Fraction(1, self._fps)
                if self._frames == begin:
                    frame.pict_type = av.video.frame.PictureType.I
                self._mux(frame)
                self._frames += 1
        return Span(self._number, begin / self._fps, self._frames / self._fps)

    def close(self) -> None:
        """Ends the last file and checks that it holds every frame, because a full disk is not always reported.

        Raises:
            OSError: it could not be written.
        """
        if self._container is None:
            return
        with self._blamed():
            self._mux(None)
            self._container.close()
            self._container = None
            with av.open(str(self._path)) as written:
                found = sum(packet.size > 0 for packet in written.demux(video=0))
        if found != self._frames:
            raise OSError(f"{self._path} holds {found} of {self._frames} frames; is the disk full?")

    def abandon(self) -> None:
        """Frees the file, which is then of no use."""
        if self._container is not None:
            with suppress(OSError, av.FFmpegError):
                self._container.close()

    @property
    def _path(self) -> Path:
        return self._path_of(self._number)

    def _open(self, height: int, width: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._frames = self._bytes = 0
        self._container = av.open(str(self._path), "w", options={"movflags": "faststart"})
        options = {"crf": str(self._coding.crf), "g": str(KEYFRAMES), "bf": "0"}
        # Any: the stub's union of stream types cannot be narrowed by a codec's name
        stream: Any = self._container.add_stream("libx264", rate=self._fps, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, self._coding.pixels
        context = stream.codec_context
        context.time_base = Fraction(1, self._fps)
        context.thread_count = 1  # the same bytes on every machine
        # What the conversion from RGB does, said aloud: players guess otherwise, some by the height of the picture.
        context.colorspace = av.video.reformatter.Colorspace.ITU601
        context.color_range = av.video.reformatter.ColorRange.MPEG

    def _mux(self, frame: Any) -> None:
        for packet in self._container.streams.video[0].encode(frame):
            self._bytes += packet.size
            self._container.mux(packet)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise OSError(f"cannot write {self._path}: {error}") from None
