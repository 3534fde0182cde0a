"""Weights change places as the papers say: as many as before, the lowest go, and the steepest or any grow."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import BudgetError, ModelError, PlanError
from secateur.sparse.layers import Layer
from secateur.sparse.patterns import Block, NofM, Unstructured
from secateur.torch.products import Product
from secateur.train import SET, Method, RigL, Weights, masked


def one_layer(weight: Tensor, stays: Tensor, gradient: Tensor | None) -> Weights:
    rows, columns = weight.shape
    layer = Layer(Product("w", 1, 0, 0, rows), (1, rows, columns))
    gradients = {} if gradient is None else {"w": gradient}
    return Weights([layer], {"w": weight * stays}, {"w": stays}, gradients)


def by_hand(weight: Tensor, stays: Tensor, growth: Tensor, moved: int) -> set[int]:
    """The paper's algorithm on lists: drop by magnitude, then grow among all that is not kept."""
    w, live, g = weight.flatten().tolist(), stays.flatten().tolist(), growth.flatten().tolist()
    active = sorted((i for i in range(len(w)) if live[i]), key=lambda i: (abs(w[i]), i))
    kept = set(active[moved:])
    candidates = sorted((i for i in range(len(w)) if i not in kept), key=lambda i: (-abs(g[i]), -i))
    return kept | set(candidates[:moved])


@given(st.integers(1, 6), st.integers(1, 8), st.floats(0, 1), st.integers(1, 9), st.integers(0, 2**16))
@settings(max_examples=80, deadline=None)
def test_the_lowest_go_and_the_steepest_grow(rows: int, columns: int, share: float, t: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    stays = torch.rand(rows, columns, generator=generator) < share
    method = RigL(0.5, until=10, every=1, fraction=0.5)
    moved = int(method.fraction_at(t) * int(stays.sum()) + 0.5)

    new = method.choose(t, one_layer(weight, stays, gradient))["w"]

    assert set(new.flatten().nonzero().flatten().tolist()) == by_hand(weight, stays, gradient, moved)
    assert new.sum() == stays.sum()


@pytest.mark.parametrize("pattern", [Unstructured(), Unstructured("tensor"), Block(2, 3), Block(3, 5)])
@pytest.mark.parametrize("values", ["random", "zeros", "ones"])
def test_each_layer_keeps_as_many_as_it_has(pattern: Unstructured | Block, values: str) -> None:
    torch.manual_seed(0)
    makers = {"random": torch.randn, "zeros": torch.zeros, "ones": torch.ones}
    weight, gradient = makers[values](8, 12), makers[values](8, 12)
    for method in (RigL(0.5, until=100, every=1, pattern=pattern), SET(0.5, every=1, pattern=pattern)):
        stays = method.choose(0, one_layer(weight, torch.ones(8, 12, dtype=torch.bool), None))["w"]
        for t in (1, 2, 3):
            new = method.choose(t, one_layer(weight, stays, gradient))["w"]
            units = [int((pattern.units(mask.float()) > 0).sum()) for mask in (stays, new)]
            assert units[0] == units[1]
            stays = new


def test_the_share_falls_on_half_a_cosine() -> None:
    method = RigL(0.9, until=200, fraction=0.3)
    assert [method.fraction_at(t) for t in (0, 100, 200)] == pytest.approx([0.3, 0.15, 0.0])
    assert method.fraction_at(50) == pytest.approx(0.15 * (1 + 0.5**0.5))


def test_chance_is_seeded_and_differs_from_step_to_step() -> None:
    torch.manual_seed(0)
    weight, stays = torch.randn(20, 20), torch.rand(20, 20) < 0.3
    seen = one_layer(weight, stays, None)

    def grown(seed: int, t: int) -> Tensor:
        return SET(0.7, every=5, seed=seed).choose(t, seen)["w"]

    assert grown(0, 5).equal(grown(0, 5))
    assert not grown(0, 5).equal(grown(0, 10))
    assert not grown(0, 5).equal(grown(1, 5))
    counts = sum((grown(seed, 5) & ~stays).double() for seed in range(300))[~stays] / 300
    moved = int(0.3 * int(stays.sum()) + 0.5)
    assert counts.mean() == pytest.approx(moved / (int((~stays).sum()) + moved), rel=0.05)


def test_it_grows_by_the_gradient_of_the_whole_step() -> None:
    """Accumulated over batches; recomputed here without masks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data, seen = torch.randn(3, 8, 12), {}
    method = RigL(0.8, until=100, every=3)

    class Spy:
        needs_gradients = True

        def changes(self, step: int) -> bool:
            return method.changes(step)

        def choose(self, step: int, weights: Weights) -> Mapping[str, Tensor]:
            seen[step] = {name: gradient.clone() for name, gradient in weights.gradients.items()}
            return method.choose(step, weights)

    spy: Method = Spy()
    with masked(model, spy, data[0]) as training:
        for t in range(1, 4):
            optimizer.zero_grad()
            for batch in data:
                model(batch).square().sum().backward()
            if t == 3:
                expected = torch.autograd.grad(sum(model(x).square().sum() for x in data), list(model.parameters()))
            else:
                for name, mask in training.plan.stays.items():
                    assert not dict(model.named_parameters())[name].grad[~mask].any()
            old = training.plan
            optimizer.step()
        assert not old.stays["0.weight"].equal(training.plan.stays["0.weight"])
        for name, mask in training.plan.stays.items():
            weight = dict(model.named_parameters())[name]
            new = mask & ~old.stays[name]
            assert not weight[new].any()
            assert not weight[~mask].any()
            assert not optimizer.state[weight]["momentum_buffer"][new | ~mask].any()
        optimizer.zero_grad()
        model(data[0]).square().sum().backward()
        optimizer.step()
        grown = training.plan.stays["0.weight"] & ~old.stays["0.weight"]
        assert bool(model[0].weight[grown].all())
    assert set(seen) == {0, 3}
    torch.testing.assert_close(seen[3]["0.weight"], expected[0])
    torch.testing.assert_close(seen[3]["2.weight"], expected[2])


def test_a_layer_without_a_gradient_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with masked(model, RigL(0.5, until=100, every=1), torch.randn(2, 6)) as training:
        before = training.plan
        for _ in range(3):
            model(torch.randn(4, 6)).square().sum().backward()
            optimizer.step()
        assert before.stays["0.weight"].equal(training.plan.stays["0.weight"])
        assert not before.stays["2.weight"].equal(training.plan.stays["2.weight"])


def test_a_model_that_is_sparse_already_keeps_its_zeros_at_first() -> None:
    torch.manual_seed(0)
    model = nn.Linear(10, 10)
    zeros = torch.rand(10, 10).flatten().argsort() < 60
    with torch.no_grad():
        model.weight.view(-1)[zeros] = 0
    with masked(model, SET(0.6, every=5), torch.zeros(1, 10)) as training:
        assert training.plan.stays["weight"].flatten().equal(~zeros)


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (PlanError, "every is at least 1", lambda: RigL(0.5, until=10, every=0)),
        (PlanError, "fraction above 0", lambda: RigL(0.5, until=10, fraction=0.0)),
        (PlanError, "fraction above 0", lambda: SET(0.5, every=1, fraction=1.5)),
        (PlanError, "until is at least 1", lambda: RigL(0.5, until=0)),
        (PlanError, "seed is at least 0", lambda: SET(0.5, every=1, seed=-1)),
        (PlanError, "cell by cell", lambda: RigL(0.5, until=10, pattern=NofM(2, 4))),
        (BudgetError, "below 1", lambda: SET(1.5, every=1)),
    ],
)
def test_settings_out_of_range_are_refused(error: type[Exception], match: str, make: object) -> None:
    with pytest.raises(error, match=match):
        make()  # type: ignore[operator]


def test_gradients_that_are_not_finite_are_refused() -> None:
    weight, stays = torch.randn(3, 3), torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ModelError, match="not finite"):
        RigL(0.5, until=10, every=1).choose(1, one_layer(weight, stays, torch.full((3, 3), torch.nan)))
