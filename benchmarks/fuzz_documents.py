"""Fuzzed documents over all formats: nothing but a document or one line of refusal may come out.

    python benchmarks/fuzz_documents.py [--number 10000] [--seed 0] [--formats .xml .html ...] [--huge]

Seeds are small papers of every format; a document is one of them with bytes changed, cut, doubled, spliced with another
or filled with hostile pieces. `--huge` adds a single line of 200 MB in each format. Prints counts, the slowest document and the
peak memory; exit status 1 where anything else than a refusal was raised, a document took over 20 s, or the network was tried.
"""

# ruff: noqa: E501
from __future__ import annotations

import argparse
import random
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from quasitile.errors import InputError
from quasitile.reading.discover import read_file
from quasitile.reading.documents import READERS
from quasitile.reading.sections import shape_sections

MAX_SECONDS = 20
LAUGHS = '<!DOCTYPE x [<!ENTITY l0 "ha">' + "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 9)) + "]>"
HOSTILE = [
    b"\0", b"\xff\xfe", b"\xc3", b"<sec>" * 10_000, b"<div>" * 10_000, b"{" * 10_000, b"[" * 10_000, b"$" * 999, b"\\frac{" * 999,
    b"> " * 10_000, b"- " * 5000, b"`" * 5000, b"*" * 5000, b"\\input{main}", b"\\newcommand{\\a}{\\a\\a}\\a", b"&l8;", LAUGHS.encode(),
    b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>&e;', b'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">', b"9" * 5000,
    b"<xi:include href='http://127.0.0.1:9/'/>", b"<![CDATA[", b"<!--", "é".encode("latin-1"), "é".encode("utf-16"), b"a" * 100_000,
    b"(" * 5000, b"1 \xc2\xb0C to " * 500, b"\n" * 10_000, b"% " * 3000, b":::{note}\n" * 300, b"\\begin{abstract}" * 300,
]  # fmt: skip
TEXT = "The pellets were sintered at 1100 °C for 12 h in air. A garnet (LLZO) is a mineral that contains three cations."
SEEDS = {
    ".xml": f"<article><front><article-meta><title-group><article-title>T</article-title></title-group><abstract><p>{TEXT}</p></abstract>"
    f"</article-meta></front><body><sec sec-type='intro'><title>1. A</title><p>{TEXT} <xref ref-type='bibr'>1</xref></p></sec></body></article>",
    ".tei": f"<TEI xmlns='http://www.tei-c.org/ns/1.0'><text><body><div><head n='1.'>A</head><p>{TEXT}</p></div></body></text></TEI>",
    ".html": f"<html><body><article><h1>T</h1><h2>A</h2><p>{TEXT}</p><math><mfrac><mi>a</mi><mi>b</mi></mfrac></math></article></body></html>",
    ".md": f"# T\n\n## A\n\n{TEXT} $a^2$\n\n| a |\n|---|\n| 1 |\n\n:::{{note}}\n{TEXT}\n:::\n",
    ".tex": rf"\documentclass{{article}}\newcommand{{\x}}[1]{{#1}}\begin{{document}}\section{{A}} \x{{{TEXT}}} $a^2$ \cite{{b}}\end{{document}}",
    ".txt": f"T\n\nIntroduction\n\n{TEXT}\n\n2 Methods\n\n{TEXT}\n",
    ".jsonl": '{"doc_id": "a", "title": "T", "sections": [{"title": "A", "text": "' + TEXT + '"}]}\n',
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", default=[*SEEDS, ".pdf"])
    parser.add_argument("--huge", action="store_true")
    options = parser.parse_args()
    faults = fuzz(options.number, options.seed, options.formats, options.huge)
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def fuzz(number: int, seed: int, formats: list[str], huge: bool = False) -> list[str]:
    """Read `number` documents; what went wrong, one line each."""
    generator, outcomes, faults, slowest = random.Random(seed), Counter(), [], (0.0, "")
    tried: list[str] = []

    def refuse(*address: object, **named: object) -> None:
        tried.append(str(address))
        raise OSError("no network here")

    connect, socket.socket.connect = socket.socket.connect, refuse
    try:
        with tempfile.TemporaryDirectory() as folder:
            for index in range(number + (len(formats) if huge else 0)):
                suffix = formats[index % len(formats)]
                path = Path(folder, f"main{suffix}")
                if index >= number:
                    with path.open("wb") as out:
                        for _ in range(200):
                            out.write(b"word " * 200_000)
                else:
                    path.write_bytes(mutated(generator, suffix))
                started = time.perf_counter()
                try:
                    for document in read_file(path):
                        shape_sections(document.sections, 250, 1500)
                    outcomes[f"{suffix} read"] += 1
                except InputError as error:
                    outcomes[f"{suffix} refused"] += 1
                    if "\n" in str(error):
                        faults.append(f"{index} {suffix}: a refusal of several lines")
                except Exception as error:
                    faults.append(f"{index} {suffix}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
                    keep = Path(tempfile.gettempdir(), f"fuzz-{seed}-{index}{suffix}")
                    keep.write_bytes(path.read_bytes())
                seconds = time.perf_counter() - started
                slowest = max(slowest, (seconds, f"{index} {suffix}"))
                if seconds > MAX_SECONDS:
                    faults.append(f"{index} {suffix}: {seconds:.0f} s")
    finally:
        socket.socket.connect = connect
    faults += [f"tried the network: {address}" for address in tried]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{sum(outcomes.values())} of {number} read or refused: {dict(sorted(outcomes.items()))}")
    print(f"slowest {slowest[0]:.2f} s ({slowest[1]}), peak memory {peak:.2f} GB, {len(faults)} faults")
    return faults


def mutated(generator: random.Random, suffix: str) -> bytes:
    """A seed with a few things done to it."""
    data = bytearray(SEEDS[suffix].encode() if suffix in SEEDS else minimal_pdf())
    for _ in range(generator.randint(1, 6)):
        place = generator.randint(0, len(data))
        act = generator.randrange(6)
        if act == 0 and data:
            data[place % len(data)] = generator.randrange(256)
        elif act == 1:
            del data[place : place + generator.randint(1, 60)]
        elif act == 2:
            data[place:place] = data[place : place + 200] * generator.randint(1, 20)
        elif act == 3:
            data[place:place] = generator.choice(HOSTILE)
        elif act == 4:
            other = generator.choice(list(SEEDS.values())).encode()
            start = generator.randint(0, len(other))
            data[place:place] = other[start : start + 200]
        else:
            data[place:place] = bytes(generator.randrange(256) for _ in range(generator.randint(1, 40)))
    return bytes(data)


def minimal_pdf() -> bytes:
    """One page with two lines."""
    drawn = "BT /F1 14 Tf 50 700 Td (1 Introduction) Tj ET\nBT /F1 10 Tf 50 680 Td (A garnet is a mineral.) Tj ET\n"
    objects = (
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /Font << /F1 << /Type /Font "
        "/Subtype /Type1 /BaseFont /Times-Roman >> >> >> >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}endstream",
    )
    text, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(text))
        text += f"{number} 0 obj\n{content}\nendobj\n"
    entries = "".join(f"{place:010} 00000 n \n" for place in places)
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{entries}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
    return f"{text}{table}startxref\n{len(text)}\n%%EOF\n".encode()


assert set(SEEDS) <= set(READERS)

if __name__ == "__main__":
    sys.exit(main())
