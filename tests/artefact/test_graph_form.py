"""Artefacts of graph forms load into the model that they are the graph of; programs run without it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur import artefact
from secateur.axes import Plan
from secateur.errors import ArtefactError, CaptureError


class Literal(nn.Module):
    """Widths written as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).view(-1, 2, 4).relu().flatten(1))
        return out


INPUTS = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def pruned() -> nn.Module:
    graph = sc.as_graph(Literal().eval(), INPUTS)
    network = sc.trace(graph, INPUTS)
    return sc.compact(graph, network.plan({axis.name: [1] for axis in network.axes if axis.size == 2}))


def renamed(small: nn.Module) -> Plan:
    """The plan as a torch writes it that gives the graph's nodes other names."""
    plan = small.__dict__["secateur_plan"]
    return replace(plan, attributes=tuple(replace(a, name=f"other_{a.name}") for a in plan.attributes))


def test_it_loads_into_the_model_with_example_inputs(tmp_path: Path) -> None:
    small = pruned()
    saved = sc.save(small, tmp_path)
    assert (saved.form, saved.model) == ("graph", f"{__name__}.Literal")
    assert artefact.read(tmp_path) == saved
    for again in (sc.load(Literal(), tmp_path, INPUTS), sc.load(sc.as_graph(Literal(), INPUTS), tmp_path)):
        assert torch.equal(again.eval()(INPUTS), small(INPUTS))


def test_it_loads_where_torch_names_the_nodes_otherwise(tmp_path: Path) -> None:
    small = pruned()
    sc.save(small, tmp_path, renamed(small))
    assert torch.equal(sc.load(Literal().eval(), tmp_path, INPUTS)(INPUTS), small(INPUTS))
    with pytest.raises(ArtefactError, match="other_view_"):
        sc.load(sc.as_graph(Literal(), INPUTS), tmp_path)


def test_forms_are_not_mixed(tmp_path: Path) -> None:
    sc.save(pruned(), tmp_path / "graph")
    with pytest.raises(ArtefactError, match=r"holds the graph form of a .*Literal; pass example_inputs="):
        sc.load(Literal(), tmp_path / "graph")
    sc.save(Literal(), tmp_path / "module")
    with pytest.raises(ArtefactError, match=r"holds a .*Literal with its own code, not its graph form"):
        sc.load(sc.as_graph(Literal(), INPUTS), tmp_path / "module")


def test_a_manifest_without_a_form_is_one_of_a_module(tmp_path: Path) -> None:
    from secateur.artefact.manifest import MANIFEST, _digest

    sc.save(Literal(), tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    del content["form"], content["sha256"]
    (tmp_path / MANIFEST).write_text(json.dumps(content | {"sha256": _digest(content)}))
    assert artefact.read(tmp_path).form == "module"


def test_a_program_runs_without_the_model(tmp_path: Path) -> None:
    small = pruned()
    artefact.export(small, tmp_path / "small.pt2", INPUTS)
    program = torch.export.load(tmp_path / "small.pt2").module()
    for x in (INPUTS, torch.randn(7, 6)):
        torch.testing.assert_close(program(x), small(x))
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt2"]


def test_a_program_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"as \.pt2, not as 'small\.pth'"):
        artefact.export(Literal(), tmp_path / "small.pth", INPUTS)
    with pytest.raises(ArtefactError, match="cannot write"):
        artefact.export(Literal(), tmp_path / "nowhere" / "small.pt2", INPUTS)
    with pytest.raises(CaptureError, match="Literal cannot be exported"):
        artefact.export(Literal(), tmp_path / "small.pt2", torch.ones(2, 5))
