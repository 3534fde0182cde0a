"""Are the statements of the zoo right, judged without the tracer?

An axis is a permutation symmetry. So for every stated axis a search finds where in each slot its units lie, such that
rolling the units by one leaves the outputs as they are, and swapping the first two does (together these make every
permutation); and leaving any one slot out must change them.
"""

from collections.abc import Iterator, Mapping
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from secateur.testing.zoo import ZOO, ExpectedAxis, ZooEntry, call, in_float64

Layout = tuple[int, int, int]
"""Where `n` units lie in a slot: first position, and how many positions are outside and inside: `[outer, n, inner]`."""

NUMERIC = [entry for entry in ZOO if entry.numeric]
AXES = [pytest.param(entry, axis, id=f"{entry.name}-{i}") for entry in NUMERIC for i, axis in enumerate(entry.axes)]

# float64 sums in another order differ by about 1e-16 for each term; a unit out of place changes outputs of order 1.
TOLERANCE = 1e-11
CHANGED = 1e-6

# (entry, slot, units) -> the positions of the slot that hold the axis, where it shares the slot with other units
PARTS = {
    ("dense_concat", "layers.1.norm", 4): (0, 4),
    ("dense_concat", "layers.1.conv", 4): (0, 4),
    ("dense_concat", "transition", 4): (0, 4),
    ("dense_concat", "layers.1.norm", 3): (4, 7),
    ("dense_concat", "layers.1.conv", 3): (4, 7),
    ("dense_concat", "transition", 3): (4, 7),
    ("dense_concat", "transition", 5): (7, 12),
    ("unet", "decoder", 5): (0, 5),
    ("unet", "decoder", 4): (5, 9),
    ("zero_padded_shortcut", "conv2", 6): (2, 8),
    ("zero_padded_shortcut", "norm2", 6): (2, 8),
    ("zero_padded_shortcut", "head", 6): (2, 8),
    ("concat_group_norm", "norm", 2): (0, 8),
    ("concat_group_norm", "mix", 2): (0, 8),
    ("concat_group_norm", "norm", 3): (8, 20),
    ("concat_group_norm", "mix", 3): (8, 20),
    ("split_by_two_attributes", "project", 5): (0, 5),
    ("split_by_two_attributes", "project", 6): (5, 11),
    ("split_by_same_attribute", "project", 5): (0, 10),
    ("split_by_same_attribute", "project", 6): (10, 16),
    ("literal_slice", "project", 6): (4, 10),
    ("several_inputs_and_outputs", "fuse", 5): (0, 5),
    ("several_inputs_and_outputs", "fuse", 6): (5, 11),
    ("in_place_writes", "stem", 5): (0, 5),
    ("in_place_writes", "side", 5): (0, 5),
    ("in_place_writes", "head", 5): (0, 5),
    ("in_place_writes", "stem", 3): (5, 8),
    ("in_place_writes", "side", 3): (5, 8),
    ("in_place_writes", "head", 3): (5, 8),
}


def test_names_are_unique() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)


def test_batches_have_two_examples_and_the_stated_dtype() -> None:
    for entry in ZOO:
        for tensor in tensors_in(entry.inputs()):
            assert len(tensor) == 2, entry.name
            assert not tensor.is_floating_point() or tensor.dtype == entry.dtype, entry.name
        assert all(p.dtype == entry.dtype for p in entry.build().parameters()), entry.name


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_every_stated_slot_exists_and_can_hold_the_units(entry: ZooEntry) -> None:
    sizes = sizes_of(entry.build())
    for axis in entry.axes:
        assert axis.units >= 2
        for slot in axis.slots:
            assert slot in sizes
            start, stop = part_of(entry, axis, slot, sizes[slot])
            assert stop <= sizes[slot]
            assert (stop - start) % axis.units == 0, f"{slot} has {sizes[slot]} positions for {axis.units} units"


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_no_axis_is_stated_twice(entry: ZooEntry) -> None:
    sizes = sizes_of(entry.build())
    regions = [
        (axis.units, axis.slots, {part_of(entry, axis, slot, sizes[slot]) for slot in axis.slots})
        for axis in entry.axes
    ]
    assert all(region not in regions[:i] for i, region in enumerate(regions))


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_building_twice_gives_the_same_model_and_inputs_and_draws_nothing_from_the_caller(entry: ZooEntry) -> None:
    before = torch.random.get_rng_state()
    first, second = entry.build(), entry.build()
    assert first is not second
    assert list(tensors_of(first)) == list(tensors_of(second))
    lefts = [*tensors_of(first).values(), *tensors_in(entry.inputs())]
    rights = [*tensors_of(second).values(), *tensors_in(entry.inputs())]
    for left, right in zip(lefts, rights, strict=True):
        assert left.shape == right.shape
        assert not entry.numeric or torch.equal(left, right)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in first.modules())


@pytest.mark.parametrize("entry", NUMERIC, ids=lambda entry: entry.name)
def test_outputs_are_finite_and_of_order_one(entry: ZooEntry) -> None:
    model = entry.build().double()
    out = outputs(entry, model)
    assert torch.isfinite(out).all()
    assert 0.02 < out.std() < 50


# torch says of projections that they take its slower path; the outputs are the same
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("entry", NUMERIC, ids=lambda entry: entry.name)
def test_models_run_as_built(entry: ZooEntry) -> None:
    with torch.no_grad():
        assert tensors_in(call(entry.build(), entry.inputs()))


@pytest.mark.parametrize("entry", NUMERIC, ids=lambda entry: entry.name)
def test_no_tensor_along_an_axis_is_constant(entry: ZooEntry) -> None:
    stored = tensors_of(entry.build())
    for name, dim in {tuple(slot.rsplit(":", 1)) for axis in entry.axes for slot in axis.slots}:
        if name not in stored:  # a list, all of whose modules have parameters of their own
            continue
        rows = stored[name].movedim(int(dim), 0).flatten(1) if stored[name].ndim > 1 else stored[name][:, None]
        assert len({tuple(row) for row in rows.tolist()}) == len(rows), f"{name}:{dim}"


@pytest.mark.parametrize(("entry", "axis"), AXES)
def test_a_stated_axis_is_a_permutation_symmetry_and_needs_all_of_its_slots(
    entry: ZooEntry, axis: ExpectedAxis
) -> None:
    model = entry.build().double()
    expected = outputs(entry, model)
    roll, swap = torch.arange(axis.units).roll(1), torch.tensor([1, 0, *range(2, axis.units)])
    layouts = next(
        (layouts for layouts in candidates(entry, axis, model) if change(entry, expected, layouts, roll) < TOLERANCE),
        None,
    )
    assert layouts is not None, "rolling the units changes the outputs, wherever the units may lie in the slots"
    assert change(entry, expected, layouts, swap) < TOLERANCE
    for left_out in layouts:
        others = {slot: layout for slot, layout in layouts.items() if slot != left_out}
        assert change(entry, expected, others, roll) > CHANGED, f"the outputs do not notice that {left_out} is left out"


def change(entry: ZooEntry, expected: Tensor, layouts: Mapping[str, Layout], units: Tensor) -> float:
    """The largest change of the outputs, relative to the largest output, when the units are put in this order."""
    model = entry.build().double()
    stored = tensors_of(model)
    with torch.no_grad():
        for slot, (start, outer, inner) in layouts.items():
            name, dim = slot.rsplit(":", 1)
            if name not in stored:
                modules = list(model.get_submodule(name))
                for place, unit in enumerate(units.tolist()):
                    model.get_submodule(name)[place] = modules[unit]
                continue
            order = torch.arange(stored[name].shape[int(dim)])
            stop = start + outer * len(units) * inner
            order[start:stop] = order[start:stop].view(outer, len(units), inner)[:, units].reshape(-1)
            stored[name].copy_(stored[name].index_select(int(dim), order))
    return float((outputs(entry, model) - expected).abs().max() / expected.abs().max())


def candidates(entry: ZooEntry, axis: ExpectedAxis, model: nn.Module) -> Iterator[dict[str, Layout]]:
    """Every way to lay the units out; tensors of one module that are equally long are laid out alike."""
    sizes = sizes_of(model)
    alike: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for slot in sorted(axis.slots):
        part = part_of(entry, axis, slot, sizes[slot])
        alike.setdefault((module_of(slot), part), []).append(slot)
    choices = [list(layouts_of(start, stop, axis.units)) for _, (start, stop) in alike]
    for chosen in product(*choices):
        yield {slot: layout for slots, layout in zip(alike.values(), chosen, strict=True) for slot in slots}


def layouts_of(start: int, stop: int, units: int) -> Iterator[Layout]:
    each = (stop - start) // units
    yield from ((start, each // inner, inner) for inner in range(1, each + 1) if each % inner == 0)


def part_of(entry: ZooEntry, axis: ExpectedAxis, slot: str, size: int) -> tuple[int, int]:
    if size == axis.units:
        return 0, size
    return PARTS.get((entry.name, module_of(slot), axis.units), (0, size))


def module_of(slot: str) -> str:
    return slot.rsplit(".", 1)[0]


def sizes_of(model: nn.Module) -> dict[str, int]:
    lists = {f"{name}:0": len(m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    return lists | {f"{name}:{dim}": size for name, t in tensors_of(model).items() for dim, size in enumerate(t.shape)}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def outputs(entry: ZooEntry, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([x.flatten() for x in tensors_in(call(model, in_float64(entry.inputs())))])


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    assert isinstance(value, tuple)
    return [tensor for part in value for tensor in tensors_in(part)]
