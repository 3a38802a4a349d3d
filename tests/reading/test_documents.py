"""Every reader on small papers, good and nasty."""

from __future__ import annotations

from pathlib import Path

import pytest

from quasitile.errors import InputError
from quasitile.reading.documents import READERS

JATS = """<?xml version="1.0"?>
<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>
<title-group><article-title>A gap of CH<sub>3</sub>NH<sub>3</sub>PbI<sub>3</sub></article-title></title-group>
<permissions><license xlink:href="http://example.org/by/4.0"><license-p>Open.</license-p></license></permissions>
<abstract><p>The gap is 1.55&#160;eV.</p></abstract><abstract abstract-type="graphical"><p>Picture.</p></abstract>
</article-meta></front><body>
<sec sec-type="intro"><title>1. Introduction</title>
<p>Light matters <xref ref-type="bibr">1</xref>, they say [<xref ref-type="bibr">2</xref>].
Films<sup><xref ref-type="bibr">3</xref>,<xref ref-type="bibr">4</xref></sup> are thin.</p></sec>
<sec><title>Methods</title><sec><title>Films</title><p>Spun at 10<sup>3</sup> cm<sup>&#8722;2</sup>.</p>
<fig><caption><p>A caption.</p></caption></fig><table-wrap><table><tr><td>7</td></tr></table></table-wrap>
<disp-formula><mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mfrac><mml:mi>a</mml:mi><mml:mi>b</mml:mi></mml:mfrac></mml:math>
</disp-formula></sec></sec></body>
<back><ack><p>Thanks.</p></ack><ref-list><ref><mixed-citation>Someone</mixed-citation></ref></ref-list></back></article>"""

LATEX = r"""\documentclass{article}
\newcommand{\tin}{SnO$_2$}
\title{Oxides: \emph{a} study}
\begin{document}
\maketitle
\begin{abstract} We study \tin{} films. % not this
\end{abstract}
\section{Synthesis}\label{s}
Powder was heated at \SI{1200}{\degreeCelsius} for \qty{5}{\hour} \cite{a,b}.
It holds \ce{La_{0.6}Sr_{0.4}CoO3} at 5\% of $10^{-6}$~S\,cm$^{-1}$.
\subsection{Data}
\input{part}
\begin{equation} \sigma = \frac{a}{b} \end{equation}
\begin{table} 1 & 2 \end{table}
\begin{thebibliography}{9} \bibitem{a} Someone. \end{thebibliography}
\end{document}
"""

MARKDOWN = """---
title: A *title*
license: MIT
---
# Heading one

Text with **bold**, $x_{1}^2$ and [a link](http://x.y).

```python
code = 1
```

## Part A

:::{note}
Keep $\\alpha$ this.
:::

| a | b |
|---|---|
| 1 | 2 |

```{figure} x.png
Caption
```

- One item
- Another [@smith2020]

## References

Gone.
"""


def read_one(folder: Path, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return next(iter(READERS[path.suffix](path)))


def test_jats(tmp_path):
    document = read_one(tmp_path, "a.xml", JATS)
    assert document.title == "A gap of CH3NH3PbI3"
    assert document.licence == "http://example.org/by/4.0"
    assert [(section.title, section.level, section.type, section.text) for section in document.sections] == [
        ("Abstract", 1, "abstract", "The gap is 1.55 eV."),
        ("1. Introduction", 1, "intro", "Light matters, they say. Films are thin."),
        ("Methods", 1, "", ""),
        ("Films", 2, "", "Spun at 10^3 cm^-2.\n\n(a)/(b)"),
    ]
    assert document.dropped_characters == {
        "extra abstracts": 8, "citations": 4, "captions": 10, "tables": 1, "back matter": 7, "references": 7,
    }  # fmt: skip
    assert document.num_characters == document.kept_characters + 37


def test_latex(tmp_path):
    (tmp_path / "part.tex").write_text("From a file, 100\\,nm \\& more.")
    document = read_one(tmp_path, "a.tex", LATEX)
    assert document.title == "Oxides: a study"
    assert [(section.title, section.level, section.text) for section in document.sections] == [
        ("Abstract", 1, "We study SnO2 films."),
        ("Synthesis", 1, "Powder was heated at 1200 °C for 5 h. It holds La0.6Sr0.4CoO3 at 5% of 10^-6 S cm^-1."),
        ("Data", 2, "From a file, 100 nm & more.\n\nσ = (a)/(b)"),
    ]
    assert set(document.dropped_characters) == {"citations", "comments", "tables", "references"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\SI{1.5}{\watt\per\metre\per\kelvin}", "1.5 W m^-1 K^-1"),
        (r"\qty{3e-4}{\siemens\per\centi\metre}", "3 × 10^-4 S cm^-1"),
        (r"\SIrange{10}{20}{\nano\metre}", "10-20 nm"),
        (r"\qty{4000}{\metre\squared\per\gram}", "4000 m^2 g^-1"),
        (r"\qty{5}{\milli\ampere\per\square\centi\metre}", "5 mA cm^-2"),
        (r"\qty{25}{\percent}", "25%"),
        (r"\ce{Na+} and \ce{CO3^{2-}}", "Na^+ and CO3^2-"),
        (r"Schr\"odinger, caf\'e, \r{A}ngstr\o m", "Schrödinger, café, Ångstrøm"),
        (r"``quoted'' \textit{text}\footnote{gone} 50~\%", '"quoted" text 50 %'),
        (r"a \% b % comment", "a % b"),
        (r"\begin{itemize}\item One \item Two\end{itemize}", "One\n\nTwo"),
        (r"Bi$_2$Te$_3$ at 10\textsuperscript{-3} mbar", "Bi2Te3 at 10^-3 mbar"),
    ],
)
def test_latex_commands(tmp_path, source, expected):
    assert read_one(tmp_path, "a.tex", source).sections[0].text == expected


def test_markdown(tmp_path):
    document = read_one(tmp_path, "a.md", MARKDOWN)
    assert (document.title, document.licence) == ("A *title*", "MIT")
    assert [(section.title, section.text) for section in document.sections] == [
        ("Heading one", "Text with bold, x1^2 and a link."),
        ("Part A", "Keep α this.\n\nOne item\n\nAnother"),
    ]
    assert set(document.dropped_characters) == {"front matter", "code", "tables", "media", "citations", "references"}


def test_plain_text(tmp_path):
    text = "A title\n\nAbstract\n\nWe ef-\nficiency."
    text += "\n\n2.1 Deep things\n\nMore efficiency.\n\nRESULTS ARE IN\n\nYes.\n\nReferences\n\nNo."
    document = read_one(tmp_path, "a.txt", text)
    assert document.title == "A title"
    assert [(section.title, section.level, section.text) for section in document.sections] == [
        ("Abstract", 1, "We efficiency."),
        ("Deep things", 2, "More efficiency."),
        ("Results are in", 1, "Yes."),
    ]
    assert document.dropped_characters == {"references": 3}


def test_sectioned_rows(tmp_path):
    rows = '{"doc_id": "m/1", "title": "T", "license": "BY", "kind": "lecture", '
    rows += '"sections": [{"title": "2. A", "text": "An ef- ficiency."}]}\n'
    document = read_one(tmp_path, "a.jsonl", rows * 2)
    assert (document.name, document.kind, document.licence, document.sections[0].text) == (
        "m/1",
        "lecture",
        "BY",
        "An efficiency.",
    )


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize(
    "content", [b"", b" \n\n", b"\xff\xfa\x00broken", b"caf\xe9 au lait"], ids=["empty", "blank", "binary", "latin-1"]
)
def test_unreadable_files_are_refused_in_one_line(tmp_path, suffix, content):
    with pytest.raises(InputError) as error:
        read_one(tmp_path, f"bad{suffix}", content)
    assert f"bad{suffix}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", "<article><body><p>cut", "not well-formed"),
        ("a.xml", "<poem><body>x</body></poem>", "root <poem>"),
        ("a.xml", "<article><body/></article>", "no running text"),
        ("a.tex", r"\section{A} \input{missing}", "missing"),
        ("a.tex", r"\input{../../etc/passwd}", "outside its folder"),
        ("a.tex", r"\input{a}", "circle"),
        ("a.tex", r"\newcommand{\x}{\x\x\x\x\x\x\x\x}" + r"\x" * 100_000 + "text", "without end"),
        ("a.tex", r"\begin{document}\end{document}", "no running text"),
        ("a.md", "# Only a title", "no running text"),
        ("a.jsonl", "{", "a.jsonl:1 is not valid JSON"),
        ("a.jsonl", '{"title": "x"}', 'no "sections"'),
        ("a.jsonl", '{"sections": [{"title": "x"}]}', 'without "text"'),
    ],
)
def test_bad_content_is_named(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_one(tmp_path, name, content)


def test_external_entities_are_not_read(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET")
    xml = f'<!DOCTYPE article [<!ENTITY x SYSTEM "{secret.as_uri()}">]><article><body><p>A &x; b.</p></body></article>'
    document = read_one(tmp_path, "a.xml", xml)
    assert document.sections[0].text == "A b."
    assert document.dropped_characters == {"entities": 3}


def test_a_billion_laughs_are_refused(tmp_path):
    lines = ['<!ENTITY a0 "ha">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))]
    xml = f"<!DOCTYPE article [{''.join(lines)}]><article><body><p>A &a11; b.</p></body></article>"
    with pytest.raises(InputError, match="amplification"):
        read_one(tmp_path, "a.xml", xml)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tex", "\\textsuperscript{" * 3000 + "a" + "}" * 3000),
        ("a.tex", "$" * 3001 + "text"),
        ("a.tex", "{" * 5000 + "text"),
        ("a.md", "[" * 1500 + "text"),
        ("a.md", "$a " * 1500 + "text"),
        ("a.txt", "1 A\n\n" * 2000 + "text"),
    ],
)
def test_traps_end_soon(tmp_path, name, content):
    assert read_one(tmp_path, name, content).sections[-1].text
