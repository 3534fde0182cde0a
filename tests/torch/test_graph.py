"""The graph form frees what a model's own code holds fast."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import BudgetError, CaptureError, ModelError, PlanError
from secateur.torch.graph import as_graph


class Attention(nn.Module):
    """The width of the heads is computed from that of the stream, and the other way round."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.norm, self.heads = nn.Linear(8, width), nn.LayerNorm(width), heads
        self.qkv, self.out, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        out: Tensor = self.head(x + self.out(mixed))
        return out


class Literal(nn.Module):
    """Widths written as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu().view(-1, 8 * 16))
        return out


INPUTS = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


def test_the_graph_computes_what_the_model_computes_for_any_batch() -> None:
    model = Attention().eval()
    graph = as_graph(model, INPUTS)
    for batch in (2, 5):
        x = torch.randn(batch, 4, 8)
        torch.testing.assert_close(graph(x), model(x))
    assert list(graph.state_dict()) == list(model.state_dict())


def test_heads_and_stream_are_free_of_each_other() -> None:
    (together,) = sc.trace(Attention(), INPUTS).axes
    assert together.size == 4
    graph = as_graph(Attention(), INPUTS)
    network = sc.trace(graph, INPUTS)
    assert [axis.size for axis in network.axes] == [16, 4, 4]
    plan = network.plan({axis.name: range(axis.size // 2) for axis in network.axes})
    assert sc.verify(graph, plan, INPUTS).permutation < 1e-12
    small = sc.compact(graph, plan)
    assert sum(p.numel() for p in small.parameters()) == network.cost(plan.counts).parameters


def test_numbers_in_the_code_follow() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert not sc.trace(Literal(), x).axes
    graph = as_graph(Literal(), x)
    network = sc.trace(graph, x)
    plan = network.plan({network.axes[0].name: [1, 4, 6]})
    assert sc.verify(graph, plan, x).zero_is_prune < 1e-12


def test_a_compact_graph_exports_and_reloads(tmp_path: object) -> None:
    graph = as_graph(Attention(), INPUTS)
    network = sc.trace(graph, INPUTS)
    small = sc.compact(graph, network.plan({axis.name: range(2) for axis in network.axes}))
    again = torch.export.export(small, (INPUTS,)).module()
    assert torch.equal(again(INPUTS), small(INPUTS))
    sc.save(small, str(tmp_path))
    loaded = sc.load(as_graph(Attention(), INPUTS), str(tmp_path))
    assert torch.equal(loaded(INPUTS), small(INPUTS))


class Mixed(nn.Module):
    """Batch norm and dropout do something else in training; the numbers in the code follow in the graph alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.second = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.drop(self.norm(self.first(x)).relu()).view(-1, 8 * 16))
        return out


IMAGES = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_batch_is_free_although_the_example_is_one() -> None:
    model = Mixed().eval()
    graph = as_graph(model, IMAGES)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 4, 4)
        torch.testing.assert_close(graph(x), model(x))


def test_a_first_dim_that_is_no_batch_keeps_its_size() -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(0, keepdim=True)

    graph = as_graph(Rows(), torch.ones(1, 3))
    assert graph(torch.ones(1, 3)).tolist() == [[1.0, 1.0, 1.0]]


def test_layers_that_know_the_mode_still_do() -> None:
    model, x = Mixed().train(), torch.randn(6, 3, 4, 4)
    graph = as_graph(model, x)
    assert graph.training
    for mode in (True, False):
        results = []
        for each in (model.train(mode), graph.train(mode)):
            torch.manual_seed(0)
            results.append(each(x))
        torch.testing.assert_close(*results)
    assert torch.equal(graph.norm.running_mean, model.norm.running_mean)


def test_the_whole_job_runs_in_graph_form() -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 3, 4, 4, generator=generator), torch.arange(8) % 5) for _ in range(3)]
    steps = (sc.compensation.Refit(), sc.compensation.ReestimateBatchNorm())
    with pytest.raises(BudgetError, match=r"nothing of Mixed .* its size is written as the number 128 .*form='graph'"):
        sc.prune(Mixed(), IMAGES, budget=sc.Budget(macs=0.5), data=data, measure=False)
    result = sc.prune(
        Mixed(),
        IMAGES,
        budget=sc.Budget(macs=0.5),
        form="graph",
        data=data,
        compensation=steps,
        recover=sc.recover.FineTune(epochs=1),
        measure=False,
    )
    assert result.plan.counts == {"first": 4}
    assert result.network.cost(result.plan.counts).macs <= result.network.cost().macs / 2
    assert result.model.get_submodule("norm").num_batches_tracked > 0
    assert torch.export.export(result.model.eval(), (IMAGES,)).module()(IMAGES).shape == (1, 5)
    assert "Mixed" in result.report.title
    assert any("graph form" in note for note in result.report.notes)


def test_a_plan_of_the_model_is_one_of_its_graph() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    plan = sc.trace(model, INPUTS).plan({"0": [0, 3, 5], "2": [1, 2]})
    small = sc.compact(model, plan, form="graph", example_inputs=INPUTS)
    torch.testing.assert_close(small(INPUTS), sc.compact(model, plan)(INPUTS))
    again = sc.compact(as_graph(model, INPUTS), plan, form="graph", example_inputs=INPUTS)
    assert torch.equal(again(INPUTS), small(INPUTS))


def test_a_plan_that_the_graph_cannot_follow_is_refused() -> None:
    x = torch.randn(2, 3, 4, 4)
    graph = as_graph(Literal(), x)
    plan = sc.trace(graph, x).plan({"first": [1, 4, 6]})
    alone = replace(plan, tensors=tuple(cut for cut in plan.tensors if cut.name != "second.weight"))
    with pytest.raises(PlanError, match="removes what cannot go together"):
        sc.compact(Literal(), alone, form="graph", example_inputs=x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "grpah"}, "form= is one of 'module', 'graph'; got 'grpah'"),
        ({"form": "graph"}, "form='graph' needs example_inputs="),
    ],
)
def test_a_wrong_form_is_refused(arguments: dict[str, str], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    plan = sc.trace(model, INPUTS).plan({"0": [0, 3]})
    with pytest.raises(ModelError, match=message):
        sc.compact(model, plan, form=arguments["form"])


def test_an_optimiser_of_the_model_is_not_one_of_its_graph() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    plan = sc.trace(model, INPUTS).plan({"0": [0, 3]})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(PlanError, match="trains the model, not its graph form"):
        sc.compact(model, plan, optimizer, form="graph", example_inputs=INPUTS)


def test_a_model_that_cannot_be_exported_is_refused_with_the_reason() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match="Branches cannot be exported"):
        as_graph(Branches(), INPUTS)


class Variadic(nn.Module):
    """Takes whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 2)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(inputs[0] if inputs else named["x"]).relu())
        return out


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: {"x": x}], ids=["tensor", "tuple", "mapping"])
def test_a_model_of_any_arguments_has_a_graph_form(form: Any) -> None:
    inputs = form(torch.randn(2, 8))
    assert [axis.size for axis in sc.trace(as_graph(Variadic(), inputs), inputs).axes] == [12]
