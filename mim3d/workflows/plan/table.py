"""A plan as text: two columns that can be pasted anywhere."""

from __future__ import annotations

from typing import Any

from mim3d.workflows.plan.facts import counted
from mim3d.workflows.throughput.table import digits

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
        ("batch", f"{counted(batch['global'], 'crop')}: "
                  f"{counted(machine['devices'], 'device')} x "
                  f"{counted(batch['accumulation'], 'part')} x {batch['micro']:,}"),
        ("model FLOP", f"{digits(flop['gflop_per_crop'])} G a crop, "
                       f"{digits(flop['tflop_per_step'])} T a step"),
    ]  # fmt: skip


def _memory(facts: dict[str, Any]) -> list[tuple[str, str]]:
    memory = facts["memory"]
    return [
        ("memory of a device", f"{digits(memory['needed_gb'])} GB of "
                               f"{digits(memory['usable_gb'])}: weights and optimiser "
                               f"{digits(memory['standing_gb'])}, step "
                               f"{digits(memory['step_gb'])}"),
        ("kept for backward", f"{digits(memory['saved_per_crop_mb'])} MB a crop"),
        ("checkpoint", f"{digits(facts['checkpoint_mb'])} MB, two kept"),
    ]  # fmt: skip


def _time(facts: dict[str, Any]) -> list[tuple[str, str]]:
    time = facts["time"]
    basis = "reckoned"
    if time["measured"] is not None:
        basis = f"from a measured step of {counted(time['measured']['crops'], 'crop')}"
    rows = [
        ("step", f"{seconds(time['step_seconds'])}, {basis}; "
                 f"{digits(time['crops_per_second'])} crops/s, "
                 f"{time['mfu']:.0%} of the matrix peak"),
        ("run", f"{counted(time['steps'], 'step')}, {digits(time['epochs'])} passes: "
                f"{hours(time['hours'])}"),
    ]  # fmt: skip
    if facts["machine"]["devices"] > 1:
        rows.append(("waiting for other devices", seconds(time["exposed_seconds"])))
    return rows


def _feed(facts: dict[str, Any]) -> list[tuple[str, str]]:
    feed = facts["feed"]
    shape = " x ".join(map(str, feed["volume_shape"]))
    rows = [
        ("cohort", f"{counted(feed['volumes'], 'volume')} of {shape}: "
                   f"{digits(feed['cohort_gb'])} GB, {digits(feed['store_gb'])} GB in a store"),
        ("crops needed", f"{digits(feed['crops_per_second_per_device'])} a second and device: "
                         f"{digits(feed['crop_gb_s'])} GB/s decoded, "
                         f"{digits(feed['store_read_gb_s'])} GB/s if read from the store; the "
                         f"disk gives {digits(feed['disk_gb_s'])} GB/s"),
    ]  # fmt: skip
    if feed["resident"] is not None:
        rows += _resident(feed["resident"])
    return rows


def _resident(resident: dict[str, Any]) -> list[tuple[str, str]]:
    free, window, stay = resident["free_gb"], resident["window_cases"], resident["residence"]
    owner = "device" if resident["is_on_device"] else "process"
    what = "the whole cohort"
    if window is not None:
        what = f"{counted(resident['places'], 'place')} for the largest volume"
    said = f"{digits(resident['reserved_gb'])} GB a {owner}"
    said += "" if free is None else f" of {digits(free)}"
    rows = [("resident", f"{said}: {what}{'' if resident['fits'] else ', which does not fit'}")]
    if stay is not None:
        advised = "" if resident["advised_window"] is None else " as advised below"
        rows.append(
            ("window", f"{counted(stay['window'], 'volume')}{advised}, {stay['volumes']:,} of a "
                       f"{owner}; the disk gives one every {seconds(stay['arrival_seconds'])}; "
                       f"each stays {hours(stay['stay_seconds'] / 3600)} for "
                       f"{counted(stay['crops_per_visit'], 'crop')} (reuse "
                       f"{digits(stay['reuse'])}); all seen in "
                       f"{hours(stay['pass_seconds'] / 3600)}")
        )  # fmt: skip
    return rows


def seconds(value: float) -> str:
    """A short time."""
    if not value:
        return "0 s"
    return f"{digits(1e3 * value)} ms" if value < 1 else f"{digits(value)} s"


def hours(value: float) -> str:
    """A long time."""
    if value < MINUTES_BELOW:
        return f"{digits(60 * value)} min" if value * 60 >= 1 else seconds(value * 3600)
    return f"{digits(value)} h" if value < DAYS_FROM else f"{digits(value / 24)} days"
