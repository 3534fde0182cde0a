"""Networks written down by hand: `network_of(axes, tensors, contractions)`."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import pytest

from secateur.axes import Axis, Network, Slot, TensorSpec
from secateur.axes.network import Contraction

Segment = tuple[str | int, ...]
DimSpec = int | Sequence[Segment]
"""A fixed size, or segments side by side; a segment is a product, row-major, of axes by name and fixed sizes."""

NetworkOf = Callable[..., Network]


@pytest.fixture(scope="session")
def network_of() -> NetworkOf:
    return build


@pytest.fixture(scope="session")
def two_layers() -> Network:
    """in(3) -> wide(8) -> narrow(4) -> out(2): 3*8 + 8*4 + 4*2 = 64 parameters and MACs, plus the 8 numbers of a buffer."""
    return build(
        {"wide": 8, "narrow": 4},
        {
            "wide.weight": ([("wide",)], 3),
            "narrow.weight": ([("narrow",)], [("wide",)]),
            "head.weight": (2, [("narrow",)]),
            "wide.running_mean": ([("wide",)],),
        },
        [(3, [[("wide",)]]), (1, [[("narrow",)], [("wide",)]]), (2, [[("narrow",)]])],
        buffers={"wide.running_mean"},
    )


def build(
    axes: Mapping[str, int],
    tensors: Mapping[str, Sequence[DimSpec]],
    contractions: Sequence[tuple[int, Sequence[DimSpec]]] = (),
    buffers: frozenset[str] | set[str] = frozenset(),
    **fields: object,
) -> Network:
    starts = dict(zip(axes, np.cumsum([0, *axes.values()]).tolist(), strict=False))

    known: dict[tuple[Segment, ...], np.ndarray] = {}

    def units(dim: DimSpec) -> np.ndarray | None:
        if isinstance(dim, int):
            return None
        if (key := tuple(dim)) not in known:  # as in a traced network, equal dims are one array
            known[key] = _side_by_side([_product(axes, starts, segment) for segment in dim])
        return known[key]

    dims = {name: tuple(units(dim) for dim in spec) for name, spec in tensors.items()}
    specs = {
        name: TensorSpec(
            tuple(dim if isinstance(dim, int) else found.shape[1] for dim, found in zip(spec, dims[name], strict=True)),
            4,
            name not in buffers,
        )
        for name, spec in tensors.items()
    }
    return Network(
        axes=tuple(Axis(name, size, True, _slots(dims, starts[name], size)) for name, size in axes.items()),
        frozen=(),
        tensors=specs,
        dims=dims,
        contractions=tuple(
            Contraction(
                factor * prod(dim for dim in spec if isinstance(dim, int)),
                tuple(found for dim in spec if (found := units(dim)) is not None),
                "",
            )
            for factor, spec in contractions
        ),
        **fields,
    )


def _product(axes: Mapping[str, int], starts: Mapping[str, int], segment: Segment) -> np.ndarray:
    sizes = [axes[part] if isinstance(part, str) else part for part in segment]
    grid = np.indices(sizes).reshape(len(sizes), -1)
    rows = [starts[part] + row for part, row in zip(segment, grid, strict=True) if isinstance(part, str)]
    return np.stack(rows) if rows else np.full((1, prod(sizes)), -1)


def _side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    factors = max(len(part) for part in parts)
    padded = [np.pad(part, ((0, factors - len(part)), (0, 0)), constant_values=-1) for part in parts]
    return np.concatenate(padded, axis=1)


def _slots(dims: Mapping[str, tuple[np.ndarray | None, ...]], start: int, size: int) -> tuple[Slot, ...]:
    return tuple(
        Slot(tensor, d, int((units == start).any(axis=0).sum()))
        for tensor, found in dims.items()
        for d, units in enumerate(found)
        if units is not None and ((units >= start) & (units < start + size)).any()
    )
