"""Runs a model without the modules of its branches, on the meta device, to see that it runs and that zeros are what joins."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.axes import StandIn
from secateur.torch.branches import Unit
from secateur.torch.flow import SUMS
from secateur.torch.places import cause_of, running
from secateur.torch.rules.pointwise import at_zero
from secateur.torch.rules.registry import RULES
from secateur.torch.schema import operands, schema_of
from secateur.torch.stand_in import Skipped, holders
from secateur.torch.values import KnownValues

Tags = frozenset[tuple[Unit, str]]
"""The branches that zeros come from, with the paths of the modules that gave them."""


class Trial(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the zeros that stand-ins give, to where they join.

    Args:
        model: A copy that may be changed.
        run: Runs it, within this mode.
        values: What is known of the values in a run on the meta device, or None.
    """

    def __init__(self, model: nn.Module, run: Callable[["Trial"], Any], values: KnownValues | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self._run, self._values = model, run, values
        self._modules, self._holders = dict(model.named_modules()), holders(model)
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._silent: dict[int, tuple[Tensor, Tags]] = {}
        self._joined: dict[Unit, list[str]] = {}
        self._latest: Unit | None = None

    def __call__(self, units: Sequence[Unit]) -> None:
        """Note in each unit whether it can go, and what of it gives the zeros that join."""
        left, lines = list(units), set[str]()
        while left:
            self._silent, self._joined, self._latest = {}, {}, None
            reason = self._without(left)
            if not reason:
                break
            blamed = self._blamed()
            line = _line(blamed)
            for unit in [u for u in left if blamed in (u, None) or (line in lines and _line(u) == line)]:
                unit.reason = f"without its modules the code fails: {reason}"
                left.remove(unit)
            lines.add(line)
        for unit in left:
            if Counter(one.where for one, _ in unit.sums) - Counter(self._joined.get(unit, [])):
                unit.reason = "without its modules the code between them does not give zeros of the right shape"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema, tensors = schema_of(func), operands((args, tuple((kwargs or {}).values())))
        tags = frozenset[tuple[Unit, str]]().union(*(self.tags(tensor) for tensor in tensors))
        if tags and schema.name in SUMS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            self._join(tensors)
        zero = bool(tags) and self._gives_zeros(func, args, kwargs)
        out = func(*args, **kwargs) if self._values is None else self._values.run(func, args, kwargs)
        if schema.written and not zero:
            self._overwritten([args[i] for i in schema.written if i < len(args)])
        if zero:
            for tensor in operands([out]):
                self._silent[id(tensor)] = (tensor, tags)
        return out

    def zero(self, tensor: Tensor) -> bool:
        """Whether a tensor is all zero."""
        return bool(self.tags(tensor))

    def tags(self, tensor: Tensor) -> Tags:
        """Where the zeros of a tensor come from."""
        known = self._silent.get(id(tensor))
        return known[1] if known is not None else frozenset()

    def _blamed(self) -> Unit | None:
        """The unit a stand-in of which ran last."""
        return self._latest

    def _without(self, units: Sequence[Unit]) -> str:
        """Run without the modules of these units; returns what fails."""
        replaced: list[nn.Module] = []
        for unit in units:
            for path, results in unit.stand_ins.items():
                stand_in = Skipped(self._modules[path], StandIn(path, results, last=False))
                stand_in.register_forward_hook(self._tag(unit, path))
                replaced.append(self._modules[path])
                for parent, name in self._holders[self._modules[path]]:
                    parent.register_module(name, stand_in)
        try:
            self._run(self)
        except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
            return cause_of(error)
        finally:
            for module in replaced:
                for parent, name in self._holders[module]:
                    parent.register_module(name, module)
        return ""

    def _tag(self, unit: Unit, path: str) -> Callable[..., None]:
        def tag(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001 - as a hook is called
            self._latest = unit
            items = [output] if isinstance(output, Tensor) else output
            names = unit.stand_ins[path]
            for i, item in enumerate(items):
                if isinstance(item, Tensor) and (names is None or names[i] == "zeros"):
                    self._silent[id(item)] = (item, frozenset({(unit, path)}))

        return tag

    def _join(self, tensors: Sequence[Tensor]) -> None:
        """Zeros join something of their shape: perhaps those of a branch, where it joins."""
        where = running(self._paths)
        for tensor, other in (tensors, reversed(tensors)):
            for unit in {unit for unit, _ in self.tags(tensor)} - {unit for unit, _ in self.tags(other)}:
                if any(one.where == where for one, _ in unit.sums):
                    self._joined.setdefault(unit, []).append(where)
                    unit.last |= {path for found, path in self.tags(tensor) if found is unit}

    def _gives_zeros(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        schema = schema_of(func)
        entry = RULES.get(schema.name) or RULES.get(schema.name.removesuffix("_"))
        if entry is not None:
            return entry.keeps_zero and all(map(self.zero, operands((args, tuple(kwargs.values())))))
        return schema.pointwise and at_zero(self, func, args, kwargs)[0]

    def _overwritten(self, written: Sequence[Any]) -> None:
        """Memory that held zeros holds something else now."""
        memory = {tensor.untyped_storage()._cdata for tensor in written if isinstance(tensor, Tensor)}
        self._silent = {
            key: known for key, known in self._silent.items() if known[0].untyped_storage()._cdata not in memory
        }


def _line(unit: Unit | None) -> str:
    """Where a unit joins, without the module: branches that the same code joins fail alike."""
    return "" if unit is None else unit.where.partition(" in ")[0]
