"""What every benchmark gives: rows that put our figure beside a reference measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measurement."""

    case: str
    metric: str
    """What was measured, with its unit: ``seconds``, ``MB/s``, ``bytes``."""
    ours: float
    reference: float | None = None
    """The same for the reference, None where the target is absolute."""
    target: float | None = None
    """What to reach: a ratio ours/reference where there is a reference, else a value; None where nothing is promised."""
    at_least: bool = False
    """Whether more is better (rates): the target is then a floor, else a ceiling."""

    @property
    def ratio(self) -> float | None:
        """Ours over the reference."""
        return None if not self.reference else self.ours / self.reference

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        value = self.ours if self.ratio is None else self.ratio
        return value >= self.target if self.at_least else value <= self.target

    def shown(self, value: float | None) -> str:
        """``value`` with three significant digits."""
        if value is None:
            return ""
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    def shown_ratio(self) -> str:
        """The ratio, empty where there is no reference."""
        return "" if self.ratio is None else f"{self.ratio:.2f}"

    def target_text(self) -> str:
        """The target with its direction."""
        return "" if self.target is None else f"{'>=' if self.at_least else '<='} {self.shown(self.target)}"

    def verdict(self) -> str:
        """``ok``, ``MISSED`` or nothing."""
        return "" if self.met is None else "ok" if self.met else "MISSED"
