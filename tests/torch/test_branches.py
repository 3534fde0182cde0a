"""Branches that join by addition are found from the run alone, and removing them is silencing them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.axes import BRANCHES, Branch, Branches, Removal
from secateur.errors import ModelError, PlanError, VerificationError
from secateur.torch.capture import open_paths
from secateur.torch.verify import difference, zero_is_prune_error

IMAGE, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 8)


class Basic(nn.Module):
    """A basic block of a ResNet, with a downsample where it strides; one ReLU serves in two places."""

    def __init__(self, ins: int, outs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(ins, outs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        y: Tensor = self.relu(out)
        return y


class Attention(nn.Module):
    """Returns its weights too, which nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, *, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) * 0.3).softmax(-1)
        return self.out(weights @ v), weights


class Layer(nn.Module):
    """Pre-norm, with a gate and a dropout before the second joint."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(8), Attention(), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.gamma, self.drop = nn.Parameter(torch.rand(8)), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attn(x=self.norm1(x))
        x = x + y
        return x + self.drop(self.gamma * self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class Skip(nn.Module):
    """`x + f(x)`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


class Shared(nn.Module):
    """One branch, in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.head = Skip(nn.Linear(8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.skip(self.skip(x).tanh()))  # type: ignore[no-any-return]


class Tapped(nn.Module):
    """What the first layer of the branch gives is a result of the model too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.one(x)
        return self.head(x + self.two(hidden.relu())), hidden


class Parallel(nn.Module):
    """Two branches that are added up first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x) + x  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Attention in the code between the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        return x + self.out((q @ q.transpose(1, 2)).softmax(-1) @ q)  # type: ignore[no-any-return]


class Joined(nn.Module):
    """A concatenation, and a sum of two that know nothing of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(torch.cat([x, self.one(x)], -1))  # type: ignore[no-any-return]


def images(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *blocks)


Case = tuple[Callable[[], nn.Module], Tensor, list[set[str]]]
CASES: dict[str, Case] = {
    "basic blocks": (
        lambda: images(Basic(4, 4), Basic(4, 6, 2), Basic(6, 6)),
        IMAGE,
        [{f"{i}.{name}" for name in ("conv1", "bn1", "conv2", "bn2")} for i in (2, 4)],
    ),
    "pre-norm": (
        lambda: nn.Sequential(Layer(), Layer()),
        TOKENS,
        [{f"{i}.{name}" for name in names} for i in (0, 1) for names in (("norm1", "attn"), ("norm2", "mlp"))],
    ),
    "torch's own layer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        TOKENS,
        [{f"layers.{i}.{n}" for n in names} for i in (0, 1) for names in (("self_attn",), ("linear1", "linear2"))],
    ),
    "nested": (
        lambda: Skip(nn.Sequential(nn.Linear(8, 8), Skip(nn.Linear(8, 8)), nn.Linear(8, 8))),
        TOKENS,
        [{"inner.1.inner"}, {"inner"}],
    ),
    "shared": (Shared, TOKENS, [{"skip.inner"}]),
    "tapped": (Tapped, TOKENS, [{"two"}]),
    "parallel": (Parallel, TOKENS, [{"one"}, {"two"}]),
    "joined otherwise": (Joined, TOKENS, []),
}


def built(case: str) -> tuple[nn.Module, Tensor, list[set[str]]]:
    build, inputs, stated = CASES[case]
    torch.manual_seed(0)
    return build().eval(), inputs, stated


def with_branches(network: sc.TracedNetwork, *branches: Branch) -> sc.TracedNetwork:
    return replace(network, find_branches=lambda: Branches(branches))


def halved(network: sc.TracedNetwork) -> dict[str, range]:
    return {axis.name: range((axis.size + 1) // 2) for axis in network.axes}


@pytest.mark.parametrize("case", CASES)
def test_branches_are_those_stated_by_hand(case: str) -> None:
    model, inputs, stated = built(case)
    found = [{one.module for one in branch.removal.modules} for branch in sc.trace(model, inputs).branches]
    assert found == stated


@pytest.mark.parametrize("form", ["modules", "graph"])
@pytest.mark.parametrize("case", [case for case, (_, _, stated) in CASES.items() if stated])
def test_each_branch_goes_exactly_with_what_it_costs(case: str, form: str, tmp_path: Path) -> None:
    model, inputs, _ = built(case)
    model = sc.as_graph(model, inputs) if form == "graph" else model
    network = sc.trace(model, inputs)
    every = range(len(network.branches))
    for gone in [*({number} for number in every), set(every)]:
        plan = network.plan({**halved(network), BRANCHES: [n for n in every if n not in gone]})
        proof, small = sc.verify(model, plan, inputs), sc.compact(model, plan)
        assert proof.zero_is_prune < 1e-12
        cost, counter = network.cost(plan), FlopCounterMode(display=False)
        with counter, torch.no_grad(), open_paths():  # fused attention is not counted
            small(inputs)
        assert sum(p.numel() for p in small.parameters()) == cost.parameters
        assert cost.bytes == sum(t.nbytes for t in (*small.parameters(), *small.buffers()))
        assert counter.get_total_flops() == 2 * cost.macs
        assert difference(sc.unmask(sc.mask(model, plan))(inputs), model(inputs)) == 0
        sc.save(small, tmp_path / str(sorted(gone)))
        assert difference(sc.load(model, tmp_path / str(sorted(gone)))(inputs), small(inputs)) == 0


@pytest.mark.parametrize("case", ["basic blocks", "pre-norm", "nested"])
def test_a_masked_branch_leaves_what_it_is_added_to(case: str) -> None:
    model, inputs, _ = built(case)
    network = sc.trace(model, inputs)
    masked = sc.mask(model, network.plan({BRANCHES: []}))
    assert difference(masked(inputs), model(inputs)) > 1e-3
    torch.testing.assert_close(masked(inputs), sc.compact(model, network.plan({BRANCHES: []}))(inputs))


def test_a_module_wrongly_among_those_of_a_branch_fails_the_proof() -> None:
    model, inputs, _ = built("pre-norm")
    network = sc.trace(model, inputs)
    right, wrong = network.branches[0], network.branches[1]
    mixed = replace(right, removal=Removal((*right.removal.modules, *wrong.removal.modules[1:])))
    mutant = with_branches(network, mixed, *network.branches[1:])
    plan = mutant.plan({BRANCHES: [1, 2, 3]})
    with pytest.raises(VerificationError, match="removes other modules than its branches and axes ask for"):
        sc.verify(model, plan, inputs)
    silent = replace(mixed.removal, modules=tuple(replace(m, last=m.module == "0.attn") for m in mixed.removal.modules))
    mutant = with_branches(network, replace(right, removal=silent), *network.branches[1:])
    assert zero_is_prune_error(model, mutant, mutant.plan({BRANCHES: [1, 2, 3]}), inputs) > 1e-3


def test_a_tensor_wrongly_counted_as_gone_fails_the_count() -> None:
    model, inputs, _ = built("pre-norm")
    network = sc.trace(model, inputs)
    removal = replace(network.branches[0].removal, tensors=(*network.branches[0].removal.tensors, "1.norm1.weight"))
    mutant = with_branches(network, replace(network.branches[0], removal=removal), *network.branches[1:])
    plan = mutant.plan({BRANCHES: [1, 2, 3]})
    assert sum(p.numel() for p in sc.compact(model, plan).parameters()) != mutant.cost(plan).parameters


def test_to_print_a_network_runs_no_model() -> None:
    model, inputs, _ = built("pre-norm")
    network = sc.trace(model, inputs)
    runs: list[object] = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(None))
    assert "branches" not in str(network)
    assert not runs
    handle.remove()
    names = [branch.name for branch in network.branches]
    assert all(name in str(network) for name in names)


def test_an_outer_branch_takes_the_inner_one_along() -> None:
    model, inputs, _ = built("nested")
    network = sc.trace(model, inputs)
    assert network.branches[1].within == (0,)
    assert network.plan({BRANCHES: [0]}).axes[-1].kept == ()


def test_code_that_multiplies_between_modules_needs_the_graph_form() -> None:
    model = Functional().eval()
    network = sc.trace(model, TOKENS)
    assert not network.branches
    (frozen,) = network.frozen_branches
    assert "what multiplies at" in frozen.reason
    assert "as_graph" in frozen.reason
    assert "test_branches.py" in frozen.where
    assert frozen.reason in str(network)
    graph = sc.as_graph(model, TOKENS)
    network = sc.trace(graph, TOKENS)
    small = sc.compact(graph, network.plan({BRANCHES: []}))
    torch.testing.assert_close(small(TOKENS), TOKENS)
    assert not list(small.parameters())


def test_a_choice_of_branches_that_means_nothing_is_refused() -> None:
    model, inputs, _ = built("basic blocks")
    network = sc.trace(model, inputs)
    with pytest.raises(PlanError, match=r"which branches stay, each once, as numbers in 0\.\.1"):
        network.plan({BRANCHES: [0, 2]})
    with pytest.raises(PlanError, match=r"give cost\(\) a plan"):
        network.cost({BRANCHES: 1})
    with pytest.raises(PlanError, match="no branches that could be removed"):
        sc.trace(nn.Linear(2, 2), torch.zeros(1, 2)).plan({BRANCHES: [0]})


def test_allocators_leave_branches_alone_and_their_plans_take_a_choice_of_them() -> None:
    model, inputs, _ = built("basic blocks")
    network = sc.trace(model, inputs)
    plan = sc.allocate.Global(sc.Budget(params=0.6))(network, sc.scores.Magnitude()(network))
    assert BRANCHES not in plan.kept
    both = network.plan({**plan.kept, BRANCHES: [1]})
    assert network.cost(both).parameters < network.cost(plan).parameters
    data = [torch.randn(8, 3, 8, 8)]
    mended = sc.compensation.compensate(network, sc.compact(model, both), both, data, [sc.compensation.Refit()])
    assert torch.isfinite(mended(inputs)).all()


def test_a_plan_after_another_is_one_plan() -> None:
    model, inputs, _ = built("basic blocks")
    network = sc.trace(model, inputs)
    first = sc.compact(model, network.plan({**halved(network), BRANCHES: [1]}))
    later = sc.trace(first, inputs)
    assert len(later.branches) == 1
    second = sc.compact(first, later.plan({BRANCHES: []}))
    plan = sc.torch.plan_of(second)
    assert plan is not None
    assert difference(sc.compact(model, plan)(inputs), second(inputs)) == 0


def test_a_plan_without_branches_before_one_with_a_choice_of_them_is_one_plan() -> None:
    model, inputs, _ = built("basic blocks")
    network = sc.trace(model, inputs)
    first = network.plan(halved(network))
    second = sc.trace(sc.compact(model, first), inputs).plan({BRANCHES: [1]})
    assert first.then(second) == network.plan({**halved(network), BRANCHES: [1]})


def test_branches_are_looked_for_when_they_are_asked_for() -> None:
    def never() -> Branches:
        raise AssertionError

    model, inputs, _ = built("basic blocks")
    network = replace(sc.trace(model, inputs), find_branches=never)
    plan = network.plan(halved(network))
    assert network.cost(plan).parameters < network.cost().parameters
    with pytest.raises(AssertionError):
        network.plan({BRANCHES: [0]})


def test_what_training_alone_runs_hides_no_branch() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head, self.auxiliary = Layer(), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            x = self.layer(x)
            return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)

    assert [branch.name for branch in sc.trace(Auxiliary().eval(), TOKENS).branches] == ["layer.attn", "layer.mlp"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: setattr(model[0], "mlp", nn.Linear(8, 8, bias=False)), "other names or shapes"),
        (lambda model: setattr(model[0], "mlp", nn.Linear(7, 8)), "10, 8"),
        (lambda model: model[0].register_forward_hook(lambda _, __, out: out @ out.mT @ out), "other operators"),
    ],
)
def test_branches_of_a_model_that_has_changed_are_refused(change: Callable[[nn.Module], object], said: str) -> None:
    model, inputs, _ = built("pre-norm")
    network = sc.trace(model, inputs)
    change(model)
    with pytest.raises(ModelError, match=rf"has changed since it was traced.*trace it again.*{said}"):
        _ = network.branches


def test_an_optimiser_forgets_what_went() -> None:
    model, inputs, _ = built("basic blocks")
    optimizer = torch.optim.Adam(model.parameters())
    model(inputs).sum().backward()
    optimizer.step()
    small = sc.compact(model, sc.trace(model, inputs).plan({BRANCHES: [1]}), optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in small.parameters()}


def test_branches_go_in_the_form_that_they_were_found_in() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), Added(), nn.Linear(4, 2)), torch.randn(2, 3)
    plan = sc.trace(model, x).plan({BRANCHES: []})
    with pytest.raises(PlanError, match="in the form that it was made in"):
        sc.compact(model, plan, form="graph", example_inputs=x)


class Added(nn.Module):
    """A layer beside its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x).relu()
