"""What the records of reach.py add up to: right models by library and tool, failures by cause, and what is not free and why."""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import machine, versions

Record = Mapping[str, Any]
Key = tuple[str, str]

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "diffusers",
    "torch-geometric",
    "torch-pruning",
    "torch-kirigami",
)
FIELDS = ("library", "model", "tool", "ok", "stage", "reason", "seconds", "peak_mb", "axes", "free_share", "max_error")
MORE_FIELDS = ("unchecked", "removed", "parameters", "frozen", "exports")
MOST_FROZEN, MOST_NAMES, MOST_REASONS = 3, 12, 25
ENOUGH = 0.8
"""Of the parameters on free axes."""


def known(paths: Iterable[Path]) -> dict[Key, Record]:
    """The records of files, one JSON object a line, by model and tool; a line that a kill cut short is left out."""
    found: dict[Key, Record] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found[record["model"], record["tool"]] = {"library": record["model"].partition("/")[0], **record}
    return found


def report(records: Sequence[Record]) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it."""
    ours = [record for record in records if record["tool"] == "secateur"]
    return {
        "title": "Models that prune, untouched",
        "command": "python benchmarks/reach.py",
        "machine": machine(),
        "columns": [
            *("library", "tool", "models", "can be built", "right", "right, in %", "of them not compared", "wrong"),
            *("exports", "80 % of parameters free", "parameters gone, median", "analysis, median s"),
        ],
        "rows": [row(*key, mine) for key, mine in grouped(records).items()],
        "notes": [
            "Right: 30 % of the units of every axis go at random, and the smaller model runs. With secateur all proofs hold, and "
            "a fresh instance of the original class loads it and gives the same bits. With the others it equals the dense model "
            "with what went set to zero, in float64, which is found out without asking the tool.",
            "Not compared: where a norm or a softmax runs over what went, zero and gone are not the same. Such models count as "
            "right. Wrong: it runs, and gives something else; with secateur, a proof then refuses the plan.",
            "The others are used as their documentation and examples do it: last layers kept, head counts handed over, sizes in "
            "attributes that the examples name brought up to date. The model's own code stays as it is.",
            "torch-kirigami is given one explicit plan. Its own choice of channels takes many times as long as the limit.",
            "Models have random weights; those of transformers are made small by one rule for all configurations. All tools have "
            "the same limit of memory.",
            "Not compared, with secateur: shapes and operators alone are proved, on the meta device, and the model is neither "
            "reloaded nor exported. So it is with more than 120 million parameters, and with all models of timm but the "
            "smallest of each family.",
            "80 % of parameters free: how many of the right models have so many parameters on axes that can shrink.",
        ],
        "parts": [causes(records), why_frozen(ours)],
        "versions": versions(PACKAGES),
        "values": [trimmed(record) for record in records],
    }


def grouped(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """The records by library and tool."""
    found: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        found[record["library"], record["tool"]].append(record)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def row(library: str, tool: str, records: Sequence[Record]) -> list[Any]:
    built = [record for record in records if record["stage"] != "build"]
    right = [record for record in built if record["ok"]]
    own = tool == "secateur"
    return [
        *(library, tool, len(records), len(built), len(right)),
        round(100 * len(right) / len(built), 1) if built else "-",
        sum(record.get("max_error") is None if own else bool(record.get("unchecked")) for record in right),
        sum(map(wrong, built)),
        sum(bool(record.get("exports")) for record in right) if own else "-",
        sum(record["free_share"] >= ENOUGH for record in right) if own else "-",
        median(record["removed"] for record in right if record.get("removed") is not None),
        median(record["seconds"] for record in right if record.get("seconds") is not None),
    ]


def wrong(record: Record) -> bool:
    """Whether the smaller model ran and was found to give something else."""
    refuted = "max_error" in record or record.get("reason", "").startswith("VerificationError")
    return record["stage"] == "verify" and not record["ok"] and refuted


def median(values: Iterable[float]) -> float | str:
    found = list(values)
    return float(f"{statistics.median(found):.3g}") if found else "-"


def causes(records: Iterable[Record]) -> dict[str, Any]:
    """Failures that say the same but for names and numbers, most frequent first; ours by all names."""
    found: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if not record["ok"]:
            found[record["tool"], record["stage"], plain(record["reason"])].append(record)
    ordered = sorted(found.items(), key=lambda item: (item[0][0] != "secateur", item[0][0], -len(item[1]), item[0]))
    rows = []
    for (tool, stage, cause), failed in ordered:
        names = [record["model"] for record in failed]
        most = len(names) if tool == "secateur" and stage != "build" else MOST_NAMES
        more = [f"and {len(names) - most} more"] if len(names) > most else []
        rows.append([tool, stage, cause, len(names), ", ".join(names[:most] + more)])
    return {"title": "Failures, by cause", "columns": ["tool", "stage", "cause", "models", "which"], "rows": rows}


def plain(reason: str) -> str:
    """A reason without what differs between models: numbers, and what stands in quotes."""
    reason = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "…", reason)
    reason = re.sub(r"\S+\.py:\d+( in [\w.]+)?", "…", reason)
    reason = re.sub(r"\[[\d, ]*\]|\([\d, ]*\)", "[…]", reason)
    return re.sub(r"\d+", "#", reason)[:160].strip()


def why_frozen(records: Iterable[Record]) -> dict[str, Any]:
    """The reasons for which parameters are on no axis, most models first."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    main: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for count, reason, _ in record.get("frozen") or ():
            found[plain(reason)][record["model"]] += count / record["parameters"] if "parameters" in record else 0.0
        if record.get("frozen") and record.get("free_share", 1.0) < ENOUGH:
            main[plain(record["frozen"][0][1])].add(record["model"])
    rows = []
    for reason, shares in sorted(found.items(), key=lambda item: (-len(main[item[0]]), -len(item[1])))[:MOST_REASONS]:
        examples = sorted(main[reason]) or sorted(shares, key=lambda model: -shares[model])
        below, most = len(main[reason]), max(shares.values())
        rows.append([reason, len(shares), below, f"{most:.0%}" if most else "-", ", ".join(examples[:MOST_NAMES])])
    return {
        "title": "What is not free, and why",
        "columns": ["reason", "models", "below 80 % mainly for it", "most of a model's parameters", "examples"],
        "rows": rows,
    }


def trimmed(record: Record) -> dict[str, Any]:
    """A record as the result keeps it: all fields, None where a tool does not offer it, and the main frozen dims."""
    values = {name: record.get(name) for name in FIELDS}
    values |= {name: record[name] for name in MORE_FIELDS if record.get(name) is not None}
    if values["reason"]:
        values["reason"] = re.sub(r"/\S*/site-packages/", "", values["reason"])
    if "frozen" in values:
        values["frozen"] = values["frozen"][:MOST_FROZEN]
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write a result, each of its values on a line of its own."""
    head = json.dumps({name: part for name, part in result.items() if name != "values"}, indent=1, ensure_ascii=False)
    values = ",\n".join(json.dumps(value, ensure_ascii=False) for value in result["values"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head.removesuffix("}").rstrip()},\n "values": [\n{values}\n]}}\n', encoding="utf-8")
