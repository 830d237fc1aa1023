"""The checks that a command makes: one fault hides no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from adept_ray.config.errors import UserError, shorten_error

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """Something that was looked at."""

    name: str
    found: str
    """What is there, in a line."""
    faults: tuple[str, ...] = ()
    """What is wrong with it: sentences, each with what mends it."""
    looked_at: bool = True
    """Whether it could be looked at; if not, `found` says why."""


class Shows(Protocol):
    """What shows a check, such as the terminal."""

    def show_check(self, check: Check) -> None:
        """Show it."""


class CheckList:
    """The checks that were made, shown as they come."""

    def __init__(self, display: Shows) -> None:
        self._display = display
        self.checks: list[Check] = []

    @property
    def faults(self) -> list[str]:
        """What is wrong, in all."""
        return [fault for check in self.checks for fault in check.faults]

    def show(self, check: Check) -> None:
        """Keep a check and show it."""
        self.checks.append(check)
        self._display.show_check(check)

    def attempt(self, name: str, action: Callable[[], T], describe: Callable[[T], str]) -> T | None:
        """What `action` returns, shown as `describe` says; None if it fails, and that is a fault."""
        try:
            found = action()
        except UserError as problem:
            self.show(Check(name, "can't be used", (str(problem),)))
            return None
        except Exception as problem:  # of what nobody thought of; the others are to be heard, too
            what = f"{type(problem).__name__}: {shorten_error(problem)}"
            self.show(Check(name, "can't be used", (f"{name}: it fails with {what}",)))
            return None
        if text := describe(found):
            self.show(Check(name, text))
        return found

    def has_fault(self, *names: str) -> bool:
        """Whether one of these checks found a fault."""
        return any(check.faults for check in self.checks if check.name in names)
