"""TEI, HTML and PDF: sections, and what is dropped by kind; hostile files are refused in one line."""

# ruff: noqa: E501
from __future__ import annotations

from pathlib import Path

import pytest

from quasitile.errors import InputError
from quasitile.reading.discover import read_file
from quasitile.reading.documents.html import MAX_DEPTH

TEI = """<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><fileDesc><titleStmt><title>Lithium garnets</title></titleStmt>
<publicationStmt><availability><licence target="https://x/by/4.0">CC BY</licence></availability></publicationStmt></fileDesc>
<profileDesc><abstract><div><p>We study garnets.</p></div></abstract></profileDesc></teiHeader>
<text><body>
<div><head n="1.">Introduction</head><p>Garnets conduct <ref type="bibr" target="#b0">[1]</ref> ions at 10<hi
rend="superscript">-4</hi> S.</p></div>
<div><head n="2.1">Synthesis</head><p>The pel- lets and pellets were sintered.</p><formula>a = b</formula></div>
<figure><head>Figure 1</head><figDesc>A picture of it.</figDesc></figure></body>
<back><div type="acknowledgement"><p>Thanks.</p></div><div type="references"><listBibl><biblStruct>Nobody</biblStruct></listBibl>
</div><div type="annex"><head>Appendix A</head><p>More text.</p></div></back></text></TEI>"""

HTML = """<!doctype html><html><head><title>Journal | Garnets</title><meta name="citation_title" content="Lithium garnets">
<link rel="license" href="https://x/by/4.0"><script>alert(1)</script></head><body><nav>Home | About</nav><article>
<h1>Lithium garnets</h1><h2>Introduction</h2><p>Li<sub>7</sub>La<sub>3</sub> conducts 10<sup>-4</sup> S<sup><a href="#ref-1">1</a></sup>.</p>
<ul><li>First item.</li><li>Second item.</li></ul><figure><img src="http://x/y.png"><figcaption>Caption.</figcaption></figure>
<h3>Theory</h3><p>We have <math><mfrac><mi>a</mi><mi>b</mi></mfrac></math> here &amp; there.</p><table><tr><td>1</td></tr></table>
<h2>References</h2><ol><li>Nobody</li></ol></article><footer>Imprint</footer></body></html>"""


def read_one(folder: Path, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return next(iter(read_file(path)))


def outline(document):
    return [(section.title, section.level, section.text) for section in document.sections]


def test_tei(tmp_path):
    document = read_one(tmp_path, "paper.xml", TEI)
    assert (document.format, document.title, document.licence) == ("tei", "Lithium garnets", "https://x/by/4.0")
    assert outline(document) == [
        ("Abstract", 1, "We study garnets."),
        ("Introduction", 1, "Garnets conduct ions at 10^-4 S."),
        ("Synthesis", 2, "The pellets and pellets were sintered.\n\na = b"),
        ("Appendix A", 1, "More text."),
    ]
    assert document.dropped_characters == {"citations": 3, "captions": 24, "back matter": 7, "references": 6}


def test_html(tmp_path):
    document = read_one(tmp_path, "paper.html", HTML)
    assert (document.title, document.licence) == ("Lithium garnets", "https://x/by/4.0")
    assert outline(document) == [
        ("Introduction", 1, "Li7La3 conducts 10^-4 S.\n\nFirst item.\n\nSecond item."),
        ("Theory", 2, "We have (a)/(b) here & there."),
    ]
    assert document.dropped_characters == {"navigation": 19, "citations": 1, "captions": 8, "tables": 1, "references": 6}


def pdf(*lines: tuple[float, float, str], bold: bool = True) -> bytes:
    """A page with lines at given heights and sizes; sizes above ten are set in bold."""
    drawn = "".join(
        f"BT /{'F2' if size > 10 and bold else 'F1'} {size} Tf 50 {y} Td ({text}) Tj ET\n" for y, size, text in lines
    )
    fonts = "/F1 << /Type /Font /Subtype /Type1 /BaseFont /Times >> /F2 << /Type /Font /Subtype /Type1 /BaseFont /Times-Bold >>"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /Font << {fonts} >> >> >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}endstream",
    ]
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    return f"{body}xref\n0 5\n0000000000 65535 f \n{table}trailer << /Size 5 /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF".encode()


def test_pdf(tmp_path):
    pytest.importorskip("pypdf")
    document = read_one(
        tmp_path,
        "paper.pdf",
        pdf(
            (760, 20, "Lithium garnets"),
            (700, 14, "1 Introduction"),
            (680, 10, "A garnet is a mineral with three ca-"),
            (668, 10, "tions. The anode is a metal and cations move."),
            (650, 10, "Figure 1. A picture."),
            (600, 12, "1.1 Methods"),
            (580, 10, "The pellets were sintered in air."),
            (500, 14, "References"),
            (480, 10, "[1] Nobody."),
            (20, 10, "17"),
        ),
    )
    assert document.title == "Lithium garnets"
    assert outline(document) == [
        ("Introduction", 1, "A garnet is a mineral with three cations. The anode is a metal and cations move."),
        ("Methods", 2, "The pellets were sintered in air."),
    ]
    assert document.dropped_characters == {"page headers": 2, "captions": 20, "references": 11}


LAUGHS = '<!DOCTYPE lolz [<!ENTITY l0 "lol">' + "".join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10)
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.xml", "<article>" + "<sec>" * 10_000 + "</sec>" * 10_000 + "</article>", "not well-formed"),
        ("deep.html", "<body>" + "<div>" * 10_000 + "text", "nested|no running text"),
        ("less.html", "<body>" + "<div>" * (MAX_DEPTH + 5) + "text", "nested|no running text"),
        ("null.html", "<p>a\0b</p>", "binary data"),
        ("empty.html", "<p> </p>", "no running text"),
        ("deep.jsonl", "[" * 100_000, "not valid JSON"),
        ("broken.pdf", b"%PDF-1.4 nothing", "cannot be read as PDF"),
        ("empty.pdf", pdf(), "no text layer"),
        ("latin.txt", "Käse".encode("latin-1"), "not utf-8"),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path, name, content, message):
    if name.endswith(".pdf"):
        pytest.importorskip("pypdf")
    with pytest.raises(InputError, match=message) as error:
        read_one(tmp_path, name, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["laughs.xml", "laughs.html"])
def test_entities_are_not_expanded(tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("password")
    text = f'{LAUGHS}<!ENTITY x SYSTEM "file://{secret}">]><article><body><p>Text &l9; and &x; here.</p></body></article>'
    try:
        document = read_one(tmp_path, name, text)
    except InputError:
        return
    kept = "".join(section.text for section in document.sections)
    assert "password" not in kept
    assert len(kept) < 1000


def test_a_paper_of_many_megabytes_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("quasitile.reading.documents.document.MAX_FILE_BYTES", 1000)
    with pytest.raises(InputError, match="of one paper"):
        read_one(tmp_path, "line.txt", "x" * 1001)
