"""What `inspect` found, on the terminal: three short tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from quasitile.progress import human_bytes, table
from quasitile.report.formats import duration

MOST_GROUPS = 24  # that fit on a screen


def print_plan(screen: Console, plan: dict[str, Any]) -> None:
    """The matrices in groups, what each size buys, and what compressing costs."""
    what = "compressed by quasitile" if plan["compressed"] else "not compressed"
    files = f"{human_bytes(plan['stored_bytes'])} on disk" if plan["stored_bytes"] is not None else "no weights here"
    screen.print(
        f"[bold]{plan['architecture']}[/bold], {what}: {plan['num_parameters']:,} parameters, "
        f"{human_bytes(plan['original_bytes'])} in bf16, {files}"
    )
    for dtype in plan["unsupported_dtypes"]:
        screen.print(f"Some weights are stored as {dtype}; `compress` needs a copy of the model in bfloat16.")
    screen.print()
    screen.print(table("", ("matrices", "kind", "how many", "rows x columns", "parameters", "share"), group_rows(plan)))
    screen.print()
    damage = any(row["predicted_damage_nats"] is not None for row in plan["sizes"])
    headers = ("size", "stored", "bits a weight", "of it for matrices", "mean rank, factors only", "takes about")
    screen.print(table("", (*headers, "damage, nats") if damage else headers, size_rows(plan, damage)))
    if not damage:
        screen.print("What a size costs in quality needs weights and calibration text: run `quasitile compress`.", style="dim")
    screen.print()
    for line in cost_lines(plan["cost"]):
        screen.print(line)


def group_rows(plan: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a group, the smallest together if there are many; then what stays as it is."""
    total = plan["num_parameters"]
    groups = sorted(plan["groups"], key=lambda group: -group["num_parameters"])
    shown, others = groups[:MOST_GROUPS], groups[MOST_GROUPS:]
    rows = [
        (
            group["name"],
            group["kind"],
            f"{group['count']:,}",
            f"{group['shape'][0]:,} x {group['shape'][1]:,}",
            f"{group['num_parameters']:,}",
            f"{group['num_parameters'] / total:.1%}",
        )
        for group in plan["groups"]
        if group in shown
    ]
    if others:
        count, size = (sum(group[key] for group in others) for key in ("count", "num_parameters"))
        rows.append((f"{len(others)} smaller groups", "", f"{count:,}", "", f"{size:,}", f"{size / total:.1%}"))
    rest = total - sum(group["num_parameters"] for group in groups)
    rows.append(("norms, biases, routers, ...: as they are", "", "", "", f"{rest:,}", f"{rest / total:.1%}"))
    return rows


def size_rows(plan: dict[str, Any], damage: bool) -> list[tuple[str, ...]]:
    """A row a size."""
    rows = []
    for row in plan["sizes"]:
        cells = (
            row["size"],
            human_bytes(row["stored_bytes"]),
            f"{row['bits_per_weight']:.2f}",
            f"{row['bits_per_matrix_weight']:.2f}" if row["bits_per_matrix_weight"] > 0 else "too small",
            f"{row['mean_rank']:.1f}",
            duration(row["seconds"]),
        )
        nats = row["predicted_damage_nats"]
        rows.append((*cells, "?" if nats is None else f"{nats:.4f}") if damage else cells)
    return rows


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """Time and memory in words."""
    seconds = cost["calibration_seconds"] + cost["coding_seconds"]
    where = "measured here just now" if cost["measured_here"] else "usual; `--measure` times this machine"
    cores = f"{cost['workers']} core{'s' if cost['workers'] > 1 else ''}"
    return [
        f"Compressing takes about {duration(seconds)} on {cores}: {duration(cost['calibration_seconds'])} to calibrate "
        f"on {cost['num_tokens']:,} tokens, {duration(cost['coding_seconds'])} to code; "
        "both twice where prices go midway (`calibration.gradients`), as the table says.",
        f"It holds about {human_bytes(cost['peak_memory_bytes'])} with the whole model in memory, "
        f"one layer at a time (`calibration.stream`), {human_bytes(cost['streamed_memory_bytes'])}.",
        f"[dim]Rates of a core: {cost['flops'] / 1e9:.0f} GFLOP/s, {cost['weights'] / 1e6:.1f} million weights a second "
        f"({where}).[/dim]",
    ]
