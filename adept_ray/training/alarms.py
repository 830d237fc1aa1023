"""What is due by the clock in a training, so that all ranks do it after the same step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from adept_ray.method.ranks import rank, sum_over_ranks

ASK_EVERY_S = 2.0  # whether to leave: all ranks wait for an answer to that
SAVE_EVERY_S = 600.0  # what a kill may cost at most, but for the time that a checkpoint takes to be written


@dataclass
class Alarm:
    """Rings some `seconds` after it was set, by the clock of the first rank."""

    seconds: float
    since: float = field(default_factory=time.monotonic)
    rings: bool = False
    """What all ranks heard last."""

    def is_due(self) -> bool:
        """Whether it should ring, on the first rank."""
        return rank() == 0 and time.monotonic() - self.since >= self.seconds

    def set_again(self) -> None:
        """Start anew: what it rang for is done."""
        self.since, self.rings = time.monotonic(), False

    def take_ring(self) -> bool:
        """Whether it rings; if so it is set again."""
        rang = self.rings
        if rang:
            self.set_again()
        return rang


@dataclass(frozen=True)
class Alarms:
    """The alarms of a training."""

    ask: Alarm = field(default_factory=lambda: Alarm(ASK_EVERY_S))
    """To ask whether this machine will be taken away."""
    save: Alarm = field(default_factory=lambda: Alarm(SAVE_EVERY_S))
    """To save all that a resume needs."""

    def sum_with_loss(self, share: torch.Tensor, device: torch.device) -> float:
        """A loss summed over ranks from the `share` [1] of each, float64; every rank hears which alarms ring.

        They travel with it, so they cost nothing.
        """
        each = (self.ask, self.save)
        due = torch.tensor([alarm.is_due() for alarm in each], dtype=share.dtype).to(share.device)
        loss, *rings = sum_over_ranks(torch.cat([share, due]), device).cpu().tolist()
        for alarm, heard in zip(each, rings, strict=True):
            alarm.rings = heard > 0
        return float(loss)
