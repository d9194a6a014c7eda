"""What is asked of a run beside its figures: whether it fits a device, or a budget, and how large it may be there."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from gptcalc.ledger.asked import Asked, Spelled, solved_for
from gptcalc.ledger.fit import Fit, Room, budget, fit, room
from gptcalc.ledger.memory import Mode, ModeName

if TYPE_CHECKING:
    from gptcalc.ledger.largest import Largest


class Questions(NamedTuple):
    """The device and the budget that a run must fit, and the name of what is solved for."""

    gpu: Room | None = None
    budget: Room | None = None
    max: str = ""

    @property
    def rooms(self) -> tuple[Room, ...]:
        """All that must hold."""
        return tuple(each for each in (self.gpu, self.budget) if each is not None)


class Answer(NamedTuple):
    """One mode's answer: the fit of the run that is shown into each room, the device's first, or what it solves."""

    mode: ModeName
    fits: tuple[Fit, ...]
    largest: "Largest | None" = None

    @property
    def does(self) -> bool:
        """Whether the run fits for all that is known, everywhere; where it is solved for, whether any does."""
        if self.largest is not None:
            return self.largest.here is not None
        return all(each.fits for each in self.fits)

    @property
    def gpu(self) -> Fit | None:
        """The fit into the device."""
        return next((each for each in self.fits if not each.room.budgeted), None)

    @property
    def budget(self) -> Fit | None:
        """The fit into the budget."""
        return next((each for each in self.fits if each.room.budgeted), None)


def questions(asked: Asked, spelled: Spelled = str) -> Questions:
    """What of a request is asked beside the figures. Raises `GptcalcError` for devices and sizes that are none."""
    readers: dict[str, Callable[[object, str], Room]] = {"gpu": room, "budget": budget}
    rooms = {
        field: read(asked[field], spelled(field)) for field, read in readers.items() if asked.get(field) is not None
    }
    return Questions(rooms.get("gpu"), rooms.get("budget"), solved_for(asked, spelled))


def answer(mode: Mode, rooms: tuple[Room, ...], largest: "Largest | None" = None) -> Answer:
    """Whether a mode fits each of the rooms."""
    return Answer(mode.name, tuple(fit(mode.totals, each) for each in rooms), largest)
