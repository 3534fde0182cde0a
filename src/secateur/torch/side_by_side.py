"""Runs a model on several pieces of data side by side: at each product all wait until everything has been seen that it reads.

So a layer can be changed by what it reads of all data, and the layers behind it read what the changed one writes, in one run over
data of which only a piece is worked on at a time.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Semaphore, Thread

import torch
from torch import Tensor, nn

from secateur.torch.batches import run
from secateur.torch.capture import Inputs
from secateur.torch.products import Product, WatchProducts

Change = Callable[[Product, Mapping[int, Tensor]], Tensor | None]
"""Takes a product and its input in each piece that has come to it, by the number of the piece; gives the parameter that it is
to be computed with, or None for the one of the model."""


def side_by_side(
    models: Sequence[nn.Module], pieces: Sequence[Inputs], products: Sequence[Product], change: Change
) -> None:
    """Run a model on all pieces, in step.

    Each piece has a thread for what it has in memory while it waits; one at a time runs.

    Args:
        models: A copy of the model for each piece, since code may keep things in a module while it runs. They run as they
            are, and may share their parameters.
        pieces: What it reads, in parts.
        products: Where to wait, in the order in which the model comes to them. Pieces may take different ways: who does not come
            to one is waited for no longer once all wait at later ones.
        change: Called once at each product. After the last of them nothing more is computed.

    Raises:
        DataError: A piece does not fit the model.
    """
    left = {product: number for number, product in enumerate(products)}
    runs = [_Run(model, piece, left) for model, piece in zip(models, pieces, strict=True)]
    try:
        for each in runs:
            each.go_on()
        while waiting := {number: each.at[0] for number, each in enumerate(runs) if each.at is not None and left}:
            product = min(waiting.values(), key=left.__getitem__)
            here = [number for number, other in waiting.items() if other == product]
            weight = change(product, {number: each.at[1] for number in here if (each := runs[number]).at is not None})
            del left[product]
            for number in here:
                runs[number].go_on(weight)
    finally:
        for each in runs:
            each.end()


class _EndedError(BaseException):
    """Nobody waits for this run any more. No model catches it."""


class _Run:
    """One run of a model, in a thread of its own, that stops at products until it is told to go on.

    Attributes:
        at: The product that it waits at, and what that reads; None while it runs, and when it is through.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, stops: Collection[Product]) -> None:
        self.at: tuple[Product, Tensor] | None = None
        self._model, self._inputs, self._stops = model, inputs, stops
        self._weight: Tensor | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._may_run, self._stands = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def go_on(self, weight: Tensor | None = None) -> None:
        """Let it run, with this weight first, until it stops again or is through."""
        self.at, self._weight = None, weight
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
            with torch.no_grad(), WatchProducts(self._model, self._visit):
                run(self._model, self._inputs)
        except _EndedError:
            pass
        except BaseException as error:  # noqa: BLE001 - goes on in the thread that waits
            self._error = error
        finally:
            self.at = None
            self._stands.release()

    def _visit(self, product: Product, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        if product not in self._stops:
            return run()
        self.at = product, x
        del x
        self._stands.release()
        self._wait()
        weight, self._weight = self._weight, None
        return run(weight)

    def _wait(self) -> None:
        self._may_run.acquire()
        if self._ended:
            raise _EndedError
