"""A reading folder as datasets that trainers read: TRL, LLaMA-Factory and Axolotl, with a card and statistics."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.folders import read_jsonl, write_json, write_jsonl, write_text, write_yaml

SPLITS = ("train", "phrasing", "test")


def export_questions(reading: str | Path, out: str | Path) -> dict[str, Any]:
    """Write `trl/`, `llama_factory/` and `axolotl/`, each with the splits that exist, `README.md` and `statistics.json`.

    Every message keeps its trace in `reasoning_content`, and every row says where it comes from.

    Raises:
        InputError: `reading` was not made by `read`, or `out` is a folder of something else.
    """
    reading, out = Path(reading), Path(out)
    rows = read_jsonl(reading / "questions.jsonl")
    if not rows:
        raise InputError(f"{reading} holds no questions; nothing to export")
    if out.exists() and any(out.iterdir()) and not (out / "statistics.json").is_file():
        raise InputError(f"{out} holds other files; give an empty folder")
    splits = {name: [row for row in rows if row["metadata"]["split"] == name] for name in SPLITS}
    splits = {name: held for name, held in splits.items() if held}
    for folder in ("trl", "llama_factory", "axolotl"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, held in splits.items():
        write_jsonl(out / "trl" / f"{name}.jsonl", ({"messages": row["messages"], **_origin(row)} for row in held))
        write_jsonl(out / "llama_factory" / f"{name}.jsonl", ({"messages": row["messages"], **_origin(row)} for row in held))
        write_jsonl(out / "axolotl" / f"{name}.jsonl", ({"messages": row["messages"]} for row in held))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    info = {f"quasitile_{name}": {"file_name": f"{name}.jsonl", **entry} for name in splits}
    write_json(out / "llama_factory" / "dataset_info.json", info)
    dataset = {
        "path": str(Path("axolotl") / "train.jsonl"),
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
    }
    write_yaml(out / "axolotl" / "datasets.yaml", {"datasets": [dataset]})
    statistics = count(splits)
    write_json(out / "statistics.json", statistics)
    write_text(out / "README.md", card(splits, statistics))
    return statistics


def _origin(row: dict[str, Any]) -> dict[str, Any]:
    """Where a question comes from, flat, so that every loader takes it."""
    metadata = row["metadata"]
    kept = {key: metadata[key] for key in ("id", "document", "section_title", "type", "kind", "source", "fact", "licence")}
    return {**kept, "evidence": metadata["evidence"]["text"], "accepted": metadata["accepted"]}


def count(splits: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Questions by split, kind, source, section type and document, and the length of answers."""
    rows = [row for held in splits.values() for row in held]
    words = sorted(len(row["messages"][1]["content"].split()) for row in rows)
    tallies = {
        f"by_{key}": dict(Counter(str(row["metadata"][key]) for row in rows).most_common())
        for key in ("kind", "source", "type")
    }
    return {
        "num_questions": len(rows),
        "num_facts": len({row["metadata"]["fact"] for row in rows}),
        "num_documents": len({row["metadata"]["document"] for row in rows}),
        "by_split": {name: len(held) for name, held in splits.items()},
        **tallies,
        "median_answer_words": words[len(words) // 2],
        "longest_answer_words": words[-1],
    }


def card(splits: dict[str, list[dict[str, Any]]], statistics: dict[str, Any]) -> str:
    """The dataset card: configuration for the loader, what the rows are, and every document's licence."""
    files = "\n".join(f"  - split: {name}\n    path: trl/{name}.jsonl" for name in splits)
    licences = {row["metadata"]["document"]: row["metadata"]["licence"] for held in splits.values() for row in held}
    listed = "\n".join(f"- {document}: {licence or 'not stated'}" for document, licence in sorted(licences.items()))
    kinds = "\n".join(f"| {kind} | {size} |" for kind, size in statistics["by_kind"].items())
    return f"""---
configs:
- config_name: default
  data_files:
{files}
---

# Questions on {statistics["num_documents"]} documents

{statistics["num_questions"]} questions on {statistics["num_facts"]} facts, made by quasitile. Each rests on one passage of its
document (`evidence`), which holds the answer; the reasoning stands in `reasoning_content` of the answer's message.

`train` may be trained on. `phrasing` asks facts of `train` in words that are not trained. `test` are whole documents held out.

| kind | questions |
| --- | ---: |
{kinds}

## Licences of the documents

{listed}
"""
