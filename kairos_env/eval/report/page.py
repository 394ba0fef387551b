"""Results as one HTML page, made by the template beside this file. Films are beside the page, all else is in it."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kairos_env.eval.report.chart import HEIGHT, WIDTH, Chart
from kairos_env.eval.report.text import format_table
from kairos_env.eval.statistics import Interval
from kairos_env.runs import describe_machine

Cell = str | Mapping[str, Any]
"""A cell of a table: text, or what `bar` and `heat` give."""


@dataclass(frozen=True)
class Figure:
    """A captioned picture, and the film of which it is a strip.

    Args:
        caption: text.
        picture: as a ``data:`` address, see `data_address`.
        video: address of an mp4, relative to the page; "" for none.
    """

    caption: str
    picture: str
    video: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, then whatever it has of a table, charts, notes and figures.

    Args:
        title: text; "" for none.
        level: of the heading, 2 or 3.
        header: of the table.
        lines: of the table.
        bold: numbers of lines that stand out.
        notes: paragraphs.
        figures: pictures.
        charts: curves, beside each other.
        page_only: left out of texts.
    """

    title: str = ""
    level: int = 3
    header: Sequence[str] = ()
    lines: Sequence[Sequence[Cell]] = ()
    bold: Sequence[int] = ()
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    charts: Sequence[Chart] = ()
    page_only: bool = False


def render_page(title: str, sections: Sequence[Section], note: str = "") -> str:
    """The page, with a note under its title."""
    return _template().render(title=title, sections=sections, note=note, width=WIDTH, height=HEIGHT)


def text_of(sections: Sequence[Section]) -> str:
    """The same as aligned text, without pictures."""
    parts = []
    for section in sections:
        if section.page_only:
            continue
        if section.level == 2:
            parts.append(section.title)
        if section.lines:
            columns = [i for i, name in enumerate(section.header) if isinstance(section.lines[0][i], str)]
            header = [section.header[i] for i in columns]
            parts.append(format_table(header, [[str(line[i]) for i in columns] for line in section.lines]))
        parts.append("\n".join(section.notes))
    return "\n\n".join(filter(None, parts))


def html_page(
    title: str,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    pictures: Mapping[str, bytes] | None = None,
    notes: Sequence[str] = (),
    videos: Mapping[str, str] | None = None,
) -> str:
    """One page that says on which machine it was made.

    Args:
        title: of the page.
        tables: caption -> (header, lines).
        pictures: caption -> PNG.
        notes: paragraphs below the tables.
        videos: caption of a picture -> address of its film, relative to the page.
    """
    sections = [Section(caption, 2, header=header, lines=lines) for caption, (header, lines) in tables.items()]
    films = videos or {}
    figures = [
        Figure(caption, data_address(png, "png"), films.get(caption, "")) for caption, png in (pictures or {}).items()
    ]
    return render_page(title, [*sections, Section(notes=notes, figures=figures)], machine_note(describe_machine()))


def machine_note(machine: Mapping[str, Any]) -> str:
    """What `describe_machine` found, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['time']} · {machine['processor']}, {machine['cores']} cores · {versions}"
    return f"{where} · commit {machine['commit'][:12]}" if machine["commit"] else where


def bar(rate: Interval) -> Cell:
    """A rate on a line from 0 to 1, with its interval."""
    return {"bar": rate, "text": rate.format(1, 100)}


def heat(share: float, text: str, note: str) -> Cell:
    """A text on a ground that is the darker, the larger a share (0 ... 1) is, and a small note."""
    return {"heat": (round(255 - 150 * share), round(255 - 75 * share)), "text": text, "note": note}


def data_address(picture: bytes, kind: str) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def small_jpeg(png: bytes, width: int = 900) -> bytes:
    """A picture as a JPEG of at most this width: a page holds dozens of them."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        picture = image.convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@functools.cache
def _template() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("kairos_env.eval.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2")
