"""What fine-tuning does to a model, and what it leaves as it was."""

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from secateur.errors import DataError, ModelError, RecoveryError
from secateur.torch import compact, mask, trace, unmask
from secateur.train.recover import Distill, FineTune, Step, constant, cosine

Batch = tuple[Tensor, Tensor]


def model_of(*, dropout: float = 0.0) -> nn.Sequential:
    """4 -> 8 -> 3 with a batch normalisation, in float64 and eval mode."""
    torch.manual_seed(0)
    layers = (nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))
    return nn.Sequential(*layers).double().eval()


def batches_of(count: int = 6, size: int = 8) -> list[Batch]:
    """Three classes, each around a point of its own."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(3, 4, generator=generator, dtype=torch.float64) * 2
    labels = torch.arange(count * size).remainder(3)
    inputs = centres[labels] + torch.randn(count * size, 4, generator=generator, dtype=torch.float64)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def mean_loss(model: nn.Module, data: list[Batch]) -> float:
    with torch.no_grad():
        return float(torch.stack([F.cross_entropy(model(inputs), targets) for inputs, targets in data]).mean())


class TestTraining:
    def test_it_does_what_a_plain_training_loop_does(self) -> None:
        """The oracle is written out by hand; equal up to the order of float64 sums."""
        data = batches_of()
        trained, expected = model_of(), model_of().train()
        FineTune(
            epochs=2,
            learning_rate=0.02,
            optimizer=partial(torch.optim.SGD, momentum=0.9),
            weight_decay=0.1,
            max_grad_norm=0.5,
        )(trained, data)

        velocity = {name: torch.zeros_like(p) for name, p in expected.named_parameters()}
        for step, (inputs, targets) in enumerate(data * 2):
            expected.zero_grad()
            F.cross_entropy(expected(inputs), targets).backward()
            norm = sum(float(p.grad.square().sum()) for p in expected.parameters() if p.grad is not None) ** 0.5
            with torch.no_grad():
                for name, p in expected.named_parameters():
                    assert p.grad is not None
                    gradient = p.grad * min(1, 0.5 / norm) + (0.1 * p if p.ndim > 1 else 0)
                    velocity[name] = 0.9 * velocity[name] + gradient
                    p -= 0.02 * cosine(step, 12) * velocity[name]

        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(
                trained.state_dict()[name], tensor, rtol=1e-5, atol=1e-7
            )  # clipping adds 1e-6 to the norm

    def test_a_pruned_network_gets_its_accuracy_back(self) -> None:
        data = batches_of(12, 16)
        dense = FineTune(epochs=8, learning_rate=0.01)(model_of(), data)
        small = compact(dense, trace(dense, data[0][0]).plan({"0": [0, 1, 2]}))
        best, pruned = mean_loss(dense, data), mean_loss(small, data)

        recovered = FineTune(epochs=8, learning_rate=0.01)(small, data)

        assert recovered is small
        assert recovered[0].weight.shape == (3, 4)  # type: ignore[union-attr,operator,index]
        assert mean_loss(recovered, data) < (best + pruned) / 2

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        data = DataLoader(
            TensorDataset(*(torch.cat(parts) for parts in zip(*batches_of(), strict=True))), 8, shuffle=True
        )
        first, again, other = (FineTune(epochs=2, seed=seed)(model_of(dropout=0.5), data) for seed in (3, 3, 4))

        assert same(state(first), state(again))
        assert not same(state(first), state(other))

    def test_it_trains_although_gradients_are_switched_off_around_it(self) -> None:
        trained, expected = model_of(), FineTune()(model_of(), batches_of())
        with torch.no_grad():
            FineTune()(trained, batches_of())

        assert same(state(trained), state(expected))

    def test_each_update_is_reported(self) -> None:
        steps: list[Step] = []
        FineTune(epochs=2, batch_limit=2)(model_of(), batches_of(5), progress=steps.append)

        assert [(s.epoch, s.step, s.steps) for s in steps] == [(1, 1, 4), (1, 2, 4), (2, 3, 4), (2, 4, 4)]
        model = model_of().train()
        assert steps[0].loss == pytest.approx(mean_loss(model, batches_of(5)[:1]), rel=1e-12)  # float64

    def test_a_batch_limit_takes_the_first_batches_of_each_epoch(self) -> None:
        limited, expected = FineTune(epochs=2, batch_limit=2), FineTune(epochs=2)

        assert same(state(limited(model_of(), batches_of(5))), state(expected(model_of(), batches_of(5)[:2])))


class TestDefaults:
    def test_batches_of_keyword_arguments_use_the_models_own_loss(self) -> None:
        class WithLoss(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model_of()

            def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
                logits = self.inner(x)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        model, expected = WithLoss().eval(), FineTune()(model_of(), batches_of())
        FineTune()(model, [{"x": inputs, "labels": targets} for inputs, targets in batches_of()])

        assert same(state(model.inner), state(expected))

    def test_targets_are_used_although_the_model_has_a_loss_too(self) -> None:
        class Output(nn.Sequential):
            def forward(self, input: Tensor) -> Any:
                logits = super().forward(input)
                return SimpleNamespace(loss=logits.sum() * torch.nan, logits=logits)

        trained, expected = Output(*model_of()).eval(), FineTune()(model_of(), batches_of())

        assert same(state(FineTune()(trained, batches_of())), state(expected))

    def test_a_given_loss_gets_the_output_as_it_is(self) -> None:
        class Pair(nn.Sequential):
            def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
                return super().forward(input), input

        seen: list[Any] = []

        def loss(output: Any, targets: Tensor) -> Tensor:
            seen.append(output)
            return F.cross_entropy(output[0], targets)

        FineTune(loss=loss)(Pair(*model_of()), batches_of(1))

        assert isinstance(seen[0], tuple)

    def test_integer_tensors_and_nested_inputs_keep_their_dtype(self) -> None:
        class Words(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(5, 3)

            def forward(self, words: Tensor, scale: dict[str, Tensor]) -> Tensor:
                return self.table(words).mean(1) * scale["by"]

        batch = ((torch.zeros(2, 4, dtype=torch.int64), {"by": torch.ones(1)}), torch.tensor([0, 1]))
        before = state(model := Words())
        FineTune()(model, [batch])

        assert not same(state(model), before)


class TestWhatStays:
    def test_frozen_parameters_and_the_statistics_beside_them_stay(self) -> None:
        model = model_of()
        model[1].requires_grad_(False)
        before = state(model)
        FineTune(weight_decay=0.1)(model, batches_of())
        after = state(model)

        assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("1."))
        assert not torch.equal(before["0.weight"], after["0.weight"])

    def test_trained_normalisations_gather_statistics(self) -> None:
        model = model_of()
        FineTune()(model, batches_of())

        assert model[1].num_batches_tracked == 6

    def test_every_module_is_in_the_mode_it_was_in(self) -> None:
        for root in (True, False):
            model = model_of().train(root)
            model[3].train(not root)
            before = [module.training for module in model.modules()]
            FineTune()(model, batches_of())

            assert [module.training for module in model.modules()] == before

    def test_a_module_in_eval_mode_stays_there_in_a_model_in_train_mode(self) -> None:
        model = model_of().train()
        model[1].eval()
        FineTune()(model, batches_of())

        assert model[1].num_batches_tracked == 0

    def test_no_gradient_is_left_behind(self) -> None:
        model, teacher = model_of(), model_of()
        model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[union-attr,arg-type]
        FineTune(distill=Distill())(model, batches_of(), teacher)

        assert all(p.grad is None for part in (model, teacher) for p in part.parameters())

    def test_a_gradient_of_before_is_not_trained_on(self) -> None:
        marked, expected = model_of(), FineTune()(model_of(), batches_of())
        marked[0].weight.grad = torch.ones_like(marked[0].weight)  # type: ignore[union-attr,arg-type]

        assert same(state(FineTune()(marked, batches_of())), state(expected))

    def test_global_random_numbers_go_on_as_if_nothing_had_been_drawn(self) -> None:
        def drawn() -> tuple[float, float, float]:
            return torch.rand(()).item(), random.random(), float(np.random.random())  # noqa: NPY002

        def noisy() -> Iterator[Batch]:
            for inputs, targets in batches_of():
                yield inputs + random.random() + np.random.random() + torch.rand(()), targets  # noqa: NPY002

        def seed_all() -> None:
            torch.manual_seed(5)
            random.seed(5)
            np.random.seed(5)  # noqa: NPY002

        model = model_of(dropout=0.5)
        seed_all()
        expected = drawn()
        seed_all()
        FineTune(batch_limit=6)(model, noisy())

        assert drawn() == expected

    def test_everything_is_put_back_when_the_data_fails(self) -> None:
        def broken() -> Iterator[Batch]:
            yield batches_of()[0]
            raise OSError("the disk is gone")

        model, teacher = model_of(dropout=0.5), model_of().train()
        torch.manual_seed(5)
        expected = torch.rand(())
        torch.manual_seed(5)
        with pytest.raises(OSError, match="the disk is gone"):
            FineTune(batch_limit=6, distill=Distill())(model, broken(), teacher)

        assert not model.training
        assert teacher.training
        assert all(p.grad is None for p in model.parameters())
        assert torch.equal(torch.rand(()), expected)


class TestMask:
    def test_a_masked_model_learns_what_the_compact_one_does(self) -> None:
        """With a sigmoid, what is read of a masked unit is one half: without a gradient that is held, it would come back."""
        data = batches_of()
        dense = nn.Sequential(
            nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)
        )
        dense = dense.double().eval()
        plan = trace(dense, data[0][0]).plan({"0": [0, 2, 3, 7], "3": [1, 5]})
        for optimizer in (None, torch.optim.AdamW):
            recipe = FineTune(epochs=3, learning_rate=0.05, optimizer=optimizer, max_grad_norm=0.1)
            masked, small = recipe(mask(dense, plan), data), recipe(compact(dense, plan), data)

            goal = compact(masked, plan)
            for name, parameter in small.named_parameters():
                # Sums over more terms, all but the kept ones zero, may round in another order.
                torch.testing.assert_close(goal.get_parameter(name), parameter, rtol=1e-9, atol=1e-12)
                assert not torch.equal(parameter, compact(dense, plan).get_parameter(name))
            gone = masked[3].weight[:, [1, 4, 5, 6]]  # type: ignore[union-attr,index]
            assert not gone.any()

    def test_zeros_stay_under_an_optimiser_that_adds_noise(self) -> None:
        class Noisy(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.data += 0.1

        dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        plan = trace(dense, batches_of()[0][0]).plan({"0": [0, 2]})
        masked = FineTune(optimizer=Noisy, learning_rate=0.1)(mask(dense, plan), batches_of())

        assert not masked[0].weight[[1, 3, 4, 5, 6, 7]].any()  # type: ignore[union-attr,index]
        assert masked[0].weight[[0, 2]].all()  # type: ignore[union-attr,index]
        restored = unmask(masked)
        assert torch.equal(restored[0].weight[1], dense[0].weight[1])  # type: ignore[union-attr,index]


class TestSchedule:
    @pytest.mark.parametrize("factor", [float("nan"), float("inf"), -0.1, "1", None])
    def test_a_factor_that_is_no_rate_is_refused_with_its_step(self, factor: Any) -> None:
        model = model_of()
        before = state(model)
        with pytest.raises(RecoveryError, match=rf"gave {factor!r} in step 0 of 6, counted from 0; .* of 0 or more"):
            FineTune(schedule=lambda step, steps: factor)(model, batches_of())
        assert same(state(model), before)

    def test_data_with_more_batches_than_it_says_end_on_the_lowest_rate(self) -> None:
        assert cosine(5, 4) == cosine(4, 4) == cosine(3, 4) > 0


class TestTeacher:
    def test_the_teacher_is_asked_in_eval_mode_and_not_changed(self) -> None:
        teacher = model_of(dropout=0.9).train()
        before, modes = state(teacher), []
        teacher.register_forward_hook(
            lambda module, args, output: modes.append((module.training, output.requires_grad))
        )
        FineTune(distill=Distill())(model_of(), batches_of(2), teacher)

        assert modes == [(False, False)] * 2
        assert same(state(teacher), before)
        assert teacher.training

    def test_the_loss_is_the_weighted_mean_of_task_and_distance(self) -> None:
        """Against the losses computed one by one from the untrained model."""
        teacher = FineTune(learning_rate=0.1)(model_of(), batches_of())
        distill = Distill(temperature=3.0, weight=0.25)
        steps: list[Step] = []
        FineTune(distill=distill)(model_of(), batches_of(1), teacher, steps.append)

        inputs, targets = batches_of(1)[0]
        logits = model_of().train()(inputs).detach()
        expected = 0.75 * F.cross_entropy(logits, targets) + 0.25 * distill(logits, teacher(inputs).detach())
        assert steps[0].loss == pytest.approx(float(expected), rel=1e-12)  # float64

    def test_a_teacher_without_distillation_is_not_asked(self) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError

        teacher = model_of()
        teacher.register_forward_hook(refuse)
        FineTune()(model_of(), batches_of(1), teacher)

    def test_a_model_learns_from_the_teacher_alone_without_targets(self) -> None:
        teacher = FineTune(epochs=4, learning_rate=0.05)(model_of(), batches_of())
        model = model_of()
        inputs = [inputs for inputs, _ in batches_of()]
        before = mean_loss(model, batches_of())
        FineTune(epochs=8, learning_rate=0.1, distill=Distill(weight=1.0))(model, inputs, teacher)

        assert mean_loss(model, batches_of()) < 0.5 * before

    @pytest.mark.parametrize(
        ("teacher", "message"),
        [
            (lambda model: None, "needs a teacher, the dense model, and got a NoneType"),
            (lambda model: model, "the teacher is the model that is trained"),
            (lambda model: nn.Sequential(*model), "shares the trainable parameter '0.weight' with its teacher"),
        ],
    )
    def test_a_teacher_that_would_change_is_refused(
        self, teacher: Callable[[nn.Sequential], nn.Module | None], message: str
    ) -> None:
        model = model_of()
        with pytest.raises(RecoveryError, match=message):
            FineTune(distill=Distill())(model, batches_of(), teacher(model))

    def test_a_teacher_with_nan_is_refused(self) -> None:
        teacher = model_of()
        teacher[4].bias.data[0] = torch.nan  # type: ignore[union-attr,operator,index]
        with pytest.raises(ModelError, match=r"'4.bias' of the teacher"):
            FineTune(distill=Distill())(model_of(), batches_of(), teacher)


class TestDivergence:
    def test_the_weights_with_the_lowest_running_mean_come_back(self) -> None:
        """Gradient ascent from a good start; the running mean is computed by hand, over states that the loss saw."""
        model = FineTune(epochs=3, learning_rate=0.02)(model_of(), batches_of())
        states, losses = [state(model)], []

        def note(step: Step) -> None:
            states.append(state(model))
            losses.append(step.loss)

        data = batches_of()
        data[4] = (data[4][0] * torch.nan, data[4][1])
        with pytest.raises(DataError):
            FineTune(learning_rate=0.5)(model, data, progress=note)

        means = losses[:1]
        for loss in losses[1:]:
            means.append(0.9 * means[-1] + 0.1 * loss)
        best = states[int(np.argmin(means))]
        trained = {name for name, _ in model.named_parameters()}
        assert len(losses) == 4
        assert all(torch.equal(best[name], state(model)[name]) for name in trained)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state(model).values())

    def test_a_loss_that_is_not_finite_says_where(self) -> None:
        seen = itertools.count(1)

        def loss(output: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(output, targets) * (torch.inf if next(seen) == 4 else 1)

        with pytest.raises(
            RecoveryError, match=r"the loss is inf at batch 4 of epoch 1; .* best weights so far"
        ) as caught:
            FineTune(loss=loss)(model_of(), batches_of())
        assert "Lower the learning_rate, which is" in str(caught.value)

    def test_a_gradient_that_is_not_finite_is_found_although_the_loss_is(self) -> None:
        model = model_of()
        before = state(model)

        def loss(output: Tensor, targets: Tensor) -> Tensor:
            return (output - output.detach()).abs().sum().sqrt()  # 0, with an infinite slope

        with pytest.raises(RecoveryError, match="norm of the gradients is nan at batch 1 of epoch 1, with a loss of 0"):
            FineTune(loss=loss)(model, batches_of())
        assert same(state(model), before)

    def test_an_update_beyond_all_numbers_is_found_after_the_last_step(self) -> None:
        model = model_of()
        sgd = partial(torch.optim.SGD, momentum=0.0)
        with pytest.raises(RecoveryError, match=r"the last update left NaN or infinite values in '0.weight'"):
            FineTune(learning_rate=1e308, optimizer=sgd, max_grad_norm=1e6, weight_decay=1e6)(model, batches_of(1))
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())

    def test_a_batch_with_nan_is_blamed_before_the_learning_rate(self) -> None:
        model = model_of()
        before = state(model)
        inputs, targets = batches_of()[0]
        with pytest.raises(DataError, match="batch 1 of epoch 1, because the batch itself holds NaN") as caught:
            FineTune()(model, [(inputs * torch.nan, targets)])
        assert "the model has the weights that it came with" in str(caught.value)
        assert same(state(model), before)  # the running statistics too


class TestData:
    def test_data_that_can_be_iterated_once_is_refused_for_two_epochs(self) -> None:
        model = model_of()
        before = state(model)
        with pytest.raises(
            DataError, match="list_iterator, which can be iterated only once: after the first of 2 epochs"
        ):
            FineTune(epochs=2)(model, iter(batches_of()))
        assert same(state(model), before)

    def test_data_that_hides_that_it_is_empty_the_second_time_is_found_out(self) -> None:
        class Once:
            def __init__(self) -> None:
                self.left = iter(batches_of())

            def __iter__(self) -> Iterator[Batch]:
                return self.left

        with pytest.raises(DataError, match=r"Once, gave no batches in epoch 2 of 2; .* starts anew each time"):
            FineTune(epochs=2, schedule=constant)(model_of(), Once())

    @pytest.mark.parametrize(
        "recipe", [FineTune(batch_limit=6), FineTune(schedule=constant)], ids=["limit", "constant"]
    )
    def test_data_that_can_be_iterated_once_serves_one_epoch(self, recipe: FineTune) -> None:
        trained, expected = recipe(model_of(), iter(batches_of())), recipe(model_of(), batches_of())

        assert same(state(trained), state(expected))

    def test_a_falling_rate_needs_the_number_of_batches(self) -> None:
        class Stream(IterableDataset[Batch]):
            def __iter__(self) -> Iterator[Batch]:
                yield from batches_of()

        for data in (iter(batches_of()), DataLoader(Stream(), batch_size=None)):
            with pytest.raises(
                DataError, match=r"does not say how many batches .*batch_limit=\.\.\..*schedule=constant"
            ):
                FineTune()(model_of(), data)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([], "data, a list, has no batches; give at least one"),
            (iter([]), "gave no batches in epoch 1 of 1"),
            (torch.ones(8, 4), "got one Tensor"),
            (7, "data is an iterable of batches, such as a list or a DataLoader; got one int"),
        ],
    )
    def test_empty_data_is_refused(self, data: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            FineTune(schedule=constant)(model_of(), data)

    def test_inputs_without_targets_need_a_loss_of_the_model(self) -> None:
        with pytest.raises(
            DataError, match=r"batch 1 of epoch 1: the batch has no targets, and the model's output \(Tensor\) no loss"
        ):
            FineTune()(model_of(), [inputs for inputs, _ in batches_of()])

    def test_inputs_that_do_not_fit_are_named_with_their_batch(self) -> None:
        data = [*batches_of(2), (torch.zeros(8, 5, dtype=torch.float64), torch.zeros(8, dtype=torch.int64))]
        with pytest.raises(
            DataError, match=r"batch 3 of epoch 1: Sequential cannot run on .* of shape \(8, 5\): RuntimeError"
        ):
            FineTune()(model_of(), data)

    def test_labels_of_other_data_are_refused(self) -> None:
        inputs, targets = batches_of()[0]
        with pytest.raises(DataError, match=r"batch 1 of epoch 1: the labels go from 7 to 9, .* 3 classes"):
            FineTune()(model_of(), [(inputs, targets + 7)])

    def test_cross_entropy_of_a_single_class_is_refused(self) -> None:
        """It is 0 whatever the model does: training would end well, and have changed nothing."""
        with pytest.raises(DataError, match=r"two classes or more, and the logits have the shape \[8, 1\]; pass loss="):
            FineTune()(nn.Linear(4, 1).double(), [(batches_of()[0][0], torch.zeros(8, dtype=torch.int64))])

    def test_a_last_batch_too_small_for_a_normalisation_is_explained(self) -> None:
        with pytest.raises(
            DataError, match=r"batch 2 of epoch 1: .* of shape \(1, 4\): ValueError: Expected more than 1 value"
        ):
            FineTune()(model_of(), [batches_of()[0], (torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0]))])

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (lambda output, targets: output.sum(1), r"must be a tensor with one number, such as a mean"),
            (lambda output, targets: output.mean().item(), r"batch 1 of epoch 1: the loss is a float; it must be"),
            (lambda output, targets: output.mean().detach(), "does not depend on any trainable parameter"),
            (
                lambda output, targets: F.mse_loss(output, targets[:2]),
                r"cannot be computed: RuntimeError: .*\(tests/train/test_finetune.py:\d+\).*targets are a tensor of shape \[8\]",
            ),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Using a target size")
    def test_a_loss_that_cannot_be_minimised_is_refused(self, loss: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            FineTune(loss=loss)(model_of(), batches_of())


class TestModel:
    def test_a_model_without_trainable_parameters_is_refused(self) -> None:
        with pytest.raises(
            RecoveryError, match="nothing to train: Sequential has no parameter with requires_grad=True"
        ):
            FineTune()(model_of().requires_grad_(False), batches_of())

    def test_a_model_on_the_meta_device_is_refused(self) -> None:
        with pytest.raises(ModelError, match="on the meta device, without values"):
            FineTune()(model_of().to("meta"), batches_of())

    def test_a_model_with_nan_is_refused(self) -> None:
        model = model_of()
        model[0].weight.data[0, 0] = torch.nan  # type: ignore[union-attr,operator,index]
        with pytest.raises(ModelError, match=r"'0.weight' of Sequential holds NaN"):
            FineTune()(model, batches_of())

    def test_what_is_no_module_is_refused(self) -> None:
        with pytest.raises(ModelError, match="the model to train is a function"):
            FineTune()(F.relu, batches_of())  # type: ignore[arg-type]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_batches_come_to_the_model_on_its_device(self) -> None:
        model = model_of(dropout=0.5).cuda()
        expected = torch.cuda.get_rng_state()
        FineTune(distill=Distill())(model, batches_of(), model_of())

        assert torch.equal(torch.cuda.get_rng_state(), expected)
        assert all(p.is_cuda for p in model.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, r"FineTune\(epochs=0\): must be a whole number, at least 1"),
        ({"epochs": 1.5}, r"epochs=1.5"),
        ({"epochs": True}, r"epochs=True"),
        ({"learning_rate": 0.0}, r"FineTune\(learning_rate=0.0\): must be a number above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan"),
        ({"learning_rate": "1e-3"}, r"learning_rate='1e-3'"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1\): must be a number, at least 0"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm=0.0\): must be a number above 0, or None"),
        ({"seed": -1}, r"seed=-1\): must be a whole number, at least 0"),
        ({"batch_limit": 0}, r"batch_limit=0\): must be a whole number, at least 1, or None"),
    ],
)
def test_a_value_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecoveryError, match=message):
        FineTune(**values)


def test_a_recipe_is_a_value() -> None:
    assert FineTune(epochs=2) == FineTune(epochs=2)
    assert copy.deepcopy(FineTune(distill=Distill())) == FineTune(distill=Distill())


def test_the_rate_rises_shortly_and_falls_to_almost_nothing() -> None:
    rates = [cosine(step, 100) for step in range(100)]

    assert all(later > earlier for earlier, later in itertools.pairwise(rates[:6]))
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert max(rates) == 1
    assert 0 < min(rates) == rates[-1] < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 3, 19, 20, 21])
def test_the_rate_is_above_zero_however_few_the_steps(steps: int) -> None:
    assert all(0 < cosine(step, steps) <= 1 for step in range(steps))
