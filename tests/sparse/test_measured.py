"""What layers lose is measured, and the levels whose losses add up to least are found, as by trying all of them."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, DataError
from secateur.sparse.allocation import Allocation, Alone, Measured, Sensitivity, Share, even
from secateur.sparse.counts import count_of


def costly(prices: list[float], units: int = 100) -> list[Share]:
    """Layers whose error is a price times the cube of the share that goes."""

    def share(number: int, price: float) -> Share:
        def alone(count: int) -> Alone:
            return Alone(price * (count / units) ** 3, lambda: nn.Linear(1, count + 1))

        return Share(str(number), (), units, lambda: torch.ones(units), alone)

    return [share(number, price) for number, price in enumerate(prices)]


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9]), min_size=1, max_size=4).map(tuple),
    st.integers(0, 90),
)
@settings(deadline=None)
def test_the_levels_are_the_best_of_all(prices: list[float], levels: tuple[float, ...], percent: int) -> None:
    layers, sparsity = costly(prices), Fraction(percent, 100)
    wanted = count_of(sparsity, 100 * len(layers))
    counts = [count_of(level, 100) for level in levels]
    enough = [choice for choice in product(counts, repeat=len(layers)) if sum(choice) >= wanted]
    if not enough:
        with pytest.raises(BudgetError, match="give higher levels"):
            Measured(levels)(layers, sparsity)
        return
    best = min(sum(x.alone(n).error for x, n in zip(layers, choice, strict=True)) for choice in enough)
    gone = Measured(levels)(layers, sparsity)
    assert sum(gone) == wanted
    reached = sum(x.alone(n).error for x, n in zip(layers, gone, strict=True))
    assert reached <= best * (1 + 1e-6) + 1e-6 * max(prices)


def test_a_layer_that_counts_more_keeps_more() -> None:
    layers = costly([1.0, 1.0])
    assert Measured()(layers, 0.5) == [50, 50]
    assert Measured(weight=lambda layer: 100.0 if layer.name == "0" else 1.0)(layers, 0.5) == [10, 90]


def test_the_whole_model_is_what_sensitivity_looks_at() -> None:
    layers = costly([1.0, 1000.0])
    assert Sensitivity(lambda model: model.out_features**2)(layers, 0.5) == [50, 50]
    with pytest.raises(DataError, match=r"'0' costs .*nan.* costs must be finite"):
        Sensitivity(lambda model: float("nan"))(layers, 0.5)


def planted() -> tuple[nn.Module, Tensor]:
    """A layer that reads two inputs and next to nothing else, and one that reads all of its inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False)).eval()
    return model, torch.randn(256, 16) @ torch.diag(torch.tensor([1.0] * 2 + [1e-2] * 14))


def test_a_layer_is_measured_alone_as_it_would_become_alone() -> None:
    model, data = planted()
    seen: list[tuple[str, int, float, Tensor]] = []

    def look(layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
        for layer, n in product(layers, (0, 64, 200)):
            alone = layer.alone(n)
            seen.append((layer.name, n, alone.error, alone.model()(data)))
        return even(layers, sparsity)

    sc.sparsify(model, [data], sparsity=0.5, allocation=look)
    assert [name for name, *_ in seen] == ["0.weight"] * 3 + ["2.weight"] * 3
    for name, n, error, output in seen:
        other = "2" if name == "0.weight" else "0"
        result = sc.sparsify(model, [data], sparsity=Fraction(n, 256), exclude=[other])
        assert error == pytest.approx(result.report[0].error, rel=1e-3, abs=1e-9)
        assert output.sub(result.model(data)).square().sum() <= 1e-6 * output.square().sum()


@pytest.mark.parametrize("make", [lambda of: Measured(), lambda of: Sensitivity(of)], ids=["error", "model"])
def test_layers_that_lose_little_lose_more(make: Callable[[object], Allocation]) -> None:
    model, data = planted()

    def distance(other: nn.Module) -> float:
        return float((other(data) - model(data)).detach().square().mean())

    found = sc.sparsify(model, [data], sparsity=0.5, allocation=make(distance))
    assert found.plan.zeros == 256
    assert found.report[0].zeros > found.report[1].zeros
    assert distance(found.model) < distance(sc.sparsify(model, [data], sparsity=0.5).model)


@pytest.mark.parametrize("pattern", [sc.patterns.Unstructured("tensor"), sc.patterns.Block(2, 3)], ids=str)
def test_measuring_fits_every_pattern_that_leaves_a_choice(pattern: sc.patterns.Pattern) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    seen: list[tuple[int, int]] = []

    def measured(layers: Sequence[Share], sparsity: float | Fraction) -> list[int]:
        gone = Measured()(layers, sparsity)
        seen.extend(zip(gone, (layer.units for layer in layers), strict=True))
        return gone

    data = torch.randn(64, 4, 6, 6)
    result = sc.sparsify(model, [data], sparsity=0.5, pattern=pattern, allocation=measured, in_sequence=False)
    assert sum(n for n, _ in seen) == count_of(0.5, sum(units for _, units in seen))
    even_ = sc.sparsify(model, [data], sparsity=0.5, pattern=pattern, in_sequence=False)
    assert sum(layer.error for layer in result.report) < sum(layer.error for layer in even_.report)


def test_little_memory_takes_more_runs_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))).eval(), torch.randn(64, 16)
    one = 16 * 16 * 4
    results = [
        sc.sparsify(model, [data], sparsity=0.5, allocation=Measured(), in_sequence=False, memory=memory)
        for memory in (1 << 30, 2 * one, one)
    ]
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0].plan.stays.values(), other.plan.stays.values(), strict=True))
    with pytest.raises(DataError, match=r"'0\.weight' cannot be measured: its Gram matrix takes 1,024 bytes"):
        sc.sparsify(model, [data], sparsity=0.5, allocation=Measured(), memory=one - 1)


def test_measuring_needs_levels_and_layers_that_can_be_measured() -> None:
    for make in (lambda: Measured(levels=()), lambda: Sensitivity(lambda model: 0.0, levels=())):
        with pytest.raises(DataError, match="levels= has no sparsity to try"):
            make()
    with pytest.raises(BudgetError, match="at least 0 and below 1"):
        Measured(levels=(0.5, 1.5))(costly([1.0]), 0.5)
    with pytest.raises(DataError, match="nothing can be measured of this layer"):
        Measured()([Share("0", (4, 4), 16, lambda: torch.ones(1, 4, 4))], 0.5)
