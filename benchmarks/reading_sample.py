"""A random sample of questions made by rule, to be judged one by one.

    python benchmarks/reading_sample.py READING [--size 100] [--seed 0]

One wording a fact, drawn over the facts of the test split; prints number, kind, question, answer and evidence.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from quasitile.folders import read_jsonl


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reading", type=Path)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    facts: dict[str, list[dict]] = {}
    for row in read_jsonl(options.reading / "questions.jsonl"):
        if row["metadata"]["source"] == "rules":
            facts.setdefault(row["metadata"]["fact"], []).append(row)
    generator = random.Random(options.seed)
    for number, fact in enumerate(generator.sample(sorted(facts), min(options.size, len(facts))), 1):
        row = generator.choice(facts[fact])
        metadata = row["metadata"]
        print(f"{number}. {metadata['kind']} | {metadata['id']}")
        print(f"   Q: {row['messages'][0]['content']}\n   A: {row['messages'][1]['content']}")
        if row["metadata"]["kind"] not in ("summary",):
            print(f"   E: {metadata['evidence']['text']}")


if __name__ == "__main__":
    main()
