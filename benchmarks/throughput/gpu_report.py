"""The results of `gpu.py` as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]


def as_markdown(content: Found) -> str:
    """Everything that was measured, section by section, with what was expected before."""
    facts, found = content["machine"], content["versions"]
    head = [
        f"# {facts.get('gpu', facts['processor'])}",
        f"torch {found['torch']}, MONAI {found['monai']}, Python {found['python']}, commit "
        f"{found['commit']}; CUDA {facts.get('cuda', 'none')}",
        f"clocks at the start: {content['clocks'] or 'unknown'}; "
        f"at the end: {content.get('clocks_at_the_end') or 'unknown'}",
    ]
    parts = [_section(name, part) for name, part in content["sections"].items()]
    return "\n\n".join([*head, *parts]) + "\n"


def _section(name: str, part: Found) -> str:
    lines = [f"## {name} ({part['seconds']:.0f} s)", f"Expected: {part['expected']}."]
    if "skipped" in part:
        return "\n\n".join([*lines, f"Skipped: {part['skipped']}."])
    if "error" in part:
        return "\n\n".join([*lines, f"Failed: `{part['error'].strip().splitlines()[-1]}`."])
    return "\n\n".join([*lines, *BODIES[name](part)])


def _ceilings(part: Found) -> list[str]:
    rates = ("bf16", "fp32", "fp32_medium")
    rows = [(name, f"{part[name] / 1e12:,.1f} TFLOP/s") for name in rates if part[name]]
    rows += [(name, f"{part[name] / 1e9:,.0f} GB/s")
             for name in ("copy", "read", "write", "host_to_device") if part[name]]  # fmt: skip
    if part["launch_seconds"]:
        rows.append(("a launch", f"{1e6 * part['launch_seconds']:.1f} us"))
    rows.append(("error of fp32 `medium`", f"{part['fp32_medium_error']:.0e}"))
    return [table(("limit", "value"), rows)]


def _equality(part: Found) -> list[str]:
    rows = [(key, value) for key, value in part.items() if "/" in key]
    return [table(("network", "against MONAI"), rows)]


def _pretrain(part: Found) -> list[str]:
    head = ("network", "decoder", "compiled", "batch", "ms", "crops/s", "MFU", "peak GB")
    rows = [
        (
            f"{row['preset']}/{row['edge']}", row["decoder"], "yes" if row["compiled"] else "",
            row["batch"], number(row["ms"]), number(row["crops_per_second"]),
            f"{row['mfu']:.1%}", number(row["peak_gb"]),
        )
        for row in part["rows"] if "skipped" not in row
    ]  # fmt: skip
    left_out = [row["skipped"] for row in part["rows"] if "skipped" in row]
    return [table(head, rows), *left_out]


def _monai(part: Found) -> list[str]:
    decoders = list(part["rows"][0]["ours_over_theirs"]) if part["rows"] else []
    head = ("network", "side", "batch", "ms", "crops/s", "peak GB",
            *(f"ours ({decoder}) / theirs" for decoder in decoders))  # fmt: skip
    rows = [
        (
            f"{row['preset']}/{row['edge']}", row["name"], row["batch"], number(row["ms"]),
            number(row["crops_per_second"]), number(row["peak_gb"]),
            *(number(row["ours_over_theirs"].get(decoder)) for decoder in decoders),
        )
        for row in part["rows"]
    ]  # fmt: skip
    return [table(head, rows)]


def _profile(part: Found) -> list[str]:
    found = {name: value for name, value in part.items() if isinstance(value, dict)}
    parts = [f"{part['network']}, batch {part['batch']}."]
    for decoder, one in found.items():
        rows = [(kind, f"{share:.1%}") for kind, share in one.get("shares", {}).items()]
        syncs = ", ".join(one["syncs"]) or "none"
        parts.append(
            f"Decoder {decoder}: {one['kernels']} kernels a step, gaps {one.get('gaps', 0):.1%}, "
            f"waits for the device: {syncs}."
        )
        parts.append(table(("kernels", "share"), rows))
    return parts


def _resident(part: Found) -> list[str]:
    rows = [(row["what"], number(row["ms"]), number(row["crops_per_second"]),
             number(row["ms_of_drawing_on_the_host"])) for row in part["rows"]]  # fmt: skip
    step = part["step"]
    fed = [(name, number(one["ms"]), f"{one['fed_over_fixed']:.3f}")
           for name, one in step.items() if isinstance(one, dict)]  # fmt: skip
    return [
        f"Batch {part['batch']}, equal {part['equality']}.",
        table(("augmentation", "ms", "crops/s", "ms of drawing on the host"), rows),
        f"Step of {step['network']} on fixed batches: {number(step['fixed_ms'])} ms.",
        table(("fed with", "ms", "fed / fixed"), fed),
    ]


def _finetune(part: Found) -> list[str]:
    rows = [(row["name"], number(row["ms"]), number(row["s"]), number(row["peak_gb"]))
            for row in part["rows"]]  # fmt: skip
    about = f"Batch {part['batch']}, {part['equality'] or 'not compared'}."
    return [about, table(("side", "ms", "S", "peak GB"), rows)]


def _window(part: Found) -> list[str]:
    rows = [(row["name"], number(row["seconds"]), number(row["s"]), number(row["peak_gb"]))
            for row in part["rows"]]  # fmt: skip
    size = " x ".join(map(str, part["volume"]))
    return [f"{size}, {part['equality']}.", table(("side", "s", "S", "peak GB"), rows)]


BODIES: dict[str, Callable[[Found], list[str]]] = {
    "ceilings": _ceilings,
    "equality": _equality,
    "pretrain": _pretrain,
    "monai": _monai,
    "profile": _profile,
    "resident": _resident,
    "finetune": _finetune,
    "window": _window,
}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def number(value: float | None) -> str:
    """Three digits, or nothing."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
