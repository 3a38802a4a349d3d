"""Run as a program of its own, with a limit on memory: the printed lines of a PDF as JSON, one a line.

A PDF is a program for a small machine, and a hostile one can run for hours or fill the memory; so
pypdf works in a process that `pdf.py` can end. Nothing of quasitile is imported here.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

RAISED = 0.15  # of the font's size: how far from the line a smaller piece is a sub- or superscript
SMALLER = 0.9


def main() -> int:
    """Print `{"page", "x", "y", "size", "bold", "text"}` for each line; one line on standard error says what failed."""
    path, memory_bytes, max_characters = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    import logging

    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    num_characters = 0
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            print("is encrypted; save it without a password", file=sys.stderr)
            return 1
        print(json.dumps({"title": str((reader.metadata or {}).get("/Title") or "")}))
        for number, page in enumerate(reader.pages, 1):
            for line in page_lines(page):
                num_characters += len(line["text"])
                print(json.dumps({"page": number, **line}))
            if num_characters > max_characters:
                print(f"holds more than {max_characters} characters; split it", file=sys.stderr)
                return 1
    except Exception as error:  # pypdf raises whatever a broken file makes it stumble over
        reason = " ".join(str(error).split())[:200]
        print(f"cannot be read as PDF ({type(error).__name__}: {reason}); repair or convert it", file=sys.stderr)
        return 1
    return 0


def page_lines(page: Any) -> list[dict[str, Any]]:
    """The lines of a page in the order in which they are drawn, which keeps columns apart."""
    pieces: list[tuple[float, float, float, bool, str]] = []

    def visit(text: str, matrix: list[float], text_matrix: list[float], font: Any, size: float) -> None:
        if not text:
            return
        a, b, c, d, e, f = matrix
        x = a * text_matrix[4] + c * text_matrix[5] + e
        y = b * text_matrix[4] + d * text_matrix[5] + f
        height = abs(size * (text_matrix[3] or text_matrix[1]) * (d or b))
        name = str((font or {}).get("/BaseFont", ""))
        pieces.append((x, y, height, "bold" in name.lower() or name.endswith(("-B", "CMBX10", "CMBX12")), text))

    page.extract_text(visitor_text=visit)
    lines: list[dict[str, Any]] = []
    for x, y, size, bold, text in pieces:
        for number, part in enumerate(text.split("\n")):
            line = lines[-1] if lines else None
            if line is None or number or abs(y - line["y"]) > 0.6 * max(line["size"], size):
                if not part.strip():
                    continue
                lines.append({"x": round(x, 1), "y": round(y, 1), "size": round(size, 1), "bold": bold, "text": part})
            elif line is not None:
                line["text"] += script(part, y - line["y"], size, line)
                if size > line["size"] and part.strip():
                    line["size"], line["y"] = round(size, 1), round(y, 1)
                line["bold"] = line["bold"] and (bold or not part.strip())
    return [{**line, "text": line["text"].strip()} for line in lines if line["text"].strip()]


def script(part: str, rise: float, size: float, line: dict[str, Any]) -> str:
    """A piece of a line; a raised smaller one is marked as an exponent."""
    small = size < SMALLER * line["size"]
    return f"^{part.strip()}" if small and rise > RAISED * line["size"] and part.strip() else part


if __name__ == "__main__":
    sys.exit(main())
