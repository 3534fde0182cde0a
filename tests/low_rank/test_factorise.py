"""Linear layers become two smaller ones in any model, and the result is a model like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, DataError, ModelError, PlanError, SecateurError
from secateur.low_rank import LowRankLinear
from secateur.sparse.problem import output_error


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).double()


def data(rows: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    return torch.randn(rows, 12, generator=generator, dtype=torch.float64) @ mixed


def test_the_layer_writes_what_the_best_weight_of_this_rank_writes() -> None:
    model, x = network(), data()
    result = sc.factorise(model, [x], rank=4, samples=200, damping=0.0)
    gram = x.mT @ x / len(x)
    factor = torch.linalg.cholesky(gram)
    weight = model.get_parameter("0.weight").detach()
    squares = torch.linalg.svdvals(weight @ factor).square()
    first = result.model.get_submodule("0")
    assert isinstance(first, LowRankLinear)
    torch.testing.assert_close(output_error(first.weight.detach(), weight, gram).sum(), squares[4:].sum())
    assert result.report[0].error == pytest.approx(float(squares[4:].sum() / squares.sum()))
    torch.testing.assert_close(first(x), x @ first.weight.T + first.bias)


def test_full_rank_inside_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 3), nn.Linear(3, 32), nn.Linear(32, 32)).double()
    x = torch.randn(64, 32, dtype=torch.float64)
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(32, 5, dtype=torch.float64) @ torch.randn(5, 32, dtype=torch.float64))
    result = sc.factorise(model, [x], rank=5)
    assert [layer.rank for layer in result.report] == [None, None, 5]
    torch.testing.assert_close(result.model(x), model(x))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_share_is_what_is_left_at_most(share: float) -> None:
    model = network()
    result = sc.factorise(model, [data()], share=share)
    before, after = (
        sum(parameter.numel() for name, parameter in each.named_parameters() if "weight" in name)
        for each in (model, result.model)
    )
    assert after == sum(layer.parameters for layer in result.report) <= share * before
    assert result.share == after / before
    # No layer could have a rank more, but for those that are dense.
    more = (sum(layer.shape) for layer in result.report if layer.rank is not None)
    assert after + min(more) > share * before


def test_errors_fall_as_the_share_grows() -> None:
    errors = [sum(layer.error for layer in sc.factorise(network(), [data()], share=s).report) for s in (0.3, 0.6, 0.9)]
    assert errors[0] > errors[1] > errors[2]


def test_chosen_ranks_are_better_than_one_rank() -> None:
    """On a layer of low rank and one of full rank, at as many parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(20, 2, dtype=torch.float64) @ torch.randn(2, 20, dtype=torch.float64))
    x = [torch.randn(400, 20, dtype=torch.float64)]
    even, chosen = sc.factorise(model, x, rank=5), sc.factorise(model, x, share=0.5)
    assert chosen.share <= even.share
    assert sum(layer.error for layer in chosen.report) < 0.9 * sum(layer.error for layer in even.report)


def test_the_model_of_the_caller_stays_as_it_is() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = sc.factorise(model, [data()], rank=2)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.zero_()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_the_same_model_gives_the_same_bits_and_draws_no_random_numbers() -> None:
    model, x = network(), data()
    torch.manual_seed(5)
    first = sc.factorise(model, [x], share=0.5).model.state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn.equal(torch.rand(1))
    second = sc.factorise(model, [x], share=0.5).model.state_dict()
    assert all(tensor.equal(second[name]) for name, tensor in first.items())


class Shared(nn.Module):
    """A layer that runs twice, one that shares its weight with another, and one whose weight is read by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.one.weight
        self.read = nn.Linear(16, 16)
        self.also = self.twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.also(self.twice(x).relu()).relu()
        x = self.other(self.one(x)).relu()
        return nn.functional.linear(x, self.read.weight)


def test_shared_layers_stay_shared_and_shared_weights_dense() -> None:
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(32, 16)
    result = sc.factorise(model, [x], rank=3)
    small = result.model
    assert [layer.name for layer in result.report] == ["twice", "read"]
    assert small.get_submodule("twice") is small.get_submodule("also")
    assert small.get_submodule("one").weight is small.get_submodule("other").weight
    assert small(x).shape == (32, 16)


@pytest.mark.parametrize("training", [True, False])
def test_the_layers_of_a_transformer_of_torch_run(training: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(4, 5, 16)
    result = sc.factorise(model, [x], rank=4)
    assert [layer.name for layer in result.report] == [f"layers.{layer}.linear{n}" for layer in (0, 1) for n in (1, 2)]
    dense = sc.factorise(model, [x], rank=4).model
    for report in result.report:  # the same weights, in layers of the ordinary kind
        parent, _, name = report.name.rpartition(".")
        low = dense.get_submodule(report.name)
        ordinary = nn.Linear(low.in_features, low.out_features)
        ordinary.load_state_dict({"weight": low.weight.detach(), "bias": low.bias.detach()})
        setattr(dense.get_submodule(parent), name, ordinary)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), dense(x))


def test_what_comes_out_can_be_exported_saved_trained_sparsified_and_pruned(tmp_path: Path) -> None:
    x = data().float()
    model = sc.factorise(network().float(), [x], share=0.6).model
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))

    sc.save(model, tmp_path)
    again = sc.load(sc.factorise(network().float(), [x], share=0.6).model, tmp_path)
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in model.state_dict().items())

    names = [layer.name for layer in sc.sparsify(model, [x], sparsity=0.5).report]
    assert {"2.down.weight", "2.up.weight"} <= set(names)

    labelled = [(x, (x[:, 0] > 0).long())] * 2
    small = sc.prune(model, x[:1], budget=sc.Budget(macs=0.7), data=labelled, measure=False).model
    assert small.get_submodule("2").down.out_features == small.get_submodule("2").up.in_features

    before = model.get_parameter("2.down.weight").detach().clone()
    sc.recover.FineTune()(model, labelled)
    assert not before.equal(model.get_parameter("2.down.weight"))


def test_flags_and_types_are_those_of_the_layer() -> None:
    model = network().to(torch.bfloat16)
    model.get_submodule("0").requires_grad_(False)
    model.get_submodule("2").eval()
    small = sc.factorise(model, [data().to(torch.bfloat16)], rank=2).model
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in small.get_submodule("0").parameters())
    assert not small.get_submodule("2").training
    assert small.get_submodule("0").training


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({}, BudgetError, "give a share, such as share=0.5, or a rank"),
        ({"share": 0.5, "rank": 2}, BudgetError, "give a share, such as share=0.5, or a rank"),
        ({"share": 1.5}, BudgetError, "share is a share"),
        ({"share": 1.0}, BudgetError, "no layer gets smaller: .* lower the share"),
        ({"share": 0.01}, BudgetError, "the lowest ranks have"),
        ({"rank": 0}, BudgetError, "a whole number, at least 1; got 0"),
        ({"rank": True}, BudgetError, "got True"),
        ({"rank": 12}, BudgetError, "no layer gets smaller: of 0, 2, 4 .* lower the rank"),
        ({"rank": 2, "damping": -1.0}, DataError, "damping is a finite number"),
        ({"rank": 2, "exclude": ["9"]}, PlanError, "'9' names no parameter or module"),
    ],
)
def test_wrong_choices_are_refused(choices: dict[str, Any], error: type[SecateurError], message: str) -> None:
    with pytest.raises(error, match=message):
        sc.factorise(network(), [data()], **choices)


@pytest.mark.parametrize(
    ("model", "batches", "error", "message"),
    [
        (network, [], DataError, "there is no data"),
        (network, [torch.full((4, 12), float("nan"), dtype=torch.float64)], DataError, "not finite"),
        (lambda: nn.Conv2d(1, 4, 3), [torch.zeros(2, 1, 6, 6)], PlanError, "no linear layer inside it"),
        (lambda: nn.Linear(8, 8), [torch.zeros(2, 8)], PlanError, "no linear layer inside it"),
        (lambda: nn.Sequential(nn.Linear(1, 1)), [torch.zeros(2, 1)], BudgetError, "no layer gets smaller"),
    ],
)
def test_what_cannot_be_factorised_is_refused(
    model: Callable[[], nn.Module], batches: list[Tensor], error: type[SecateurError], message: str
) -> None:
    with pytest.raises(error, match=message):
        sc.factorise(model(), batches, rank=1)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("2.weight")[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"'2.weight' has NaN"):
        sc.factorise(model, [data()], rank=2)


def test_a_layer_with_a_hook_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(64, 8)
    model[0].register_forward_hook(lambda module, inputs, output: 10 * output)
    result = sc.factorise(model, [x], rank=2)
    assert [layer.name for layer in result.report] == ["2"]
    assert result.model[:2](x).equal(model[:2](x))


def test_a_layer_that_code_holds_in_a_list_of_its_own_is_refused() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.layers = [self.first, self.second]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    with pytest.raises(ModelError, match=r"runs without the layer.*'first'.*nn\.ModuleList, or exclude it"):
        sc.factorise(Listed(), [torch.randn(64, 8)], rank=2)
