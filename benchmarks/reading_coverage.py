"""What readers keep of real papers, against a count that shares no code with them, and section types against JATS's own.

    python benchmarks/reading_coverage.py DATA      # DATA as in docs/base-model.md: jats/ and lectures/ are read

Of a JATS file the standard library's parser gives the text of abstract, body, back matter and floats; its letters and
digits, as a multiset, must stand in sections, their titles or what is counted as dropped. Of a lecture, the words outside
code, mathematics and markup must.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from quasitile.progress import set_quiet
from quasitile.reading.discover import read_file
from quasitile.reading.documents import Document
from quasitile.reading.sections import declared_type, shape_sections

_CODE = re.compile(r"^(`{3,}|~{3,}|:{3,})[^\n]*\n.*?^\1", re.MULTILINE | re.DOTALL)
_MATHEMATICS = re.compile(r"\$\$.+?\$\$|\$[^$\n]+?\$", re.DOTALL)
_MARKUP = re.compile(r"\{[\w:-]+\}|<[^<>]*>|\]\([^()]*\)|^\(.*\)=$|^---\n.*?^---\n|!\[|&\w+;", re.MULTILINE | re.DOTALL)


def main() -> None:
    set_quiet(True)
    data = Path(sys.argv[1])
    articles = sorted((data / "jats").glob("*.xml"))
    shares = [report(path, letters, source_of_jats) for path in articles]
    print(f"JATS: {len(shares)} files, lowest {min(shares):.4%}, mean {sum(shares) / len(shares):.4%}\n")
    lectures = sorted((data / "lectures").rglob("*.md"))
    shares = [report(path, words, source_of_markdown) for path in lectures]
    print(f"lectures: {len(shares)} files, lowest {min(shares):.4%}, mean {sum(shares) / len(shares):.4%}\n")
    types(articles)


def report(path: Path, units, source) -> float:
    """The share of the source's letters or words that is kept or counted as dropped; prints a line where it is low."""
    document = next(iter(read_file(path)))
    wanted, found = units(source(path)), units(accounted(document))
    share = (wanted & found).total() / max(1, wanted.total())
    if share < 0.995:
        missing = ", ".join(f"{unit!r} x {count}" for unit, count in (wanted - found).most_common(12))
        print(f"{path.name}: {share:.4%}, surplus {(found - wanted).total() / max(1, wanted.total()):.4%}; missing {missing}")
    return share


def accounted(document: Document) -> Iterable[str]:
    """Everything that was kept, and everything that was counted as dropped."""
    yield document.title
    for section in document.sections:
        yield section.title
        yield section.text
    yield from (text for _, text in document.removed)


def source_of_jats(path: Path) -> Iterable[str]:
    """Text of the parts that hold science, by the standard library's parser."""
    root = ElementTree.parse(path).getroot()
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""
    for part in ("front//abstract", "body", "back", "floats-group"):
        for node in root.findall(f".//{part}" if "//" in part else part):
            yield from node.itertext()


def source_of_markdown(path: Path) -> Iterable[str]:
    """Prose of a lecture: no code, mathematics or markup."""
    text = _CODE.sub(" ", path.read_text(encoding="utf-8"))
    yield _MARKUP.sub(" ", _MATHEMATICS.sub(" ", text))


def letters(texts: Iterable[str]) -> Counter[str]:
    return Counter(char for text in texts for char in unicodedata.normalize("NFKC", text) if char.isalnum())


def words(texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in texts for word in re.findall(r"[^\W\d_]{2,}", unicodedata.normalize("NFKC", text)))


def types(articles: list[Path]) -> None:
    """Types by title and position alone, where `sec-type` says what a section is; then what is taken with it."""
    right, wrong = 0, Counter()
    for path in articles:
        root = ElementTree.parse(path).getroot()
        declared = {}
        for node in root.iter("sec"):
            title = " ".join("".join(node.find("title").itertext()).split()) if node.find("title") is not None else ""
            if declared_type(node.get("sec-type", "")):
                declared[title] = declared_type(node.get("sec-type", ""))
        blind = path.read_text(encoding="utf-8")
        blind = re.sub(r'\ssec-type="[^"]*"', "", blind)
        scratch = Path(f"/tmp/{path.stem}-blind.xml")
        scratch.write_text(blind, encoding="utf-8")
        document = next(iter(read_file(scratch)))
        scratch.unlink()
        for section in shape_sections(document.sections, 0, 10**9):
            for title, wanted in declared.items():
                if title and re.sub(r"\W", "", section.title) in re.sub(r"\W", "", title) and section.level == 1:
                    if section.type == wanted:
                        right += 1
                    else:
                        wrong[(title, wanted, section.type)] += 1
                    break
    print(f"section types without sec-type: {right} of {right + wrong.total()} right")
    for (title, wanted, given), count in wrong.most_common():
        print(f"  {title!r} is {wanted}, given {given} ({count})")


if __name__ == "__main__":
    main()
