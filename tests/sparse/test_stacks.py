"""Each matrix of a stack of experts is a layer, solved on the rows that a router sends to it, however the code is written."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.sparse import SparseResult, sparsify
from secateur.sparse.allocation import Measured
from secateur.sparse.layers import survey
from secateur.sparse.patterns import Block, NofM, Unstructured
from secateur.sparse.solvers import Refit, SparseGPT, keep
from secateur.torch.products import Product, WatchProducts
from secateur.train import masked
from secateur.train.gradual import Gradual

EXPERTS, DIM, HIDDEN = 4, 6, 8


class Mixture(nn.Module):
    """Each row goes to the two experts that a router likes best; how they are computed is a choice."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.embed, self.router, self.head = nn.Linear(5, DIM), nn.Linear(DIM, EXPERTS), nn.Linear(DIM, 3)
        turned = way in ("turned", "batched")
        self.up = nn.Parameter(torch.randn(EXPERTS, *((DIM, HIDDEN) if turned else (HIDDEN, DIM))))
        self.down = nn.Parameter(torch.randn(EXPERTS, *((HIDDEN, DIM) if turned else (DIM, HIDDEN))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).tanh()
        share, chosen = self.router(x).softmax(-1).topk(2)
        out: Tensor = self.head(x + getattr(self, self.way)(x, share, chosen))
        return out

    def one_by_one(self, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in chosen.unique():
            rows, place = torch.where(chosen == expert)
            first, second = self.up[expert].chunk(2)
            hidden = torch.cat([F.linear(x[rows], first), F.linear(x[rows], second)], 1).relu()
            out.index_add_(0, rows, F.linear(hidden, self.down[expert]) * share[rows, place, None])
        return out

    def turned(self, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(EXPERTS):
            rows, place = torch.where(chosen == expert)
            out.index_add_(0, rows, (x[rows] @ self.up[expert]).relu() @ self.down[expert] * share[rows, place, None])
        return out

    def layer_by_layer(self, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        found = [(expert, *torch.where(chosen == expert)) for expert in chosen.unique()]
        hidden = [F.linear(x[rows], self.up[expert]).relu() for expert, rows, _ in found]
        out = torch.zeros_like(x)
        for (expert, rows, place), read in zip(found, hidden, strict=True):
            out.index_add_(0, rows, F.linear(read, self.down[expert]) * share[rows, place, None])
        return out

    def grouped(self, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        experts, order = chosen.flatten().sort(stable=True)
        ends = torch.bincount(experts, minlength=EXPERTS).cumsum(0, dtype=torch.int32)
        hidden = F.grouped_mm(x[order // 2], self.up.mT, offs=ends).relu()
        out = F.grouped_mm(hidden, self.down.mT, offs=ends) * share.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, order // 2, out)

    def batched(self, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        weights = torch.zeros(len(x), EXPERTS, dtype=x.dtype).scatter(1, chosen, share)
        hidden = torch.bmm(x.expand(EXPERTS, *x.shape), self.up).relu()
        return (torch.bmm(hidden, self.down) * weights.T[..., None]).sum(0)

    def matrices(self, expert: int) -> tuple[Tensor, Tensor]:
        """The weights of an expert, `[out, in]`."""
        up, down = self.up[expert].detach(), self.down[expert].detach()
        return (up.T, down.T) if self.way in ("turned", "batched") else (up, down)

    def read(self, x: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        """What the weights of an expert read."""
        x = self.embed(x).tanh()
        chosen = (self.router(x).topk(2)[1] == expert).any(1) if self.way != "batched" else slice(None)
        rows = x[chosen].detach()
        return rows, (rows @ self.matrices(expert)[0].T).relu()


WAYS = ["one_by_one", "turned", "layer_by_layer", "grouped", "batched"]


def made(way: str) -> Mixture:
    torch.manual_seed(0)
    model = Mixture(way).double().eval()
    nn.init.normal_(model.router.weight)
    nn.init.zeros_(model.router.bias)
    return model


def data(rows: int = 400) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unlike(model: Mixture) -> list[Tensor]:
    """Pieces of which each comes to two of the experts, and others than the next."""
    x = data()
    with torch.no_grad():
        first = model.router(model.embed(x).tanh()).topk(2)[1].sort(1)[0] @ torch.tensor([EXPERTS, 1])
    return [x[first == pair] for pair in first.unique().flip(0)]


def by_hand(weight: Tensor, read: Tensor, share: float = 0.5) -> Tensor:
    """Least squares, output by output, on what Wanda keeps of a weight `[out, in]`."""
    stays = Unstructured().choose(weight.abs() * read.square().mean(0).sqrt(), int(weight.numel() * share))
    found = torch.zeros_like(weight)
    for row, kept, new in zip(weight, stays, found, strict=True):
        new[kept] = torch.linalg.lstsq(read[:, kept], read @ row[:, None], driver="gelsd").solution[:, 0]
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("in_sequence", [True, False])
def test_each_expert_is_solved_on_the_rows_that_are_sent_to_it(way: str, in_sequence: bool) -> None:
    model = made(way)
    pieces = unlike(model)
    result = sparsify(
        model,
        pieces,
        sparsity=0.5,
        solver=Refit(ridge=0, tolerance=1e-12),
        exclude=["embed", "router", "head"],
        in_sequence=in_sequence,
        samples=400,
    )
    reads: Any = result.model if in_sequence else model
    for expert in range(EXPERTS):
        weights, rows = model.matrices(expert), reads.read(torch.cat(pieces), expert)
        for sparse, weight, read in zip(result.model.matrices(expert), weights, rows, strict=True):
            # float64, and products of a Gram matrix, which squares the condition of a few hundred rows
            torch.testing.assert_close(sparse, by_hand(weight, read), rtol=0, atol=1e-8)


@pytest.mark.parametrize("way", WAYS)
def test_a_product_with_a_matrix_of_a_stack_is_that_matrix_times_what_it_reads(way: str) -> None:
    model, x, seen = made(way), data(100), set()

    def visit(product: Product, x: Tensor, run: Any) -> Tensor:
        y: Tensor = run()
        if product.stack is not None:
            weight = model.get_parameter(product.tensor).detach()
            torch.testing.assert_close(product.read(x) @ product.matrix(weight).mT, product.channels(y))
            torch.testing.assert_close(run(2 * weight), 2 * y)
            back = torch.zeros_like(weight)
            product.put(product.matrix(weight), back)
            assert back.count_nonzero() == back[product.stack].count_nonzero() == product.matrix(weight).numel()
            assert product.matrix(back).equal(product.matrix(weight))
            seen.add((product.tensor, product.stack))
        return y

    with torch.no_grad():
        model.way = "layer_by_layer" if way == "grouped" else way  # grouped products of torch know no float64
        expected, model.way = model(x), way
        with WatchProducts(model, visit) as watch:
            torch.testing.assert_close(model(x), expected)
    assert seen == {(name, expert) for name in ("up", "down") for expert in range(EXPERTS)}
    assert not {"up", "down"} & watch.others


@pytest.mark.parametrize(
    ("way", "order"),
    [
        (
            "one_by_one",
            "up[0] up[0, 4:8] down[0] up[1] up[1, 4:8] down[1] up[2] up[2, 4:8] down[2] up[3] up[3, 4:8] down[3]",
        ),
        ("turned", "up[0] down[0] up[1] down[1] up[2] down[2] up[3] down[3]"),
        ("layer_by_layer", "up[0] up[1] up[2] up[3] down[0] down[1] down[2] down[3]"),
        ("grouped", "up[0] up[1] up[2] up[3] down[0] down[1] down[2] down[3]"),
        ("batched", "up[0] up[1] up[2] up[3] down[0] down[1] down[2] down[3]"),
    ],
)
def test_experts_that_a_sample_does_not_come_to_are_layers_in_their_place(way: str, order: str) -> None:
    layers = survey(made(way), data(1), ["embed", "router", "head"]).layers
    assert " ".join(layer.name for layer in layers) == order


@pytest.mark.parametrize("way", ["one_by_one", "layer_by_layer", "grouped"])
@pytest.mark.parametrize("in_sequence", [True, False])
@pytest.mark.parametrize("solver", [Refit(), SparseGPT(), keep], ids=["refit", "sparsegpt", "keep"])
def test_an_expert_that_no_row_reaches_goes_by_its_weights_alone(
    way: str, in_sequence: bool, solver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = made(way)
    with torch.no_grad():
        model.router.bias[2] = -1000
    with caplog.at_level(logging.WARNING, logger="secateur"):
        result = sparsify(model, data().split(100), sparsity=0.5, solver=solver, samples=400, in_sequence=in_sequence)
    for sparse, weight in zip(result.model.matrices(2), model.matrices(2), strict=True):
        assert sparse.equal(weight * Unstructured().choose(weight.abs(), weight.numel() // 2))
    errors = {layer.name: layer.error for layer in result.report}
    assert errors["down[2]"] is None
    assert solver is keep or all((error is None) == ("[2" in name) for name, error in errors.items())
    assert "down[2] reads nothing of the data: what goes is chosen by its weights alone" in caplog.text
    assert result.plan.zeros * 2 == result.plan.total


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", [Unstructured("tensor"), Unstructured("global"), NofM(1, 2), Block(2, 2)], ids=repr)
def test_stacks_lose_what_was_asked_for_in_every_pattern(way: str, pattern: Any) -> None:
    model = made(way)
    with torch.no_grad():
        model.router.bias[1] = -1000
    sparsity = None if isinstance(pattern, NofM) else 0.5
    result = sparsify(model, data().split(100), pattern=pattern, sparsity=sparsity, exclude=["embed", "head", "router"])
    assert set(result.plan.stays) == {"up", "down"}
    assert result.plan.zeros * 2 == result.plan.total
    for expert in range(EXPERTS):
        for sparse in result.model.matrices(expert) if isinstance(pattern, NofM) else ():
            assert ((sparse != 0).reshape(-1, 2).sum(1) == 1).all()


def test_measured_layers_may_read_nothing() -> None:
    model = made("one_by_one")
    with torch.no_grad():
        model.router.bias[2] = -1000
    result = sparsify(model, data().split(100), sparsity=0.5, allocation=Measured(), samples=400)
    assert result.plan.zeros * 2 == result.plan.total


@pytest.mark.parametrize("way", ["one_by_one", "grouped"])
def test_a_journal_of_stacks_goes_on_where_it_stopped(way: str, tmp_path: Path) -> None:
    model = made(way)
    with torch.no_grad():
        model.router.bias[2] = -1000

    def run(**options: Any) -> SparseResult:
        return sparsify(model, data().split(100), sparsity=0.5, samples=400, **options)

    def stop(name: str, done: int, total: int) -> None:
        if name == "down[1]":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(journal=tmp_path, progress=stop)
    one, other = run(journal=tmp_path), run()
    assert one.report == other.report
    assert all(value.equal(other.model.state_dict()[name]) for name, value in one.model.state_dict().items())


def test_what_else_reads_a_stack_keeps_it_dense() -> None:
    class Looked(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x) + self.down[torch.tensor([0, 1])].mean()
            return out

    torch.manual_seed(0)
    result = sparsify(Looked("one_by_one").double(), [data()], sparsity=0.5)
    assert "down" not in result.plan.stays
    assert "up" in result.plan.stays


def test_a_stack_that_is_one_long_matrix_is_no_stack() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack, self.last = nn.Parameter(torch.randn(3, 4, 5)), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(F.linear(x, self.stack.flatten(0, 1)))
            return out

    assert set(sparsify(Long(), [torch.randn(40, 5)], sparsity=0.5).plan.stays) == {"last.weight"}


def test_biases_may_be_stacked_too() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            number = int(x[0, 0] > 0)
            return F.linear(x, self.weight[number], self.bias[number])

    x = torch.randn(60, 5)
    result = sparsify(Biased(), [x[x[:, 0] <= 0], x[x[:, 0] > 0]], sparsity=0.5)
    assert [layer.error is None for layer in result.report] == [False, False, True]


def test_masks_of_stacks_change_while_a_model_is_trained() -> None:
    model = made("one_by_one")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with masked(model, Gradual(0.5, end=2, every=1), data(8)) as training:
        for _ in range(3):
            optimizer.zero_grad()
            model(data(50)).square().mean().backward()
            optimizer.step()
    assert training.plan.sparsity == 0.5
    assert {(model.up[expert] == 0).sum().item() for expert in range(EXPERTS)} == {HIDDEN * DIM // 2}


def language_model(kind: str, implementation: str) -> nn.Module:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts_per_tok": 2,
    }  # fmt: skip
    own = {
        "Mixtral": {"num_local_experts": 4},
        "Qwen3Moe": {"num_experts": 6, "moe_intermediate_size": 12, "head_dim": 4},
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, **own[kind], attn_implementation="eager")
    config._experts_implementation = implementation
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_experts_of_language_models_are_solved_on_the_tokens_that_are_sent_to_them(
    kind: str, implementation: str
) -> None:
    model = language_model(kind, implementation)
    ids = torch.randint(40, (60, 5), generator=torch.Generator().manual_seed(0))
    result = sparsify(model, ids.split(1), sparsity=0.5, solver=Refit(ridge=0, tolerance=1e-12))
    state, stacks = dict(model.named_parameters()), {}

    def look(path: str, experts: Any, args: Any) -> None:
        stacks[path] = experts, args[0], args[1]

    for path, module in result.model.named_modules():
        if path.endswith("experts"):
            module.register_forward_pre_hook(lambda experts, args, path=path: look(path, experts, args))
    result.model.config._experts_implementation = "eager"  # grouped products of torch know no float64
    with torch.no_grad():
        result.model(ids)
    assert len(stacks) == 2
    for path, (experts, x, chosen) in stacks.items():
        for expert in range(len(experts.down_proj)):
            read = x[(chosen == expert).any(1)]
            gate, up = (read @ experts.gate_up_proj[expert].detach().T).chunk(2, 1)
            for name, rows in (("gate_up_proj", read), ("down_proj", experts.act_fn(gate) * up)):
                found = getattr(experts, name)[expert].detach()
                expected = by_hand(state[f"{path}.{name}"][expert].detach(), rows)
                # float64, and products of a Gram matrix, which squares the condition of some hundred rows
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
