"""Moments of what layers read, against direct formulas on their inputs."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import DataError
from secateur.torch.calibrate import Calibrate, Moments
from secateur.torch.products import Product, WatchProducts
from secateur.torch.windows import spread

CONVOLUTIONS = {
    "pointwise": (nn.Conv2d(4, 6, 1), (2, 4, 3, 5)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1)), (2, 4, 9, 8)),
    "padded": (nn.Conv2d(4, 6, 3, padding=(1, 2)), (2, 4, 5, 6)),
    "padded to the same size": (nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2), (2, 4, 9, 8)),
    "padded by reflection": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 6)),
    "depth-wise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 6)),
    "one axis": (nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=3, groups=2), (2, 4, 11)),
    "three axes": (nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)), (2, 2, 3, 4, 5)),
    "transposed": (
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(1, 2)),
        (2, 4, 3, 4),
    ),
    "transposed, one axis": (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
    "transposed, three axes": (nn.ConvTranspose3d(4, 6, 2), (2, 4, 3, 3, 2)),
    "without a batch": (nn.Conv2d(4, 6, 3), (4, 5, 6)),
}
LINEAR = {
    "rows": (nn.Linear(4, 5), (3, 4)),
    "tokens": (nn.Linear(4, 5), (2, 3, 4)),
    "no bias": (nn.Linear(4, 5, bias=False), (2, 3, 4)),
    "one row": (nn.Linear(4, 5), (4,)),
}


@pytest.mark.parametrize("layer", [*CONVOLUTIONS.values(), *LINEAR.values()], ids=[*CONVOLUTIONS, *LINEAR])
def test_every_layer_is_its_matrix_times_what_it_reads(layer: tuple[nn.Module, tuple[int, ...]]) -> None:
    module, shape = layer[0].double(), layer[1]
    (product, read, written) = only(watched(module, torch.randn(shape, dtype=torch.float64)))
    weight = module.get_parameter(product.tensor).detach()
    bias = 0 if product.bias is None else module.get_parameter(product.bias).detach().reshape(read.shape[0], 1, -1)
    # float64, and sums of a few dozen terms
    torch.testing.assert_close(read @ product.matrix(weight).mT + bias, written, rtol=0, atol=1e-13)


@pytest.mark.parametrize("layer", [*CONVOLUTIONS.values(), *LINEAR.values()], ids=[*CONVOLUTIONS, *LINEAR])
def test_putting_a_matrix_back_gives_the_weight(layer: tuple[nn.Module, tuple[int, ...]]) -> None:
    module, shape = layer[0].double(), layer[1]
    ((product, _, _),) = watched(module, torch.randn(shape, dtype=torch.float64))
    weight = module.get_parameter(product.tensor).detach()
    back = torch.zeros_like(weight)
    product.put(product.matrix(weight), back)
    assert torch.equal(back, weight)


def test_packed_projections_and_transposed_weights_are_seen_as_parts_of_their_parameter() -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed = nn.Parameter(torch.randn(12, 4, dtype=torch.float64))
            self.bias = nn.Parameter(torch.randn(12, dtype=torch.float64))
            self.turned = nn.Parameter(torch.randn(4, 5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            parts = zip(self.packed.chunk(3), self.bias.chunk(3), strict=True)
            q, k, v = (F.linear(x, w, b) for w, b in parts)
            return (q + k + v) @ self.turned

    model = Custom()
    seen = watched(model, torch.randn(2, 3, 4, dtype=torch.float64))
    assert [(p.tensor, p.in_dim, p.out_dim, p.start, p.size, p.bias, p.bias_start) for p, _, _ in seen] == [
        ("packed", 1, 0, 0, 4, "bias", 0),
        ("packed", 1, 0, 4, 4, "bias", 4),
        ("packed", 1, 0, 8, 4, "bias", 8),
        ("turned", 0, 1, 0, 5, None, 0),
    ]
    for product, read, written in seen:
        bias = 0 if product.bias is None else model.bias.detach()[product.bias_start : product.bias_start + 4]
        weight = model.get_parameter(product.tensor).detach()
        torch.testing.assert_close(read @ product.matrix(weight).mT + bias, written, rtol=0, atol=1e-13)


def test_other_uses_of_a_parameter_are_reported() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.one(self.other(x)) / self.one.weight.norm()
            return out

    model = Normed()
    watch = WatchProducts(model, lambda product, x, run: run())
    with torch.no_grad(), watch:
        model(torch.randn(2, 4))
    assert watch.others == {"one.weight"}


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)]
    return nn.Sequential(*layers).double()


@pytest.fixture
def batches() -> list[Tensor]:
    x = torch.randn(10, 2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [x[:3], x[3:7], x[7:]]


def test_moments_are_means_over_all_the_rows(model: nn.Sequential, batches: list[Tensor]) -> None:
    found = Calibrate(dtype=torch.float64)(model, batches)
    x = torch.cat(batches)
    with torch.no_grad():
        hidden = model[1](model[0](x))
        last = model[:5](x)
        outputs = [model[0](x), model[2](hidden), model(x)[:, :, None, None]]
    rows = [F.unfold(x, 3, padding=1), F.unfold(hidden, 3), last[:, :, None]]
    assert [moments.product.tensor for moments in found] == ["0.weight", "2.weight", "5.weight"]
    for moments, read, written in zip(found, rows, outputs, strict=True):
        flat = read.transpose(1, 2).flatten(0, 1)
        assert moments.count == len(flat)
        torch.testing.assert_close(moments.mean[0], flat.mean(0))
        torch.testing.assert_close(moments.power[0], flat.square().mean(0))
        torch.testing.assert_close(moments.output_power[0], written.square().mean((0, 2, 3)))
        torch.testing.assert_close(moments.gram, (flat.T @ flat / len(flat))[None])


def test_moments_of_parts_merge_into_those_of_the_whole(model: nn.Sequential, batches: list[Tensor]) -> None:
    calibrate = Calibrate(dtype=torch.float64)
    whole = calibrate(model, batches)
    parts = [calibrate(model, part) for part in (batches[:1], batches[1:])]
    for one, other, all_ in zip(*parts, whole, strict=True):
        merged = one.merged(other)
        assert merged.count == all_.count
        for field in ("mean", "power", "output_mean", "output_power", "gram"):
            torch.testing.assert_close(getattr(merged, field), getattr(all_, field), rtol=1e-12, atol=1e-12)


def test_gram_matrices_of_half_precision_models_do_not_overflow() -> None:
    """2048 tokens of value 60 add up to 7e6, beyond float16."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).half()
    x = torch.full((2048, 2), 60.0, dtype=torch.float16)
    moments = Calibrate()(model, [x])[0]
    assert moments.gram is not None
    assert moments.gram.dtype == torch.float32
    torch.testing.assert_close(moments.gram, torch.full((1, 2, 2), 3600.0))


def test_only_what_is_asked_for_is_gathered(model: nn.Sequential, batches: list[Tensor]) -> None:
    found = Calibrate(gram=False)(model, batches, {"2.weight"})
    assert [(moments.product.tensor, moments.gram) for moments in found] == [("2.weight", None)]


def test_a_gram_matrix_beyond_the_limit_is_left_out_and_logged(
    model: nn.Sequential, batches: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="secateur"):
        found = Calibrate(limit=27 * 27 * 8 - 1)(model, batches)
    assert [moments.gram is None for moments in found] == [False, True, False]
    assert "no Gram matrix for 2.weight: it would take more than 5831 bytes" in caplog.text
    assert len(caplog.records) == 1


def test_rows_are_capped_and_always_the_same(model: nn.Sequential, batches: list[Tensor]) -> None:
    one, other = (Calibrate(rows=7)(model, batches) for _ in range(2))
    assert [moments.count for moments in one] == [21, 21, 10]
    assert all(torch.equal(a.gram, b.gram) for a, b in zip(one, other, strict=True) if a.gram is not None is not b.gram)


@pytest.mark.parametrize(("total", "at_most"), [(100, 100), (100, 99), (100, 30), (7, 1), (1000, 999)])
def test_spread_positions_are_distinct_ascending_and_cover_every_stretch(total: int, at_most: int) -> None:
    places = spread(total, at_most)
    assert len(places) == at_most
    assert (places.diff() > 0).all()
    assert 0 <= places[0] <= places[-1] < total
    assert all(abs(int(place) - i * total / at_most) <= total / at_most for i, place in enumerate(places))


def test_a_module_that_runs_twice_has_one_entry_for_both() -> None:
    layer = nn.Linear(3, 3).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    (moments,) = Calibrate()(nn.Sequential(layer, nn.ReLU(), layer), [x])
    with torch.no_grad():
        rows = torch.cat([x, layer(x).relu()])
    torch.testing.assert_close(moments.mean[0], rows.mean(0))


def test_attention_is_opened_so_that_its_projections_are_seen() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    found = Calibrate(gram=False)(model, [x])
    assert [moments.product.tensor for moments in found] == [
        *["self_attn.in_proj_weight"] * 3,
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]


def test_the_callers_model_and_random_state_are_not_changed(model: nn.Sequential, batches: list[Tensor]) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    Calibrate()(model, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_empty_data_are_refused(model: nn.Sequential, batches: list[Tensor]) -> None:
    with pytest.raises(DataError, match="there is no data"):
        Calibrate()(model, [])


@pytest.mark.parametrize("make", [lambda: Calibrate(samples=0), lambda: Calibrate(rows=0)])
def test_counts_must_be_positive(make: Any) -> None:
    with pytest.raises(DataError, match="at least 1"):
        make()


def watched(model: nn.Module, x: Tensor) -> list[tuple[Product, Tensor, Tensor]]:
    """Each product with all that it reads and writes."""
    seen = []

    def visit(product: Product, x: Tensor, run: Any) -> Tensor:
        y: Tensor = run()
        seen.append((product, product.read(x), product.channels(y)))
        return y

    with torch.no_grad(), WatchProducts(model, visit):
        model(x)
    return seen


def only(seen: list[tuple[Product, Tensor, Tensor]]) -> tuple[Product, Tensor, Tensor]:
    (found,) = seen
    return found


def test_moments_have_no_rows_to_share() -> None:
    """A merge keeps the Gram matrix only where both sides have one."""
    product = Product("weight", 1, 0, 0, 2)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    one = Moments(product, 1, zero, zero, zero, zero, torch.zeros(1, 2, 2))
    assert one.merged(Moments(product, 1, zero, zero, zero, zero, None)).gram is None
