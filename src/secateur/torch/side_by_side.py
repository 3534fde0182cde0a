"""Runs a model on several pieces of data side by side: all wait at each product, or block, until all that it reads is there.

So a layer can be changed by what it reads of all data, and the layers behind it read what the changed one writes, in one run over
data of which only a piece is worked on at a time.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur.torch.batches import run
from secateur.torch.capture import Inputs
from secateur.torch.products import WatchProducts
from secateur.torch.spill import Spill

Place = TypeVar("Place", bound=Hashable)
Change = Callable[[Place, Mapping[int, Any]], Tensor | None]
"""Takes a place and what it reads in each piece that has come to it, by the number of the piece. Where the place is a product,
gives the parameter that it is to be computed with, or None for the one of the model."""
Visit = Callable[[Any, Any, Callable[..., Any]], Any]
"""Takes a place, what it reads, and a function that runs it."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module was called with."""


def side_by_side(
    models: Sequence[nn.Module],
    pieces: Sequence[Inputs],
    places: Sequence[Place],
    change: Change[Place],
    watch: Callable[[nn.Module, Any], AbstractContextManager[Any]] = WatchProducts,
    room: Path | None = None,
) -> None:
    """Run a model on all pieces, in step.

    Each piece has a thread for what it has in memory while it waits; one at a time runs.

    Args:
        models: A copy of the model for each piece, since code may keep things in a module while it runs. They run as they
            are, and may share their parameters.
        pieces: What it reads, in parts.
        places: Where to wait, in the order in which the model comes to them: products, or what else `watch` shows. Pieces may
            take different ways: who does not come to one is waited for no longer once all wait at later ones.
        change: Called once at each place. After the last of them nothing more is computed.
        watch: Shows places of a model to a visitor while it runs.
        room: A folder for what runs have in memory while they wait, if that is on the CPU; None = it stays in memory.

    Raises:
        DataError: A piece does not fit the model, or the folder is full.
    """
    left = {place: number for number, place in enumerate(places)}
    runs = [
        _Run(partial(run, model, piece), partial(watch, model), left, None if room is None else Spill(room))
        for model, piece in zip(models, pieces, strict=True)
    ]
    try:
        for each in runs:
            each.go_on()
        while waiting := {number: each.place for number, each in enumerate(runs) if each.place is not None}:
            place = min(waiting.values(), key=left.__getitem__)
            here = [number for number, other in waiting.items() if other == place]
            weight = change(place, {number: runs[number].read for number in here})
            del left[place]
            if not left:
                break
            for number in here:
                runs[number].go_on(weight)
    finally:
        for each in runs:
            each.end()


@contextmanager
def watch_modules(names: Sequence[str], model: nn.Module, visit: Visit) -> Iterator[None]:
    """Show what modules of these names are called with, a `Call`, to a visitor while a model runs."""
    attributes = {name: vars(model.get_submodule(name)) for name in names}
    before = {name: model.get_submodule(name).forward for name in names}
    own = {name for name in names if "forward" in attributes[name]}

    def shown(name: str, *args: Any, **kwargs: Any) -> Any:
        return visit(name, (args, kwargs), lambda _=None: before[name](*args, **kwargs))

    try:
        for name in names:
            attributes[name]["forward"] = partial(shown, name)
        yield
    finally:
        for name in names:
            if name in own:
                attributes[name]["forward"] = before[name]
            else:
                attributes[name].pop("forward", None)


class _EndedError(BaseException):
    """Nobody waits for this run any more. No model catches it."""


class _Run:
    """One run of a model, in a thread of its own, that stops at places until it is told to go on.

    Attributes:
        place: Where it waits; None while it runs, and when it is through.
        read: What the place reads.
    """

    def __init__(
        self,
        work: Callable[[], object],
        watch: Callable[[Visit], AbstractContextManager[Any]],
        stops: Collection[Hashable],
        spill: Spill | None,
    ) -> None:
        self.place: Any = None
        self.read: Any = None
        self._all, self._watch, self._stops, self._spill = work, watch, stops, spill
        self._weight: Tensor | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._may_run, self._stands = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def go_on(self, weight: Tensor | None = None) -> None:
        """Let it run, with this weight first, until it stops again or is through."""
        self.place, self.read, self._weight = None, None, weight
        self._may_run.release()
        self._stands.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let it run no more."""
        self._ended = True
        self._may_run.release()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._wait()
            with torch.no_grad(), self._spill or nullcontext(), self._watch(self._visit):
                self._all()
        except _EndedError:
            pass
        except BaseException as error:  # noqa: BLE001 - goes on in the thread that waits
            self._error = error
        finally:
            self.place = self.read = None
            self._stands.release()

    def _visit(self, place: Any, x: Any, run: Callable[..., Any]) -> Any:
        if place not in self._stops:
            return run()
        self.place, self.read = place, x
        del x
        if self._spill is not None:
            self._spill.spill()
        self._stands.release()
        self._wait()
        weight, self._weight = self._weight, None
        return run(weight)

    def _wait(self) -> None:
        self._may_run.acquire()
        if self._ended:
            raise _EndedError
