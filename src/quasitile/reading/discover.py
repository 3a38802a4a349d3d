"""Which files under a folder are papers, and reading them all with the broken ones named."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from quasitile.errors import InputError
from quasitile.progress import say, track
from quasitile.reading.documents import READERS, Document
from quasitile.reading.documents.document import MAX_TEXT_CHARACTERS
from quasitile.reading.documents.latex_source import included_files
from quasitile.reading.questions.curated import CURATED_FILES
from quasitile.reading.spool import Spool

NOT_PAPERS = frozenset((*CURATED_FILES, "properties.jsonl", "general.jsonl", "entities.conll", "split.json"))
NOT_PAPER_STEMS = ("readme", "license", "licence", "copying", "changelog", "notice")
# Formats of papers without a reader: named as skipped rather than passed over.
UNREAD_SUFFIXES = {
    suffix: "convert it to JATS XML, TEI, HTML, LaTeX, Markdown, text or PDF"
    for suffix in (".docx", ".doc", ".odt", ".epub", ".rtf")
}


def find_papers(papers: Path) -> list[Path]:
    """List the paper files of a folder and those below it in the order of their paths, or the one file given.

    Raises:
        InputError: Nothing is there, or nothing that a reader takes.
    """
    if not papers.exists():
        raise InputError(f"{papers} does not exist; give a folder of papers or one file")
    known = ", ".join(READERS)
    if papers.is_file():
        if papers.suffix.lower() not in READERS:
            raise InputError(f"{papers} has no reader; give one of {known}")
        return [papers]
    found = [path for path in sorted(papers.rglob("*")) if path.is_file() and _is_paper(path.relative_to(papers))]
    parts = {part for path in found if path.suffix.lower() == ".tex" for part in included_files(path)}
    found = [path for path in found if path.resolve() not in parts]
    if not any(path.suffix.lower() in READERS for path in found):
        raise InputError(f"{papers} holds no paper; put files with one of the endings {known} there")
    return found


def _is_paper(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    named = path.name in NOT_PAPERS or path.stem.lower().startswith(NOT_PAPER_STEMS)
    return not hidden and not named and path.suffix.lower() in {**READERS, **UNREAD_SUFFIXES}


def read_documents(papers: Path, kind: str = "", files: tuple[str, ...] = ()) -> tuple[Spool, list[dict[str, str]]]:
    """Read every paper; what cannot be read is skipped, with the reason in one line.

    Args:
        papers: A folder or a file.
        kind: Keep only documents of this kind; empty keeps all.
        files: Keep only files that match one of these patterns; empty keeps all.

    Returns:
        Documents with names that are unique and paths relative to `papers`, and the skipped files.

    Raises:
        InputError: No document can be read.
    """
    root = papers if papers.is_dir() else papers.parent
    wanted_paths = [path for path in find_papers(papers) if not files or matches(path.relative_to(root).as_posix(), files)]
    documents, skipped = Spool(), []
    for path in track(wanted_paths, "reading papers"):
        relative, mark = path.relative_to(root).as_posix(), documents.mark()
        try:
            for document in read_file(path):
                document.path = relative
                if not kind or document.kind == kind:
                    documents.add(document)
        except (InputError, OSError) as error:
            documents.cut(mark)
            reason = " ".join(str(error).split()).replace(str(path), relative)
            skipped.append({"path": relative, "reason": reason})
            say(f"  skipped {reason}")
    if not documents:
        documents.close()
        wanted = f" of kind {kind!r}" if kind else ""
        first = f" (first: {skipped[0]['reason']})" if skipped else ""
        raise InputError(f"{papers} holds no readable document{wanted}; {len(skipped)} files were skipped{first}")
    return documents, skipped


def read_file(path: Path) -> Iterator[Document]:
    """The documents of one file.

    Raises:
        InputError: It has no reader, cannot be read, is nested too deeply or holds more text than any paper.
    """
    suffix = path.suffix.lower()
    if suffix in UNREAD_SUFFIXES:
        raise InputError(f"{path} is {suffix}, which has no reader; {UNREAD_SUFFIXES[suffix]}")
    try:
        for document in READERS[suffix](path):
            if document.kept_characters > MAX_TEXT_CHARACTERS:
                raise InputError(f"{path} holds more than {MAX_TEXT_CHARACTERS} characters in one document; split it")
            yield document
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply; simplify or remove it") from error


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path inside the folder of papers matches one of the patterns."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)
