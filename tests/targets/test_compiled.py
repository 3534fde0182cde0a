"""What `torch.compile` makes of a model is compared with the model, and the model stays as it was."""

import shutil

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import DataError, TargetError
from secateur.targets import Compile, measure
from secateur.testing.zoo import ZOO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler"),
]


class Doubled(nn.Module):
    """Gives twice as much where it is compiled."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if torch.compiler.is_compiling() else x


@pytest.mark.parametrize("name", ["plain_cnn", "mlp", "multihead_attention", "lstm"])
def test_models_of_each_kind_compile_and_agree(name: str) -> None:
    entry = next(entry for entry in ZOO if entry.name == name)

    one = measure({"it": entry.build()}, entry.inputs(), target=Compile(threads=1), runs=2, seconds=0)["it"]

    assert (one.target, one.device, one.threads) == ("PyTorch compiled", "cpu", 1)
    assert one.agreement is not None
    assert one.agreement.difference < 1e-5  # the rounding of single precision in a few layers
    assert one.memory is not None


def test_many_versions_of_a_model_are_all_compiled() -> None:
    class Sines(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                x = x + 1e-5
            return torch.sin(x) * self.weight.sum()

    models = {str(width): Sines(width) for width in range(1, 12)}  # more than torch keeps of one line of code

    found = measure(models, torch.ones(3), target=Compile(threads=1), runs=2, seconds=0)

    assert all(one.agreement and one.agreement.difference > 1e-6 for one in found.values()), "some were not compiled"


def test_what_the_compiler_makes_wrong_is_refused() -> None:
    with pytest.raises(TargetError, match="PyTorch compiled computes something else than PyTorch: output 0 of 1"):
        measure({"it": Doubled()}, torch.ones(3), target=Compile())


def test_the_mode_is_named_and_the_model_is_not_compiled_itself() -> None:
    model = nn.Linear(4, 3).train()

    with Compile(mode="max-autotune-no-cudagraphs").load(model, torch.ones(2, 4)) as loaded:
        assert loaded.target == "PyTorch compiled, max-autotune-no-cudagraphs"

    assert model.training
    assert model._compiled_call_impl is None


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(TargetError, match=r"PyTorch compiled, fastest cannot run Linear: .*fastest"):
        measure({"it": nn.Linear(4, 3)}, torch.ones(2, 4), target=Compile(mode="fastest"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="0 threads"):
        Compile(threads=0)
