"""A plan as text: two columns that can be pasted anywhere."""

from __future__ import annotations

from typing import Any

MINUTES_BELOW, DAYS_FROM = 2.0, 72.0
"""Hours below which a time is told in minutes, and from which in days."""


def as_text(facts: dict[str, Any]) -> str:
    """Rows of a Markdown table, then warnings and assumptions."""
    rows = [row for part in (_model, _memory, _time, _feed) for row in part(facts)]
    width = max(len(name) for name, _ in rows)
    lines = [f"| {'what':{width}} | planned |", f"|{'-' * (width + 2)}|---|"]
    lines += [f"| {name:{width}} | {text} |" for name, text in rows]
    lines += [f"warning: {warning}" for warning in facts["warnings"]]
    lines += [f"assumed: {assumption}" for assumption in facts["assumptions"]]
    return "\n".join(lines)


def _model(facts: dict[str, Any]) -> list[tuple[str, str]]:
    parameters, tokens, batch = facts["parameters"], facts["tokens"], facts["batch"]
    machine, flop = facts["machine"], facts["flop"]
    return [
        ("machine", f"{machine['devices']} x {machine['name']} ({machine['source']}), "
                    f"{machine['precision']}, {machine['strategy']}"),
        ("parameters", f"{parameters['total']:,}: encoder {parameters['encoder']:,}, "
                       f"decoder {parameters['decoder']:,}"),
        ("tokens of a crop", f"{tokens['all']:,}: {tokens['visible']:,} encoded, "
                             f"{tokens['decoded']:,} predicted"),
        ("batch", f"{batch['global']:,} crops: {machine['devices']} devices x "
                  f"{batch['accumulation']} part{'s' * (batch['accumulation'] > 1)} x "
                  f"{batch['micro']:,}"),
        ("model FLOP", f"{number(flop['gflop_per_crop'])} G a crop, "
                       f"{number(flop['tflop_per_step'])} T a step"),
    ]  # fmt: skip


def _memory(facts: dict[str, Any]) -> list[tuple[str, str]]:
    memory = facts["memory"]
    return [
        ("memory of a device", f"{number(memory['needed_gb'])} GB of "
                               f"{number(memory['usable_gb'])}: weights and optimiser "
                               f"{number(memory['standing_gb'])}, step "
                               f"{number(memory['step_gb'])}"),
        ("kept for backward", f"{number(memory['saved_per_crop_mb'])} MB a crop"),
        ("checkpoint", f"{number(facts['checkpoint_mb'])} MB, two kept"),
    ]  # fmt: skip


def _time(facts: dict[str, Any]) -> list[tuple[str, str]]:
    time = facts["time"]
    basis = "reckoned"
    if time["measured"] is not None:
        basis = f"from a measured step of {time['measured']['crops']} crops"
    rows = [
        ("step", f"{seconds(time['step_seconds'])}, {basis}; "
                 f"{number(time['crops_per_second'])} crops/s, "
                 f"{time['mfu']:.0%} of the matrix peak"),
        ("run", f"{time['steps']:,} steps, {number(time['epochs'])} passes: "
                f"{hours(time['hours'])}"),
    ]  # fmt: skip
    if facts["machine"]["devices"] > 1:
        rows.append(("waiting for other devices", seconds(time["exposed_seconds"])))
    return rows


def _feed(facts: dict[str, Any]) -> list[tuple[str, str]]:
    feed = facts["feed"]
    shape = " x ".join(map(str, feed["volume_shape"]))
    rows = [
        ("cohort", f"{feed['volumes']:,} volumes of {shape}: {number(feed['cohort_gb'])} GB, "
                   f"{number(feed['store_gb'])} GB in a store"),
        ("crops needed", f"{number(feed['crops_per_second_per_device'])} a second and device: "
                         f"{number(feed['crop_gb_s'])} GB/s decoded, "
                         f"{number(feed['store_read_gb_s'])} GB/s if read from the store; the "
                         f"disk gives {number(feed['disk_gb_s'])}"),
    ]  # fmt: skip
    stay = feed["residence"]
    if feed["resident_holds_share"]:
        rows.append(("resident", f"{number(feed['resident_gb'])} GB a device hold its share"))
    elif stay is not None:
        rows.append(
            ("resident", f"{stay['volumes']:,} volumes a device; one arrives every "
                         f"{seconds(stay['arrival_seconds'])} and stays "
                         f"{hours(stay['stay_seconds'] / 3600)}; "
                         f"{number(stay['crops_per_visit'])} crops a visit (reuse "
                         f"{number(stay['reuse'])}); all seen in "
                         f"{hours(stay['pass_seconds'] / 3600)}")
        )  # fmt: skip
    return rows


def number(value: float) -> str:
    """Three digits, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value else "0"


def seconds(value: float) -> str:
    """A short time."""
    return f"{number(1e3 * value)} ms" if value < 1 else f"{number(value)} s"


def hours(value: float) -> str:
    """A long time."""
    if value < MINUTES_BELOW:
        return f"{number(60 * value)} min" if value * 60 >= 1 else seconds(value * 3600)
    return f"{number(value)} h" if value < DAYS_FROM else f"{number(value / 24)} days"
