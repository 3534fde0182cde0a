"""Made-up records, as a run would fill them: an ordinary one, a very large one, and one with hardly anything in it."""

from dataclasses import replace

import numpy as np
import pytest

from secateur.report import (
    AxisRecord,
    FrozenRecord,
    Goal,
    LatencyRecord,
    Machine,
    Proof,
    Reproduction,
    Row,
    RunRecord,
    Step,
)

JOB = """\
model: secateur.demo.resnet20
data: cifar10-sample
budget:
  macs: 0.5
  accuracy_drop: 1.0
score: taylor
recover:
  epochs: 8
seed: 7
"""


@pytest.fixture(scope="session")
def record() -> RunRecord:
    """A ResNet-20 at half of its MACs: every section has data, and the accuracy drop misses its goal."""
    generator = np.random.default_rng(0)
    latency = made_up_latency(generator)
    return RunRecord(
        title="ResNet-20 at half of its multiplications",
        model="resnet20",
        created="2025-06-01T14:30:00+00:00",
        rows=(
            Row("accuracy", "%", 92.58, 91.34, "higher", "difference"),
            Row("parameters", "", 272_474, 141_210, "lower"),
            Row("MACs", "", 40_813_184, 20_332_416, "lower"),
            Row("bytes of weights", "B", 1_101_384, 576_328, "lower"),
            *latency.rows(),
            Row("peak memory", "B", 21_823_488, None, "lower"),
        ),
        goals=(Goal("MACs", "", 20_406_592, 20_332_416), Goal("accuracy drop", "points", 1.0, 1.24)),
        steps=made_up_steps(),
        axes=made_up_residual_axes(generator),
        frozen=MADE_UP_FROZEN,
        latency=(latency,),
        proofs=(
            Proof("permutation", 3.4e-15, 1e-12, True, "Every axis was permuted at random in all of its slots."),
            Proof("zero = prune", 8.9e-16, 1e-12, True, "The masked and the compact network gave the same output."),
            Proof("shape", 0, 0, True, "All 65 tensors have the predicted sizes."),
        ),
        reproduction=Reproduction(
            command="secateur prune job.yaml --out runs/resnet20-half",
            job=JOB,
            seed=7,
            versions={"secateur": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.9"},
            machine=Machine("Intel Xeon E-2388G", 2, "Linux 6.1, x86_64"),
        ),
        notes=("The accuracy is that of 2,000 held-out images, so one point is 20 images.",),
    )


@pytest.fixture(scope="session")
def large_record(record: RunRecord) -> RunRecord:
    """A language model with 400 axes of up to 11,008 units."""
    generator = np.random.default_rng(1)
    axes = [made_up_axis("model.embed_tokens", 4096, 3072, generator, exact=False, slots=400, cost_share=1.0)]
    for layer in range(100):
        stay = 0.9 - 0.5 * np.sin(np.pi * layer / 99)
        for name, size in (("self_attn.v_proj", 128), ("self_attn.o_proj", 32), ("mlp.up_proj", 11_008)):
            axes.append(made_up_axis(f"model.layers.{layer}.{name}", size, round(size * stay), generator))
        axes.append(made_up_axis(f"model.layers.{layer}.self_attn.q_proj", 64, 64, generator, exact=False))
    frozen = tuple(
        FrozenRecord(
            "the vocabulary: which row is read depends on the data" if layer % 2 else "the model returns it",
            f"modeling_example.py:{100 + layer}",
            tuple(f"model.layers.{layer}.table.{n}" for n in range(9)),
            128 * (layer + 1),
        )
        for layer in range(60)
    )
    return replace(record, title="A large language model", model="example-70b", axes=tuple(axes[:400]), frozen=frozen)


@pytest.fixture(scope="session")
def bare_record() -> RunRecord:
    """Nothing but what is required."""
    return RunRecord("A bare run", "resnet20", "2025-06-01T14:30:00+00:00")


def made_up_axis(
    name: str,
    size: int,
    stay: int,
    generator: np.random.Generator,
    *,
    exact: bool = True,
    slots: int = 3,
    cost_share: float | None = None,
) -> AxisRecord:
    scores = np.sort(generator.lognormal(-5, 1.2, size))[generator.permutation(size)]
    kept = np.sort(np.argsort(-scores)[:stay])
    return AxisRecord(
        name=name,
        size=size,
        kept=tuple(kept.tolist()),
        exact=exact,
        slots=tuple(f"{name}.slot{n}.weight:{n % 2}" for n in range(slots)),
        scores=tuple(scores.tolist()),
        cost_share=0.02 if cost_share is None else cost_share,
    )


def made_up_residual_axes(generator: np.random.Generator) -> tuple[AxisRecord, ...]:
    """Three residual streams, and inside each block its own channels."""
    axes = []
    for stage, width in enumerate((16, 32, 64), start=1):
        name = "conv1" if stage == 1 else f"layer{stage}.0.conv2"
        axes.append(made_up_axis(name, width, round(0.88 * width), generator, slots=14, cost_share=0.42 - 0.02 * stage))
        for block in range(3):
            stay = round(width * (0.75 - 0.2 * block + 0.03 * stage))
            axes.append(made_up_axis(f"layer{stage}.{block}.conv1", width, stay, generator, slots=6, cost_share=0.115))
    return tuple(axes)


def made_up_steps() -> tuple[Step, ...]:
    through = [("dense", 92.58, 0.268), ("pruned", 61.9, 1.412), ("refit", 84.25, 0.561)]
    through += [("batch norm re-estimated", 86.1, 0.488)]
    recovered = [(89.0, 0.384), (90.15, 0.342), (90.6, 0.331), (90.95, 0.322), (91.2, 0.315), (91.34, 0.311)]
    through += [(f"recovered, epoch {epoch}", *values) for epoch, values in enumerate(recovered, start=1)]
    return tuple(Step(name, {"accuracy": accuracy, "loss": loss}) for name, accuracy, loss in through)


def made_up_latency(generator: np.random.Generator) -> LatencyRecord:
    dense, pruned = 6.1 + generator.gamma(2, 0.12, 240), 3.4 + generator.gamma(2, 0.09, 240)
    dense[100] = 19.0
    return LatencyRecord("Batch of 1, 2 threads", tuple(dense.tolist()), tuple(pruned.tolist()))


MADE_UP_FROZEN = (
    FrozenRecord("the model's input has it", "resnet.py:71, in forward", ("conv1.weight",), 3),
    FrozenRecord("the model returns it", "resnet.py:78, in forward", ("linear.weight", "linear.bias"), 20),
    FrozenRecord(
        "the height and width of a kernel",
        "resnet.py:44, in forward",
        tuple(f"layer{stage}.{block}.conv{n}.weight" for stage in (1, 2, 3) for block in range(3) for n in (1, 2)),
        108,
    ),
    FrozenRecord(
        "aten.pad fills in a literal, which would not shrink",
        "resnet.py:39, in shortcut",
        ("layer2.0.conv2.weight", "layer2.0.bn2.weight"),
        16,
    ),
    FrozenRecord("the height and width of a kernel", "resnet.py:71, in forward", ("conv1.weight",), 6),
)
