"""What every reader returns: a titled tree of sections, flattened, and an account of what was left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from quasitile.errors import InputError

MAX_FILE_BYTES = 50_000_000
MAX_TEXT_CHARACTERS = 8_000_000  # of one document: longer than any book


@dataclass(frozen=True)
class Section:
    """One section in normalised text; `level` is 1 for a chapter of the document, 2 below it, ..."""

    title: str
    level: int
    type: str
    text: str
    path: tuple[str, ...] = ()  # titles of the sections above


@dataclass
class Document:
    """One paper as read.

    `dropped_characters` counts, by kind, text of the source that stands in no section, so that
    `num_characters` is what the source's body holds. `removed` is that text itself, by kind, for
    whoever checks the count.
    """

    name: str
    path: str
    format: str
    title: str
    licence: str = ""
    kind: str = "article"
    sections: list[Section] = field(default_factory=list)
    dropped_characters: dict[str, int] = field(default_factory=dict)
    removed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def kept_characters(self) -> int:
        """Characters that stand in sections."""
        return sum(len(section.text) for section in self.sections)

    @property
    def num_characters(self) -> int:
        """Characters of the body: kept and dropped."""
        return self.kept_characters + sum(self.dropped_characters.values())

    def drop(self, kind: str, text: str) -> None:
        """Count `text` as left out, white space runs as one character."""
        size = len(" ".join(text.split()))
        if size:
            self.dropped_characters[kind] = self.dropped_characters.get(kind, 0) + size
            self.removed.append((kind, text))


def with_text(document: Document) -> list[Document]:
    """The one document of a file.

    Raises:
        InputError: None of its sections holds text.
    """
    if not any(section.text for section in document.sections):
        raise InputError(f"{document.path} has no running text; give the whole paper, or remove it")
    return [document]


def check_size(path: Path) -> None:
    """Refuse a file that no paper fills.

    Raises:
        InputError: It is larger than `MAX_FILE_BYTES`.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InputError(
            f"{path} holds {size / 1e6:.0f} MB, more than the {MAX_FILE_BYTES / 1e6:.0f} MB of one paper; split or remove it"
        )


def read_text(path: Path) -> str:
    """Read a file as UTF-8 (a byte order mark is allowed) or, with its mark, UTF-16.

    Raises:
        InputError: The file is empty, too large or in another encoding.
    """
    check_size(path)
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {encoding.removesuffix('-sig')} (byte {error.start}); save it as UTF-8") from error
    if not text.strip():
        raise InputError(f"{path} is empty; remove it or fill it")
    if "\0" in text:
        raise InputError(f"{path} holds binary data; give it the suffix of its format")
    return text.replace("\r\n", "\n").replace("\r", "\n")
