"""A synthetic run folder, as docs/data.md describes it."""

from __future__ import annotations

import json
import math
import random
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from quasitile.folders import write_json, write_jsonl, write_yaml

MODELS = ("original", "compressed", "aligned", "adapted")
VERSIONS = {"python": "3.12.3", "quasitile": "0.1.0", "torch": "2.8.0", "transformers": "4.57.1"}
FACTS = [
    ("What is the band gap of {m}?", "{v} eV", "The optical band gap of {m} films is {v} eV at room temperature.", "property"),
    ("At what temperature was {m} annealed?", "{t} K", "{m} was annealed at {t} K for 12 h under flowing argon.", "condition"),
    ("What does XRD stand for?", "X-ray diffraction", "Phase purity of {m} was checked by X-ray diffraction (XRD).", "acronym"),
    (
        "Why did the resistance of {m} rise?",
        "oxygen vacancies",
        "The resistance of {m} rose because of oxygen vacancies.",
        "cause",
    ),
]
MATERIALS = ["CH3NH3PbI3", "La2O3", "Bi2Te3", "SrTiO3", "LiFePO4", "MoS2", "GaN", "ZnO"]
TYPES = ["abstract", "introduction", "methods", "results", "discussion", "conclusion"]


def write_run(
    folder: Path,
    *,
    num_documents: int = 3,
    sections: int = 4,
    name: str = "base-7m at 25%",
    stages: tuple[str, ...] = ("compress", "align", "read", "adapt", "evaluate"),
    hostile: str = "",
    good: bool = True,
) -> Path:
    """Write a run folder.

    Args:
        folder: Where.
        num_documents: The last one is held out.
        sections: Sections in each document.
        name: The run's name.
        stages: The stages that have finished.
        hostile: Put into every text that comes from papers, models and paths.
        good: Whether reading helped (or harmed).
    """
    folder.mkdir(parents=True)
    rng = random.Random(0)
    made = {"compress": _compress, "align": _align, "adapt": _adapt}
    reading = _reading(rng, num_documents, sections, hostile)
    summaries: dict[str, Any] = {}
    for index, stage in enumerate(stages):
        if stage == "read":
            place, summaries[stage] = folder / "reading", {"num_questions": len(reading["questions"])}
            for file, rows in reading.items():
                _lines(place / f"{file}.jsonl", rows)
        elif stage == "evaluate":
            place, summaries[stage] = folder / "evaluation", {"models": _measures(rng, good)}
            place.mkdir(exist_ok=True)
            _lines(place / "answers.jsonl", _answers(rng, reading["questions"], hostile, good))
            write_json(place / "examples.json", _examples(hostile))
        else:
            place, summaries[stage] = made[stage](folder, rng, reading, hostile)
        write_json(place / "summary.json", summaries[stage])
        record = {"stage": stage, "versions": VERSIONS, "commit": "0123456789abcdef", "seed": 7, "inputs": {}, "seconds": 12.5}
        record |= {
            "hardware": {"machine": "x86_64", "system": "Linux", "num_cpus": 2},
            "peak_memory_bytes": 812_000_000 + index,
        }
        write_json(place / "provenance.json", record)
    size = {"original_bytes": 13_901_000, "target_bytes": 3_475_250, "stored_bytes": 3_474_100, "bits_per_weight": 3.99}
    seconds = {stage: 12.5 * (index + 1) ** 2 for index, stage in enumerate(stages)}
    summary = {"name": name, "size": size, "stages": summaries, "seconds": seconds, "peak_memory_bytes": 913_000_000}
    write_json(folder / "summary.json", summary)
    write_yaml(
        folder / "recipe.yaml",
        {"name": name, "compress": {"size": "25%", "tiling": {"name": "penrose", "short": 32}}, "seed": 7},
    )
    return folder


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_jsonl(path, rows)


def fibonacci_edges(length: int, phase: int) -> list[int]:
    """Cuts of a Fibonacci chain, so that the picture looks like one."""
    word = "L"
    while len(word) < 200:
        word = "".join("LS" if letter == "L" else "L" for letter in word)
    edges = accumulate(({"L": 26, "S": 16}[letter] for letter in word[phase:]), initial=0)
    return [*(edge for edge in edges if edge < length), length]


def layout(num_rows: int, num_columns: int, rng: random.Random) -> dict[str, Any]:
    """A Penrose-like layout: row bands, each cut with a phase of its own."""
    tiles = []
    rows = fibonacci_edges(num_rows, 0)
    for band, (top, bottom) in enumerate(pairwise(rows)):
        columns = fibonacci_edges(num_columns, 3 * band % 20)
        for left, right in pairwise(columns):
            energy = math.exp(-(top / num_rows + left / num_columns) * 2) * 14 * rng.uniform(0.5, 1.3)
            rank = min(int(energy), bottom - top, right - left)
            tiles.append([top, bottom, left, right, rank, rank * (bottom - top + right - left) + 4])
    return {"name": "model.layers.2.mlp.down_proj.weight", "shape": [num_rows, num_columns], "tiles": tiles}


def _compress(folder: Path, rng: random.Random, reading: dict[str, Any], hostile: str) -> tuple[Path, dict[str, Any]]:
    place = folder / "compressed"
    place.mkdir()
    write_json(place / "picture.json", layout(256, 688, rng))
    matrices = []
    for layer in range(6):
        for kind, shape in [("self_attn.q_proj", [256, 256]), ("mlp.up_proj", [688, 256]), ("mlp.down_proj", [256, 688])]:
            matrix = {"name": f"model.layers.{layer}.{kind}.weight{hostile}", "shape": shape, "tiling": "penrose"}
            matrix |= {"num_tiles": 120 + layer, "mean_rank": rng.uniform(1, 9), "max_rank": 16, "stored_bytes": 61_000}
            matrix |= {
                "bits_per_weight": rng.uniform(3, 5),
                "relative_squared_error": rng.uniform(0.001, 0.05),
                "kept_share": 0.98,
            }
            matrices.append(matrix)
    return place, {"matrices": matrices}


def _align(folder: Path, rng: random.Random, reading: dict[str, Any], hostile: str) -> tuple[Path, dict[str, Any]]:
    rows = []
    for step in range(300):
        loss = 0.12 + 0.5 * math.exp(-step / 60) + rng.gauss(0, 0.012)
        row = {"step": step, "tokens": 4096 * (step + 1), "loss": loss, "hidden_kl_nats": loss / 9, "logit_kl_nats": loss / 2}
        row |= {"language_model_nats": 3.3, "seconds": 0.4}
        if step % 25 == 0:
            row["general_nats"] = 3.232 + 0.081 * math.exp(-step / 70)
        rows.append(row)
    _lines(folder / "aligned" / "metrics.jsonl", rows)
    return folder / "aligned", {"num_steps": 300}


def _adapt(folder: Path, rng: random.Random, reading: dict[str, Any], hostile: str) -> tuple[Path, dict[str, Any]]:
    sections = [row for row in reading["sections"] if row["split"] == "train"]
    rows, answers = [], []
    for step, section in enumerate(sections):
        seen = step / len(sections)
        asked = {"exact_match": min(1, max(0, 0.02 + 0.2 * seen + rng.gauss(0, 0.06))), "num_questions": 4}
        asked["token_f1"] = min(1, asked["exact_match"] + 0.1)
        row = {"step": step, "document": section["document"], "section": section["section"], "section_title": section["title"]}
        row |= {
            "tokens": 900,
            "loss_nats": 3.1 - seen + rng.gauss(0, 0.2),
            "replay_nats": 3.25 + rng.gauss(0, 0.03),
            "asked": asked,
        }
        row |= {"general_nats": 3.235 + 0.02 * seen + rng.gauss(0, 0.003), "undone": step % 11 == 7, "num_blocks": 4200}
        rows.append(row | {"num_blocks_trained": rng.randrange(200, 900), "seconds": 3.1})
    for step, question in enumerate(reading["questions"][:40]):
        about = question["metadata"]
        row = {
            "step": step,
            "round": 0,
            "id": about["id"],
            "question": question["messages"][0]["content"],
            "given": "about 2 eV" + hostile,
        }
        row |= {"trace": "The text says so." + hostile, "answer": question["messages"][1]["content"], "exact_match": 0.0}
        answers.append(row | {"token_f1": 0.3, "evidence": about["evidence"]})
    _lines(folder / "adapted" / "metrics.jsonl", rows)
    _lines(folder / "adapted" / "answers.jsonl", answers)
    return folder / "adapted", {"num_sections": len(rows)}


def _reading(rng: random.Random, num_documents: int, num_sections: int, hostile: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: [] for name in ("documents", "sections", "questions", "dropped", "skipped")}
    for number in range(num_documents):
        document, split = f"paper-{number:03d}", "test" if number == num_documents - 1 else "train"
        title = f"Transport and optics of {MATERIALS[number % 8]} thin films grown by pulsed laser deposition{hostile}"
        row = {
            "document": document,
            "path": f"{document}.tex",
            "format": "latex",
            "title": title,
            "licence": "CC-BY-4.0",
            "split": split,
        }
        row |= {
            "num_sections": num_sections,
            "num_characters": 6512,
            "kept_characters": 6380,
            "dropped_characters": {"references": 132},
        }
        found["documents"].append(row)
        for section in range(num_sections):
            _section(found, rng, document, section, split, hostile)
    for index, question in enumerate(found["questions"][:9]):
        reason = ["near-duplicate", "answer not in evidence"][index % 2]
        found["dropped"].append({**question, "metadata": {**question["metadata"], "reason": reason}})
    found["skipped"] = [{"path": f"scan{hostile}.pdf", "reason": "no text layer; run OCR first"}]
    return found


def _section(found: dict[str, Any], rng: random.Random, document: str, section: int, split: str, hostile: str) -> None:
    material = MATERIALS[(section + len(found["documents"])) % 8]
    values = {"m": material, "v": f"{rng.uniform(1, 4):.2f}", "t": rng.randrange(500, 1300)}
    sentences = [sentence.format(**values) for _, _, sentence, _ in FACTS]
    text = (
        f"Films were grown on sapphire.{hostile} "
        + " ".join(sentences)
        + f" Thickness was 40 nm.\n\nAll data are means of five runs{hostile}."
    )
    title = TYPES[section % 6].capitalize()
    row = {
        "document": document,
        "section": section,
        "title": title,
        "level": 1,
        "type": TYPES[section % 6],
        "text": text,
        "split": split,
    }
    found["sections"].append(row)
    for order, ((question, answer, _, kind), evidence) in enumerate(zip(FACTS, sentences, strict=True)):
        for phrasing, form in enumerate(["{}", "According to the study: {}"]):
            start = text.index(evidence)
            about = {
                "id": f"{document}/{section}/{2 * order + phrasing}",
                "document": document,
                "section": section,
                "order": order,
            }
            about |= {
                "section_title": title,
                "type": row["type"],
                "kind": kind,
                "source": ["rules", "rules", "curated"][order % 3],
            }
            about |= {"fact": f"{document}/{section}/f{order}", "phrasing": phrasing, "licence": "", "quality": 0.9}
            about |= {
                "evidence": {"text": evidence, "start": start, "stop": start + len(evidence)},
                "accepted": [answer.format(**values)],
            }
            about["split"] = "phrasing" if split == "train" and phrasing else split
            asked = {"role": "user", "content": form.format(question.format(**values)) + hostile}
            told = {
                "role": "assistant",
                "content": answer.format(**values),
                "reasoning_content": f'The text says: "{evidence}"',
            }
            found["questions"].append({"messages": [asked, told], "metadata": about})


def _right(model: str, split: str, book: str, good: bool) -> float:
    """The chance of a right answer."""
    if book == "open":
        return {"original": 0.2, "compressed": 0.17, "aligned": 0.19, "adapted": 0.45 if good else 0.1}[model]
    if model != "adapted":
        return {"original": 0.04, "compressed": 0.02, "aligned": 0.03}[model]
    return {"train": 0.62, "phrasing": 0.41, "test": 0.04}[split] if good else 0.02


def _answers(rng: random.Random, questions: list[dict[str, Any]], hostile: str, good: bool) -> list[dict[str, Any]]:
    rows = []
    for model in MODELS:
        for book in ("closed", "open"):
            for question in questions:
                about, answer = question["metadata"], question["messages"][1]["content"]
                right = rng.random() < _right(model, about["split"], book, good)
                given = answer if right else rng.choice(["1.2 eV", "the the film was", answer.split()[0] + " and more", ""])
                overlap = 1.0 if right else (0.4 if given.startswith(answer.split()[0]) else 0.0)
                row = {"model": model, "book": book, "split": about["split"], "id": about["id"], "answer": answer}
                row |= {"question": question["messages"][0]["content"], "accepted": [answer], "given": given + hostile}
                rows.append(row | {"exact_match": float(right), "token_f1": overlap, "evidence": about["evidence"]["text"]})
    return rows


def _measures(rng: random.Random, good: bool) -> dict[str, Any]:
    found = {}
    rise = {"original": 0.0, "compressed": 0.11, "aligned": 0.024, "adapted": 0.043 if good else 0.62}
    field = {"original": 0.0, "compressed": 0.13, "aligned": 0.03, "adapted": -0.41 if good else 0.2}
    for model in MODELS:
        general, domain = 3.208 + rise[model], 4.407 + field[model]
        small = model != "original"
        one: dict[str, Any] = {"stored_bytes": 3_474_100 if small else 13_901_000, "resident_bytes": 13_900_000}
        one["stored_parameters"] = 3_103_122 if small else 6_950_400
        one["general"] = {
            "nats_per_token": general,
            "perplexity": math.exp(general),
            "bits_per_character": general / 2.4,
            "num_tokens": 20000,
        }
        one["domain"] = {
            "nats_per_token": domain,
            "perplexity": math.exp(domain),
            "bits_per_character": domain / 2.1,
            "num_tokens": 2000,
        }
        if small:
            layers = [
                {
                    "layer": k,
                    "kl_nats": 0.002 * k * (1 + 4 * rise[model]),
                    "relative_squared_error": 0.02 * k**0.5 * (1 + 9 * rise[model]),
                }
                for k in range(7)
            ]
            one["divergence"] = {"logit_kl_nats": rise[model] * 0.9, "layers": layers}
        one["answers"] = {
            f"{book}_book": {
                split: {
                    "exact_match": (p := _right(model, split, book, good)),
                    "token_f1": min(1, p + 0.08),
                    "num_questions": n,
                }
                for split, n in (("train", 120), ("phrasing", 120), ("test", 48))
            }
            for book in ("closed", "open")
        }
        one["choices"] = {"domain": {"accuracy": 0.31 + 0.1 * (model == "adapted"), "chance": 0.25, "num_questions": 60}}
        one["choices"]["general"] = {"accuracy": 0.335, "chance": 0.25, "num_questions": 200}
        by_label = {label: {"f1": rng.uniform(0.2, 0.6)} for label in ("material", "property", "condition")}
        one["entities"] = {"f1": 0.41, "precision": 0.52, "recall": 0.338, "num_entities": 80, "by_label": by_label}
        if model != "compressed":
            one["properties"] = {"f1": 0.105, "precision": 0.12, "recall": 0.093, "num_records": 12}
        one["cost"] = {
            "load_seconds": 0.24 + 0.1 * small,
            "prefill_tokens_per_second": 9120.4,
            "decode_tokens_per_second": 88.2 + small,
        }
        one["cost"]["peak_memory_bytes"] = 903_000_000 - small * 20_000_000
        found[model] = one
    return found


def _examples(hostile: str) -> list[dict[str, str]]:
    texts = {
        model: f"a film of {model} quality, which was grown on the surface and then measured.{hostile}" for model in MODELS
    }
    return [
        {"prompt": prompt + hostile, **texts}
        for prompt in ("The band gap of CH3NH3PbI3 is", "Thermoelectric materials convert")
    ]


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    """A run with every stage finished."""
    return write_run(tmp_path / "run")


@pytest.fixture
def edit():
    """Change a JSON file in place."""

    def change(path: Path, function: Any) -> None:
        value = json.loads(path.read_text(encoding="utf-8"))
        function(value)
        path.write_text(json.dumps(value), encoding="utf-8")

    return change


@pytest.fixture
def make_run():
    """Write a run folder with given properties: see `write_run`."""
    return write_run


@pytest.fixture
def picture():
    """A Penrose-like layout of a matrix of 256 x 688."""
    return layout(256, 688, random.Random(1))
