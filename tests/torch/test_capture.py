"""What a model may do while it is watched, and what is said when it cannot be."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import CaptureError, DataError, VerificationError


def axes(model: nn.Module, inputs: object) -> dict[str, int]:
    return {axis.name: axis.size for axis in sc.trace(model, inputs).axes}


def reasons(model: nn.Module, inputs: object) -> str:
    return "\n".join(f"{f.tensor}:{f.dim} {f.reason} ({f.where})" for f in sc.trace(model, inputs).frozen)


class Two(nn.Module):
    """A hidden layer with `middle` between its halves."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.width = nn.Linear(4, width), nn.Linear(width, 3), width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.middle(self.first(x)))
        return out

    def middle(self, x: Tensor) -> Tensor:
        return x.relu()


def test_an_unknown_operator_freezes_what_it_touches_and_says_so() -> None:
    class Sorted(Two):
        def middle(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x) + torch.cdist(x, x).sum()

    text = reasons(Sorted(), torch.randn(2, 4))
    assert "aten::_cdist_forward has no rule" in text
    assert "test_capture.py:" in text


def test_a_size_written_as_a_number_freezes_with_the_number_and_the_line() -> None:
    class Literal(Two):
        def middle(self, x: Tensor) -> Tensor:
            return x.view(-1, 8) * 2

    assert "its size is written as the number 8" in reasons(Literal(), torch.randn(2, 4))


def test_an_attribute_used_as_a_size_follows() -> None:
    class Attribute(Two):
        def middle(self, x: Tensor) -> Tensor:
            return x.view(-1, self.width // 2, 2).flatten(1)

    model = Attribute()
    network = sc.trace(model, torch.randn(2, 4))
    assert {axis.size for axis in network.axes} == {4}
    plan = network.plan({network.axes[0].name: [0, 3]})
    assert [(a.name, a.old, a.new) for a in plan.attributes] == [("width", 8, 4)]
    assert sc.compact(model, plan).width == 4
    assert model.width == 8


def test_a_size_that_torch_infers_is_not_taken_for_an_attribute_of_the_same_value() -> None:
    class Views(Two):
        def middle(self, x: Tensor) -> Tensor:
            return x.view(-1, self.width)

    model, inputs = Views(), torch.randn(8, 4)
    plan = sc.trace(model, inputs).plan({"first": [0, 1, 2]})
    assert [(change.name, change.new) for change in plan.attributes] == [("width", 3)]
    assert sc.compact(model, plan)(inputs).shape == (8, 3)


def test_a_size_used_as_a_number_freezes() -> None:
    class Scaled(Two):
        def middle(self, x: Tensor) -> Tensor:
            return x * x.shape[-1] ** -0.5

    assert "the code computes with this size as a number" in reasons(Scaled(), torch.randn(2, 4))


class Shared(nn.Module):
    """One number for the widths of two layers."""

    def __init__(self, second: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, second), nn.Linear(second, 2)
        self.width = 6

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(-1, self.width).relu()
        out: Tensor = self.c(self.b(x).view(-1, self.width).relu())
        return out


def test_widths_that_are_one_attribute_shrink_together() -> None:
    model, inputs = Shared(), torch.randn(2, 4)
    network = sc.trace(model, inputs)
    (axis,) = network.axes
    assert {str(slot) for slot in axis.slots} == {
        "a.weight:0",
        "a.bias:0",
        "b.weight:0",
        "b.weight:1",
        "b.bias:0",
        "c.weight:1",
    }
    plan = network.plan({axis.name: [0, 3, 4, 5]})
    assert [(change.name, change.new) for change in plan.attributes] == [("width", 4)]
    assert sc.verify(model, plan, inputs).zero_is_prune < 1e-12
    assert sum(p.numel() for p in sc.compact(model, plan).parameters()) == network.cost(plan.counts).parameters


def test_one_attribute_for_a_size_and_half_of_it_makes_them_shrink_together() -> None:
    class Halves(Shared):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).view(-1, self.width).relu()
            out: Tensor = self.c(self.b(x).view(-1, self.width // 2).relu())
            return out

    model, inputs = Halves(3), torch.randn(2, 4)
    network = sc.trace(model, inputs)
    (axis,) = network.axes
    assert axis.size == 3
    assert sc.verify(model, network.plan({axis.name: [0, 2]}), inputs).zero_is_prune < 1e-6


def test_one_attribute_for_two_sizes_that_do_not_match_is_a_conflict_that_is_named() -> None:
    class TwoLess(Shared):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).view(-1, self.width).relu()
            out: Tensor = self.c(self.b(x).view(-1, self.width - 2).relu())
            return out

    text = reasons(TwoLess(4), torch.randn(2, 4))
    assert "the size (width - 2) would be" in text
    assert "positions stay there" in text


def test_an_equality_check_in_the_code_makes_the_attribute_follow() -> None:
    class Checked(Two):
        def middle(self, x: Tensor) -> Tensor:
            if x.shape[1] != self.width:
                raise ValueError("wrong width")
            return x.relu()

    model, inputs = Checked(), torch.randn(2, 4)
    network = sc.trace(model, inputs)
    sc.verify(model, network.plan({"first": [1, 2, 3]}), inputs)


def test_writes_through_views_are_followed() -> None:
    class Written(Two):
        def middle(self, x: Tensor) -> Tensor:
            y = torch.zeros_like(x)
            y[:, : self.width // 2] = x[:, : self.width // 2]
            y[:, self.width // 2 :].copy_(x[:, self.width // 2 :])
            return y.relu_()

    model, inputs = Written(), torch.randn(2, 4)
    network = sc.trace(model, inputs)
    assert sum(axis.size for axis in network.axes) in {0, 8}
    sc.verify(model, network.plan({axis.name: range(2) for axis in network.axes}), inputs)


def test_a_branch_on_real_values_is_captured_by_a_real_run() -> None:
    class Branching(Two):
        def middle(self, x: Tensor) -> Tensor:
            return x.relu() if float(x.abs().sum()) >= 0 else x

    assert axes(Branching(), torch.randn(2, 4)) == {"first": 8}


def test_questions_about_constants_are_answered_without_real_values() -> None:
    class Asking(Two):
        def middle(self, x: Tensor) -> Tensor:
            positions = torch.arange(5, device=x.device)
            mask = positions > 2
            mask[0] = True
            return x.relu() if bool(mask.any()) and positions.max().item() == 4 else x * float("nan")

    with torch.device("meta"):
        model = Asking()
    assert axes(model, torch.empty(2, 4, device="meta")) == {"first": 8}


def test_a_value_dependent_model_on_meta_is_refused_with_the_way_out() -> None:
    class Branching(Two):
        def middle(self, x: Tensor) -> Tensor:
            return x.relu() if float(x.sum()) > 0 else x

    with torch.device("meta"):
        model = Branching()
    with pytest.raises(CaptureError, match=r"looks at values while it runs .*to_empty"):
        sc.trace(model, torch.empty(2, 4, device="meta"))


class Square(nn.Module):
    """What is written is read as a square, of which rows and columns go together because one number says how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.write = 4, nn.Linear(3, 16)
        self.rows, self.columns = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        square = self.write(x).view(-1, self.width, self.width)
        return (square @ self.rows).mT @ self.columns


def test_a_slot_says_how_many_positions_go_with_a_unit_though_units_share_some() -> None:
    model, x = Square(), torch.randn(2, 3)
    network = sc.trace(model, x)
    (axis,) = network.axes
    slots = {str(slot): slot.positions for slot in axis.slots}
    assert slots["write.weight:0"] == 4 + 4 - 1  # a row and a column
    assert slots["rows:0"] == 1
    small = sc.compact(model, network.plan({axis.name: [0, 2, 3]}))
    assert model.write.out_features - small.get_submodule("write").out_features == slots["write.weight:0"]


def test_the_forms_in_which_torch_could_call_an_operator_are_not_listed() -> None:
    with pytest.raises(
        CaptureError, match=r"invalid combination of arguments - got \(list, .*\) \(inside torch\)"
    ) as caught:
        sc.trace(nn.Conv2d(3, 4, 3), ([torch.zeros(1, 3, 5, 5)],))
    assert "\n" not in str(caught.value)
    assert "expected one of" not in str(caught.value)


def test_inputs_that_do_not_fit_are_refused_with_the_line() -> None:
    with pytest.raises(CaptureError, match=r"cannot run on these example inputs.*test_capture.py:\d+"):
        sc.trace(Two(), torch.randn(2, 5))
    with pytest.raises(CaptureError, match="cannot run on these example inputs"):
        sc.trace(Two(), (torch.randn(2, 4), torch.randn(2, 4)))
    with pytest.raises(DataError, match="holds no tensor"):
        sc.trace(Two(), "picture.png")


def test_verify_names_what_a_wrong_plan_does() -> None:
    model, inputs = Two(), torch.randn(2, 4)
    plan = sc.trace(model, inputs).plan({"first": [0, 1]})
    wrong = type(plan)(plan.axes, plan.tensors[:-1], plan.attributes)
    with pytest.raises(
        VerificationError, match=r"cuts 'second.weight' to its whole shape, but its axes \['first'\] ask for \[3, 2\]"
    ):
        sc.verify(model, wrong, inputs)


def test_the_widths_of_default_attention_stay_and_heads_can_go() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(6, 12) for _ in range(4))
            self.last, self.heads = nn.Linear(12, 2), 3

        def forward(self, x: Tensor) -> Tensor:
            batch, tokens, _ = x.shape
            q, k, v = (
                layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            out: Tensor = self.last(mixed)
            return out

    model, inputs = Attention(), torch.randn(2, 5, 6)
    network = sc.trace(model, inputs)
    assert {axis.size for axis in network.axes} == {3, 4}
    assert "attention's default scale depends on this width" in reasons(model, inputs)
    assert sc.verify(model, network.plan({network.axes[0].name: [0, 2]}), inputs).zero_is_prune < 1e-12


def test_tracing_twice_gives_the_same_plan_bytes() -> None:
    model, inputs = Two(), torch.randn(2, 4)
    one, two = (sc.trace(model, inputs).plan({"first": [2, 5]}).to_json() for _ in range(2))
    assert one == two


def test_a_network_prints_its_axes_and_reasons() -> None:
    text = str(sc.trace(Two(), torch.randn(2, 4)))
    assert "first" in text
    assert "the model's output" in text
    assert "the model's input" in text


class Modes(nn.Module):
    """With a hint, the first four channels count twice, and another layer is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.hint, self.c = nn.Linear(3, 6), nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, hint: Tensor | None = None) -> Tensor:
        x = self.a(x).relu()
        if hint is not None:
            x = x + self.hint(hint)
            x = torch.cat([x[:, :4] * 2, x[:, 4:]], dim=1)
        out: Tensor = self.c(x)
        return out


def test_an_axis_is_what_holds_in_all_modes() -> None:
    model, plain, hinted = Modes(), torch.randn(5, 3), (torch.randn(5, 3), torch.randn(5, 2))
    assert [axis.size for axis in sc.trace(model, plain).axes] == [6]
    (axis,) = sc.trace(model, [plain, hinted]).axes
    assert axis.size == 2
    assert "hint.weight:0" in {str(slot) for slot in axis.slots}
    network = sc.trace(model, [plain, hinted])
    assert network.cost().macs == 5 * (3 * 6 + 6 * 2) + 5 * (3 * 6 + 2 * 6 + 6 * 2)
    assert sc.verify(model, network.plan({axis.name: [1]}), [plain, hinted]).zero_is_prune < 1e-6
