"""LaTeX before it is read: files put together, comments and definitions taken out."""

from __future__ import annotations

import re
from pathlib import Path

from quasitile.errors import InputError
from quasitile.reading.documents.document import Document, read_text

MAX_EXPANSION = 4_000_000  # characters; beyond it a definition is taken for a trap
_INPUT = re.compile(r"\\(?:input|include|subfile)\s*(?:\{([^{}]+)\}|([\w./-]+))")
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*(?:\n[ \t]*(?!\n))?")
_VERBATIM = re.compile(
    r"\\begin\{(verbatim\*?|lstlisting|minted|comment|filecontents\*?|tikzpicture)\}.*?\\end\{\1\}", re.DOTALL
)
_DEFINITION = re.compile(
    r"\\(?:re)?(?:newcommand|providecommand)\*?\s*\{?\\([A-Za-z]+)\}?\s*(?:\[(\d)\])?(?:\[([^\]]*)\])?\s*(?=\{)"
)


def load_source(path: Path, document: Document) -> str:
    """Read a main file with everything it inputs; comments and verbatim text are gone and counted.

    Raises:
        InputError: An input is missing, lies outside the folder, or includes itself; or a
            definition expands without end.
    """
    return _expand(_load(path, path.parent.resolve(), (), document), path)


def included_files(path: Path) -> set[Path]:
    """Files that `path` inputs directly, so that parts of a paper are not read as papers."""
    try:
        source = _COMMENT.sub(r"\1", read_text(path))
    except InputError:
        return set()
    return {_resolve(match[1] or match[2], path.parent.resolve()) for match in _INPUT.finditer(source)}


def _resolve(name: str, folder: Path) -> Path:
    name = name.strip()
    return (folder / (name if Path(name).suffix == ".tex" else f"{name}.tex")).resolve()


def _load(path: Path, folder: Path, chain: tuple[Path, ...], document: Document) -> str:
    source = read_text(path)

    def verbatim(match: re.Match[str]) -> str:
        document.drop("code", match[0])
        return "\n\n"

    source = _VERBATIM.sub(verbatim, source)
    for match in _COMMENT.finditer(source):
        document.drop("comments", match[0].lstrip("\\"))
    source = _COMMENT.sub(r"\1", source)

    def include(match: re.Match[str]) -> str:
        target = _resolve(match[1] or match[2], folder)
        if not target.is_relative_to(folder):
            raise InputError(f"{path} inputs {match[1] or match[2]}, outside its folder; copy it beside the paper")
        if target in chain or target == path.resolve():
            raise InputError(f"{path} inputs {match[1] or match[2]}, which inputs it in turn; break the circle")
        if not target.is_file():
            raise InputError(f"{path} inputs {match[1] or match[2]}, which is missing; put it beside the paper")
        return "\n" + _load(target, folder, (*chain, path.resolve()), document) + "\n"

    return _INPUT.sub(include, source)


def _expand(source: str, path: Path) -> str:
    r"""Expand what `\newcommand` defines, up to four levels deep."""
    definitions: dict[str, tuple[int, str | None, str]] = {}
    parts, start = [], 0
    for match in _DEFINITION.finditer(source):
        if match.start() < start:
            continue
        body, stop = read_group(source, match.end())
        definitions[match[1]] = (int(match[2] or 0), match[3], body)
        parts.append(source[start : match.start()])
        start = stop
    source = "".join([*parts, source[start:]])
    for _ in range(4 if definitions else 0):
        source, num_expanded = _expand_once(source, definitions, path)
        if not num_expanded:
            break
    return source


def _expand_once(source: str, definitions: dict[str, tuple[int, str | None, str]], path: Path) -> tuple[str, int]:
    use = re.compile(r"\\(" + "|".join(sorted(map(re.escape, definitions), key=len, reverse=True)) + r")(?![A-Za-z])")
    parts, start, size, num_expanded = [], 0, 0, 0
    for match in use.finditer(source):
        if match.start() < start:
            continue
        num_arguments, default, body = definitions[match[1]]
        stop = match.end()
        for number in range(1, num_arguments + 1):
            if number == 1 and default is not None and source[stop : stop + 1] != "[":
                argument = default
            else:
                argument, stop = read_group(source, stop, "[" if number == 1 and default is not None else "{")
            body = body.replace(f"#{number}", argument)
        parts += [source[start : match.start()], body]
        start, num_expanded = stop, num_expanded + 1
        size += len(body)
        if size > MAX_EXPANSION:
            raise InputError(rf"{path} defines \{match[1]}, which expands without end; remove the definition")
    return "".join([*parts, source[start:]]), num_expanded


def read_group(source: str, position: int, opening: str = "{") -> tuple[str, int]:
    """The argument at `position` and the position after it: a balanced group, or one character."""
    while position < len(source) and source[position].isspace():
        position += 1
    if source[position : position + 1] != opening:
        return source[position : position + 1], position + 1
    closing, depth = {"{": "}", "[": "]"}[opening], 0
    for index in range(position, len(source)):
        char = source[index]
        escaped = index > 0 and source[index - 1] == "\\" and source[index - 2 : index - 1] != "\\"
        if escaped or char not in (opening, closing):
            continue
        depth += 1 if char == opening else -1
        if depth == 0:
            return source[position + 1 : index], index + 1
    return source[position + 1 :], len(source)
