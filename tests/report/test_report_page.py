"""The page tells exactly what the files say, and nothing from a paper can harm it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest
from lxml import html as lxml_html

from quasitile.errors import InputError
from quasitile.folders import read_json
from quasitile.report import report
from quasitile.report.formats import DASH, pick
from quasitile.report.measures import GROUPS

HOSTILE = "<script>alert(1)</script>\"'></style><img src=x onerror=alert(1)>&\x00\u202e]]>"
VOID = {"meta", "br", "input", "img", "link", "hr"}


def page_of(run: Path) -> str:
    report(run)
    return (run / "report.html").read_text(encoding="utf-8")


def text_of(node) -> str:
    return " ".join(node.text_content().split())


def check_well_formed(page: str) -> None:
    """Every SVG is XML, every table is named, every fold says what it holds, nothing loads from outside."""
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)
    tree = lxml_html.fromstring(page)
    assert all(len(table.findall("caption")) == 1 and text_of(table.find("caption")) for table in tree.iter("table"))
    assert all(details[0].tag == "summary" and text_of(details[0]) for details in tree.iter("details"))
    assert all(svg.get("aria-hidden") or svg.get("aria-labelledby") for svg in tree.iter("svg"))
    assert not [node for node in tree.iter() if isinstance(node.tag, str) and node.get("src")]
    assert all(node.get("href").startswith("#") for node in tree.xpath("//*[@href]"))
    assert not list(tree.iter("link", "img", "iframe", "object"))
    assert not re.search(r"url\(|@import", "".join(style.text or "" for style in tree.iter("style")))
    idents = tree.xpath("//@id")
    assert len(idents) == len(set(idents))
    check_balanced(page)


def check_balanced(page: str) -> None:
    """Tags open and close in order."""

    class Balance(HTMLParser):
        open: ClassVar[list[str]] = []

        def handle_starttag(self, tag, attrs):
            if tag not in VOID:
                self.open = [*self.open, tag]

        def handle_endtag(self, tag):
            assert self.open[-1] == tag, (self.open, tag, self.getpos())
            self.open = self.open[:-1]

        def handle_startendtag(self, tag, attrs):
            pass

    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_main_table_prints_exactly_the_files_numbers(full_run):
    tree = lxml_html.fromstring(page_of(full_run))
    models = read_json(full_run / "evaluation" / "summary.json")["models"]
    rows = [row for row in tree.xpath("//table[contains(@class, 'main')]//tr[td]")]
    measures = [measure for measures in GROUPS.values() for measure in measures]
    assert len(rows) == len(measures)
    for row, measure in zip(rows, measures, strict=True):
        cells = row.xpath("./td")
        assert [cell.get("data-model") for cell in cells] == list(models)
        for cell, model in zip(cells, models.values(), strict=True):
            assert text_of(cell.xpath("./span[@class='figure']")[0]) == measure.look(pick(model, *measure.path))


def test_missing_measure_is_a_dash_and_never_best(full_run):
    tree = lxml_html.fromstring(page_of(full_run))
    missing = tree.xpath("//td[@data-model='compressed'][span[@class='figure']='" + DASH + "']")
    assert len(missing) == 3
    assert not any("best" in cell.get("class") or "than the original" in text_of(cell) for cell in missing)


def test_null_and_nan_count_as_missing(full_run, edit):
    def spoil(summary):
        summary["models"]["adapted"]["general"] = {"nats_per_token": None, "perplexity": float("nan")}
        del summary["models"]["aligned"]["answers"]

    edit(full_run / "evaluation" / "summary.json", spoil)
    page = page_of(full_run)
    assert "nan" not in text_of(lxml_html.fromstring(page).xpath("//table[contains(@class, 'main')]")[0]).lower().split()
    check_well_formed(page)


def test_mean_and_interval_are_printed_where_seeds_exist(full_run, edit):
    edit(
        full_run / "evaluation" / "summary.json",
        lambda summary: summary["models"]["adapted"]["general"].update(nats_per_token={"mean": 3.25, "interval": 0.0121}),
    )
    assert "3.250 \N{PLUS-MINUS SIGN} 0.012" in page_of(full_run)


@pytest.mark.parametrize(
    "stages",
    [
        ("compress",),
        ("compress", "align"),
        ("compress", "read"),
        ("compress", "align", "read", "adapt"),
        ("compress", "read", "evaluate"),
        ("read",),
    ],
    ids="-".join,
)
def test_unfinished_stages_are_left_out_with_a_sentence(make_run, tmp_path, stages):
    run = make_run(tmp_path / "run", stages=stages, num_documents=2)
    page = page_of(run)
    check_well_formed(page)
    tree = lxml_html.fromstring(page)
    for stage, section in {"compress": "tiling", "align": "alignment", "read": "reading", "adapt": "learning"}.items():
        assert (stage in stages) is not bool(tree.xpath(f"//section[@id='{section}']/p[@class='absent']"))
    assert ("evaluate" in stages) is not ("It has not been evaluated yet" in page)
    assert set(report(run)["absent"]) == {"compress", "align", "read", "adapt", "evaluate"} - set(stages)


def test_full_page_is_well_formed(full_run):
    page = page_of(full_run)
    check_well_formed(page)
    assert 'class="absent"' not in page
    assert page.count("<figure>") == 8, "alignment 2, layers 2, learning 4"


def test_hostile_text_stays_text(make_run, tmp_path):
    run = make_run(tmp_path / "run", hostile=HOSTILE, name="n" * 4000 + HOSTILE, num_documents=2)
    page = page_of(run)
    check_well_formed(page)
    assert page.count("<script") == 1
    assert not re.search(r"<[^>]*\sonerror", page)
    assert "&lt;script&gt;alert(1)" in page
    assert "\u202e" not in page
    assert "\x00" not in page


def test_lone_surrogates_do_not_break_the_page(full_run, edit):
    edit(full_run / "summary.json", lambda summary: summary.update(name="a\ud800b"))
    assert "<h1>ab</h1>" in page_of(full_run)


def test_secrets_of_the_recipe_are_not_shown(full_run):
    (full_run / "recipe.yaml").write_text("questions:\n  api_key: abc123\n  password: null\n", encoding="utf-8")
    page = page_of(full_run)
    assert "abc123" not in page
    assert "password: null" in page


def test_same_run_same_bytes_wherever_it_is_written(full_run, tmp_path):
    report(full_run)
    told = report(full_run, tmp_path / "elsewhere" / "page.html")
    assert (tmp_path / "elsewhere" / "page.html").read_bytes() == (full_run / "report.html").read_bytes()
    assert told["page_bytes"] == (full_run / "report.html").stat().st_size


def test_two_thousand_sections_fit_under_two_megabytes(make_run, tmp_path):
    run = make_run(
        tmp_path / "run", num_documents=200, sections=10, stages=("compress", "align", "read", "adapt"), hostile=HOSTILE
    )
    assert report(run)["page_bytes"] < 2_000_000


@pytest.mark.parametrize(
    ("make", "message"), [("missing", "does not exist"), ("file", "is a file"), ("empty", "holds no finished stage")]
)
def test_what_is_no_run_is_said_in_one_line(tmp_path, make, message):
    path = tmp_path / "run"
    if make == "file":
        path.write_text("", encoding="utf-8")
    elif make == "empty":
        path.mkdir()
    with pytest.raises(InputError, match=message) as error:
        report(path)
    assert "\n" not in str(error.value)


def test_broken_json_names_its_file_and_leaves_no_page(full_run):
    (full_run / "evaluation" / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"summary\.json is not valid JSON"):
        report(full_run)
    assert not (full_run / "report.html").exists()


def test_page_cannot_be_a_folder(full_run, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        report(full_run, tmp_path)


def test_report_imports_only_the_base_of_the_package():
    allowed = {"errors", "settings", "folders", "progress", "report"}
    source = Path(__import__("quasitile.report.page", fromlist=["page"]).__file__).parent
    for module in source.glob("*.py"):
        names = re.findall(r"^(?:from|import) ([\w.]+)", module.read_text(encoding="utf-8"), re.M)
        assert all(name.split(".")[1] in allowed for name in names if name.startswith("quasitile."))
        assert "torch" not in names


def test_rounds_are_told_and_averaged(full_run):
    """Two sections in three turns: right from the second turn on."""
    rows = [
        {
            "round": n,
            "document": "a",
            "section": s,
            "general_nats": 3.0,
            "asked": {"exact_match": float(n > 0), "num_questions": 1},
        }
        for n in range(3)
        for s in range(2)
    ]
    (full_run / "adapted" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = page_of(full_run)
    assert "through the papers 3 times" in page
    assert "2 sections taught, 0 undone" in page
    assert "Mean over 2 sections." in page
