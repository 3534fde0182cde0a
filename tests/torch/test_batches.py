"""What a batch may be, and what is said where it is something else."""

from collections import namedtuple
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.errors import DataError, ModelError
from secateur.torch.batches import cross_entropy, is_out_of_memory, logits_of, loss_of, run, split_batch, take
from secateur.torch.calibrate import Calibrate
from secateur.torch.compensate import ReestimateBatchNorm, Refit, compensate
from secateur.torch.scores import Energy, Fisher, Score, Taylor

X, Y = torch.arange(24.0).reshape(8, 3), torch.arange(8) % 2


# Forms


Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize(
    "batch", [(X, Y), [X, Y], Pair(X, Y), ({"x": X}, Y), ((X,), Y), ([X], Y)], ids=lambda b: type(b).__name__
)
def test_a_pair_is_inputs_and_targets(batch: Any) -> None:
    inputs, targets = split_batch(batch)
    assert targets is Y
    model = nn.Linear(3, 2)
    model.forward = lambda x: x  # type: ignore[method-assign]
    assert run(model, inputs) is X


@pytest.mark.parametrize("batch", [X, [X], (X,), {"x": X, "labels": Y}, [{"x": X}], (({"x": X}),)], ids=str)
def test_a_tensor_or_a_mapping_has_no_targets(batch: Any) -> None:
    inputs, targets = split_batch(batch)
    assert targets is None
    assert (inputs["x"] if isinstance(inputs, dict) else inputs) is X


def test_several_inputs_come_as_a_pair_in_a_pair() -> None:
    inputs, targets = split_batch(((X, Y), None))
    assert isinstance(inputs, tuple)
    assert inputs[0] is X
    assert targets is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, X, Y), r"got a tuple of 3; give several inputs as \(\(a, b\), targets\)"),
        ([], "got a list of 0"),
        (X.numpy(), "the inputs of a batch hold no tensor: ndarray; give what model"),
        ({}, "hold no tensor: dict"),
        (("text", Y), "hold no tensor: str"),
        (None, "hold no tensor: NoneType"),
    ],
)
def test_other_forms_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_batch(batch)


def test_a_loader_of_any_form_gives_the_samples_that_are_asked_for() -> None:
    pairs = DataLoader(TensorDataset(X, Y), 3)
    alone = DataLoader(TensorDataset(X), 3)
    named = DataLoader([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], 3)  # type: ignore[arg-type]
    for loader in (pairs, alone, named):
        found = [inputs["x"] if isinstance(inputs, dict) else inputs for inputs, _ in take(loader, samples=7)]
        assert torch.equal(torch.cat(found), X[:7])  # type: ignore[arg-type]
    assert torch.equal(torch.cat([y for _, y in take(pairs, samples=7)]), Y[:7])


def test_no_more_batches_are_asked_for_than_needed() -> None:
    def endless() -> Iterator[Tensor]:
        yield X
        raise AssertionError

    assert [len(x) for x, _ in take(endless(), samples=8)] == [8]


def test_empty_batches_are_passed_over() -> None:
    assert [len(x) for x, _ in take([X[:0], X[:2], X[:0], X[:1]], samples=9)] == [2, 1]


@pytest.mark.parametrize(
    "batches",
    [[], iter([]), (x for x in ()), [X[:0]], DataLoader(TensorDataset(X[:0]), 3)],
    ids=["list", "iterator", "generator", "empty batch", "loader"],
)
def test_no_data_is_an_error(batches: Any) -> None:
    with pytest.raises(DataError, match="there is no data: the batches are empty or already used up"):
        list(take(batches, samples=4))


@pytest.mark.parametrize("batches", [X, {"x": X}, 3, None], ids=["tensor", "mapping", "number", "none"])
def test_one_batch_in_place_of_batches_is_refused(batches: Any) -> None:
    with pytest.raises(DataError, match=f"an iterable of batches, .* got one {type(batches).__name__}"):
        list(take(batches, samples=4))


def test_targets_are_cut_with_their_inputs() -> None:
    nested = {"class": Y, "boxes": X}
    parts = list(take([(X, nested)], samples=5, at_most=2, labelled=True))
    assert [len(x) for x, _ in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([targets["class"] for _, targets in parts]), Y[:5])
    assert torch.equal(torch.cat([targets["boxes"] for _, targets in parts]), X[:5])


def test_targets_that_cannot_be_cut_are_refused_where_they_matter() -> None:
    batches = [(X, ["cat"] * 8)]
    with pytest.raises(
        DataError, match=r"8 samples has to be cut into parts of 2, but its targets, a list, .* batches of 2"
    ):
        list(take(batches, samples=8, at_most=2, labelled=True))
    assert len(list(take(batches, samples=8, at_most=8, labelled=True))) == 1
    assert len(list(take(batches, samples=8, at_most=2))) == 4


# Once


def chain() -> tuple[nn.Sequential, sc.TracedNetwork]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    return model, sc.trace(model, X)


def test_a_generator_that_is_used_up_says_so() -> None:
    _, network = chain()
    batches = ((x, y) for x, y in [(X, Y)])
    Fisher()(network, batches)
    with pytest.raises(DataError, match="the batches are empty or already used up; give a list or a data loader"):
        Fisher()(network, batches)


def test_several_steps_refuse_a_generator_at_once() -> None:
    model, network = chain()
    plan = network.plan({"0": [0, 1, 2]})
    small = sc.compact(model, plan)
    with pytest.raises(DataError, match="a one-time generator, and 2 steps go through the batches anew; give a list"):
        compensate(network, small, plan, (x for x in [X]), [Refit(), ReestimateBatchNorm()])
    expected = compensate(network, small, plan, [X], [Refit()])
    mended = compensate(network, small, plan, iter([X]), [Refit()])
    assert all(torch.equal(a, b) for a, b in zip(mended.parameters(), expected.parameters(), strict=True))


# Runs


class Hungry(nn.Linear):
    """Wants more memory than there is, once it sees data."""

    error: BaseException | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_meta and float(input.detach().sum()) != 0:
            if self.error is not None:
                raise self.error
            torch.empty(1 << 60)
        return super().forward(input)


def test_too_little_memory_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory"):
        run(Hungry(3, 2), X)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
def test_what_torch_says_of_memory_stays_what_it_is_in_every_step(error: BaseException) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), Hungry(4, 2)).eval()
    network = sc.trace(model, torch.zeros(2, 3))
    model[3].error = error
    plan = network.plan({"0": [0, 1]})
    jobs = (
        lambda: Fisher()(network, [(X, Y)]),
        lambda: Energy()(network, [X]),
        lambda: Refit()(network, sc.compact(model, plan), plan, [X]),
        lambda: sc.recover.FineTune()(model, [(X, Y)]),
        lambda: sc.recover.FineTune(loss=out_of_memory(error))(nn.Linear(3, 2), [(X, Y)]),
    )
    for job in jobs:
        with pytest.raises(type(error)) as caught:
            job()
        assert str(caught.value) == str(error)


def out_of_memory(error: BaseException) -> Any:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        raise error

    return loss


def test_only_memory_is_taken_for_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_inputs_that_do_not_fit_are_named_with_their_shape() -> None:
    with pytest.raises(
        DataError, match=r"Linear cannot run on a batch, or a part of one, with inputs of shape \(8, 3\): RuntimeError"
    ) as caught:
        run(nn.Linear(4, 2), X)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_model_without_values_cannot_run() -> None:
    with pytest.raises(ModelError, match="on the meta device and cannot compute"):
        run(nn.Linear(3, 2, device="meta"), X)


# Losses


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, "more"),
        lambda x: [x],
        lambda x: {"logits": x, "loss": None},
        lambda x: SimpleNamespace(logits=x),
    ],
    ids=["tensor", "tuple", "list", "mapping", "object"],
)
def test_logits_are_found_in_what_models_return(wrap: Any) -> None:
    tensor = torch.tensor([[1.0, 2.0, 3.0]])
    assert logits_of(wrap(tensor)) is tensor
    expected = -torch.log_softmax(tensor, 1)[0, 2]
    assert torch.equal(cross_entropy(wrap(tensor), torch.tensor([2])), expected)


@pytest.mark.parametrize("output", [None, (), {"scores": torch.ones(1)}, ("text",)])
def test_an_output_without_logits_is_refused(output: object) -> None:
    with pytest.raises(DataError, match="no logits in the model's output of type"):
        logits_of(output)


@pytest.mark.parametrize("score", [Taylor(), Fisher()], ids=repr)
def test_a_single_class_is_refused(score: Score) -> None:
    """Its cross-entropy is 0 whatever the model does: every unit would be worth nothing."""
    network = sc.trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), X)
    with pytest.raises(DataError, match=r"two classes or more, and the logits have the shape \[\d, 1\]; pass loss="):
        score(network, [(X, torch.zeros(8, dtype=torch.int64))])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 1, 2]), r"the labels go from 0 to 2, but the model has 2 classes, 0 to 1; is this the data"),
        (torch.tensor([0, -1, 1]), "the labels go from -1 to 1"),
        (torch.tensor([[0], [1], [0]]), r"labels of shape \[3, 1\] do not fit logits of shape \[3, 2\]"),
        (torch.tensor([0, 1]), r"labels of shape \[2\] do not fit logits of shape \[3, 2\]"),
        (
            torch.tensor([0.0, 1.0, 1.0]),
            r"the targets \[3\] of type torch.float32 do not fit .* labels of an integer type",
        ),
        ([0, 1, 1], "compares logits with a tensor of targets; got a list; pass loss="),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cross_entropy(torch.zeros(3, 2), targets)


def test_what_is_left_out_does_not_count_and_all_left_out_is_found() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([1, -100, 3])
    expected = -torch.log_softmax(logits, 1)[[0, 2], [1, 3]].mean()
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    _, network = chain()
    with pytest.raises(DataError, match="the loss is nan on a batch"):
        Fisher()(network, [(X, torch.full((8,), -100))])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.bool])
def test_labels_may_be_of_any_integer_type(kind: torch.dtype) -> None:
    logits, labels = torch.randn(3, 2), torch.tensor([1, 0, 1])
    assert torch.equal(cross_entropy(logits, labels.to(kind)), cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, targets: output, r"the loss came out as a Tensor of shape \[8, 2\]; it is one number"),
        (lambda output, targets: 0.5, "the loss came out as a float"),
    ],
)
def test_a_loss_is_one_number(loss: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loss_of(nn.Linear(3, 2), X, Y, loss)


def test_a_batch_without_targets_needs_the_models_own_loss() -> None:
    with pytest.raises(DataError, match=r"there is no loss: the batch has no targets, and Linear returned a Tensor"):
        loss_of(nn.Linear(3, 2), X, None)


def test_calibration_reads_no_targets() -> None:
    """Whatever they are: only scores and training look at them."""
    _, network = chain()
    one = Calibrate(samples=5)(network.model, [(X, ["cat"] * 8)])
    other = Calibrate(samples=5)(network.model, [X])
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(one, other, strict=True))
