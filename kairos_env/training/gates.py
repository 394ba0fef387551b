"""When a stage of training is over: by its steps, by a bar of its validation, or because that no longer improves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kairos_env.runs import did_you_mean

_HIGHER = ("psnr_",)  # beginnings of the metrics of which more is better


@dataclass(frozen=True)
class Gate:
    """What ends stage 2 before its last step. The steps always end it.

    Args:
        metric: of the validation rows, such as validation_video or psnr_10; empty: nothing but the steps.
        bar: as good as this ends it; None: no value does.
        patience: so many validations in a row without a new best end it; 0: no plateau does.
    """

    metric: str = ""
    bar: float | None = None
    patience: int = 0

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(f"gate.patience is a number of validations, or 0 for none, got {self.patience}")
        if bool(self.metric) != (self.bar is not None or self.patience > 0):
            raise ValueError(
                f"a gate needs a metric with a bar, a patience, or both; got metric {self.metric!r}, bar {self.bar}, "
                f"patience {self.patience}"
            )

    def ended(self, rows: Sequence[Mapping[str, float]]) -> bool:
        """Whether these rows of a stage, in their order, end it; the same whenever it is asked."""
        sign = 1 if self.metric.startswith(_HIGHER) else -1
        found = [sign * row[self.metric] for row in rows if self.metric in row]
        if not found:
            return False
        if self.bar is not None and found[-1] >= sign * self.bar:
            return True
        return bool(self.patience) and len(found) - 1 - found.index(max(found)) >= self.patience

    def require(self, metrics: Mapping[str, float]) -> None:
        """Raises ValueError unless the metric is among those that a validation gives."""
        if self.metric and self.metric not in metrics:
            raise ValueError(f"the gate waits for {self.metric!r}; {did_you_mean(self.metric, metrics)}")

    def __str__(self) -> str:
        ends = [] if self.bar is None else [f"{self.metric} of {self.bar:g}"]
        ends += [f"{self.patience} validations without a better {self.metric}"] if self.patience else []
        return " or ".join(["steps", *ends])
