"""Numbers and foreign text as people read them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

PERCENTAGES: Final = ("accuracy", "precision", "recall", "f1", "auc")
_ORDER: Final = ("accuracy", "precision", "recall", "f1", "loss")
_LABELS: Final = {"f1": "F1", "auc": "AUC", "mse": "MSE"}

PRIVACY_OFF: Final = (
    "PRIVACY IS OFF in this run. What this node sends is not noised:",
    "others can learn about its data from it, and even rebuild examples.",
)


def clean(value: object) -> str:
    """Text that may come from a peer, safe for a terminal: nothing in it moves the cursor or changes colours."""
    return "".join(character if character.isprintable() else "?" for character in str(value))


def number(value: object) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def format_bytes(value: object) -> str:
    """`1.2 MB`; decimal units."""
    found = number(value)
    if found is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(found) < 999.5:
            return f"{found:.0f} {unit}" if unit == "B" or found >= 99.95 else f"{found:.1f} {unit}"
        found /= 1000
    return f"{found:.1f} TB"


def format_seconds(value: object) -> str:
    """`0.31 s`, `4.2 s`, `48 s`, `3 min 20 s`, `2 h 5 min`."""
    found = number(value)
    if found is None:
        return "-"
    if found < 0.995:
        return f"{found:.2f} s"
    if found < 9.95:
        return f"{found:.1f} s"
    seconds = round(found)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def format_measure(name: str, value: object) -> str:
    """`95.7%` for what is a fraction, four significant digits for the rest."""
    found = number(value)
    if found is None:
        return "-"
    return f"{100 * found:.2f}%" if name in PERCENTAGES else f"{found:.4g}"


def measure_label(name: str) -> str:
    """The name of a measure as people write it."""
    return _LABELS.get(name, clean(name).replace("_", " "))


def ordered_measures(measures: Mapping[str, Any]) -> list[str]:
    """Names, the usual ones first."""
    return sorted(measures, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def format_budget(epsilon: object, budget: object, delta: object) -> str:
    """`epsilon 1.24 of 8 at delta 1e-05`."""
    text = f"epsilon {'-' if number(epsilon) is None else f'{number(epsilon):.2f}'}"
    if number(budget) is not None:
        text += f" of {number(budget):g}"
    return text if number(delta) is None else f"{text} at delta {number(delta):g}"


def sparkline(values: Sequence[float], width: int, levels: str = "▁▂▃▄▅▆▇█") -> str:
    """The last `width` values as one character each, from the lowest to the highest of those shown."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if high <= low:
        return levels[len(levels) // 2] * len(shown)
    return "".join(levels[min(len(levels) - 1, int((value - low) / (high - low) * len(levels)))] for value in shown)


def count(amount: int, one: str, many: str | None = None) -> str:
    """`1 peer`, `3 peers`."""
    return f"{amount} {one if amount == 1 else many or one + 's'}"
