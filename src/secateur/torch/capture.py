"""Watches a model run once and finds out what can be removed from it: `trace`."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.axes import ONE, Branches, ModuleList, Network, Reason, Run, build_network
from secateur.errors import CaptureError, DataError, ModelError, SecateurError
from secateur.torch.attention import open_attention
from secateur.torch.branches import branches_of
from secateur.torch.entries import lists_of
from secateur.torch.flow import Flow
from secateur.torch.inference import refuse_inference_mode
from secateur.torch.layers import limit_layer_sizes
from secateur.torch.leaks import Created
from secateur.torch.operators import Recording, WholeFunctions, operator_of
from secateur.torch.places import cause_of
from secateur.torch.recorder import INPUT, Recorder
from secateur.torch.replicate import replicate
from secateur.torch.rules import apply
from secateur.torch.settings import SettingsWrittenError, SharedSettings
from secateur.torch.size import remember_attributes
from secateur.torch.state import state_of
from secateur.torch.structure import tensors_in
from secateur.torch.trial import Trial
from secateur.torch.values import KnownValues

logger = logging.getLogger(__name__)

Call = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What one call takes: one tensor, a tuple of positional arguments, or a mapping of keyword arguments; tensors may be nested."""

Inputs = Call | list[Any]
"""Example inputs: those of one call, or a list of several: modes of a model, such as with and without an optional argument."""


@dataclass(frozen=True)
class TracedNetwork(Network):
    """A network with the model and the example inputs that it was found in."""

    model: nn.Module = field(repr=False, default_factory=nn.Module)
    inputs: Inputs = field(repr=False, default=())

    def __str__(self) -> str:
        from secateur.torch.describe import describe

        return describe(self)


def trace(model: nn.Module, example_inputs: Inputs) -> TracedNetwork:
    """Find the axes of a model: sets of units that can be removed together.

    The model runs once, in eval mode, on a copy that holds no memory (the meta device); where its code looks at values, it runs
    once more on real tensors. The model itself is not touched.

    Args:
        model: Any module; no annotations needed.
        example_inputs: What `model(...)` takes: a tensor, a tuple of positional or a mapping of keyword arguments; or a list of
            several such calls, all of which are watched.

    Returns:
        The network; `print(network)` shows its axes and what is frozen, with the reasons. Its costs are those of all calls
        together, where there are several.

    Raises:
        CaptureError: The model cannot be run on these inputs; names the line that failed.
        DataError: `example_inputs` holds no tensor.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> axis = sc.trace(model, torch.zeros(1, 4)).axes[0]
        >>> axis.name, axis.size
        ('0', 8)
    """
    return watched(model, example_inputs, None)


def watched(model: nn.Module, example_inputs: Inputs, recording: Recording | None) -> TracedNetwork:
    """As `trace`; the operators are written down in `recording`, where one is given."""
    _check_model(model)
    if not tensors_in(example_inputs):
        raise DataError(f"example_inputs holds no tensor: {type(example_inputs).__name__}; pass what model(...) takes")
    created, reason = Created(), ""
    try:
        run = _watch(model, example_inputs, True, created, recording, flow=False)[1]
    except _NeedsValuesError as error:
        reason = str(error)
    created.recall()
    if reason:
        if any(tensor.is_meta for tensor in state_of(model).values()):
            raise CaptureError(
                f"{type(model).__name__} looks at values while it runs ({reason}), but its parameters are on the meta device; "
                "materialise them first, for example model.to_empty(device='cpu')"
            )
        if recording is not None:
            recording.has_values = True
            recording.steps.clear()
        run = _watch(model, example_inputs, False, created, recording, flow=False)[1]
    network = build_network(run)
    if network.entries:
        if recording is None:
            return watched(model, example_inputs, Recording())
        from secateur.torch.loops import Loops  # which traces in its turn

        network = Loops(run, recording, model, example_inputs).tried(network)
    parts = {f.name: getattr(network, f.name) for f in fields(Network)}
    parts["find_branches"] = partial(find_branches, network, model, example_inputs, meta=not reason)
    return TracedNetwork(**parts, model=model, inputs=example_inputs)


def find_branches(network: Network, model: nn.Module, inputs: Inputs, meta: bool) -> Branches:
    """Find the branches of a network: watch the model once more, and try out what it runs without.

    Raises:
        ModelError: The model is no longer the one that the network was found in.
    """
    created = Created()
    try:
        found = _branches(network, model, inputs, meta, created)
    except (CaptureError, _NeedsValuesError) as error:
        raise _changed(model, str(error)) from error
    created.recall()
    return found


def _branches(network: Network, model: nn.Module, inputs: Inputs, meta: bool, created: Created) -> Branches:
    copy, run, flow = _watch(model, inputs, meta, created, None, flow=True)
    shapes = {name: spec.shape for name, (spec, _) in run.tensors.items()}
    if shapes != {name: spec.shape for name, spec in network.tensors.items()}:
        raise _changed(model, "its parameters and buffers have other names or shapes")
    if len(run.contractions) != len(network.contractions):
        raise _changed(model, "it runs other operators")
    return branches_of(network, flow, copy, state_of(copy), lambda units: _trial(model, inputs, meta, created)(units))


def _changed(model: nn.Module, how: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} has changed since it was traced, so that its branches cannot be found; trace it again ({how})"
    )


def _check_model(model: nn.Module) -> None:
    """Refuse what cannot be watched operator by operator."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    refuse_inference_mode(model)
    for path, module in model.named_modules():
        where = f"its module {path!r}" if path else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{type(model).__name__}: {where} is TorchScript, which hides its operators; pass the eager module"
            )
        if any(nn.parameter.is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise CaptureError(
                f"{type(model).__name__}: {where} is lazy and has no shapes yet; run the model once first"
            )


class _NeedsValuesError(Exception):
    """The run on meta tensors failed: probably because the code looked at a value."""


def prepared(model: nn.Module, inputs: Inputs, meta: bool) -> tuple[nn.Module, list[str], Inputs, KnownValues | None]:
    """A copy of a model to be watched, the attentions that were opened in it, and its inputs."""
    convert = _to_meta if meta else lambda tensor: tensor.detach().clone()
    copy = replicate(model, convert).eval()
    opened = open_attention(copy)
    moved = pytree.tree_map_only(Tensor, convert, inputs)
    values = KnownValues() if meta else None
    for leaf, real in zip(pytree.tree_leaves(moved), pytree.tree_leaves(inputs), strict=True):
        if isinstance(leaf, Tensor) and values is not None:
            values.learn(leaf, real)
    return copy, opened, moved, values


def _watch(
    model: nn.Module, inputs: Inputs, meta: bool, created: Created, recording: Recording | None, flow: bool
) -> tuple[nn.Module, Run, Flow]:
    """Run a copy of the model under observation, and once more where modules talk through what looked like settings."""
    once = partial(_watch_once, model, inputs, meta, created, recording)
    try:
        return once(Flow() if flow else None, {})
    except SettingsWrittenError as error:
        places = error.places
    if recording is not None:
        recording.steps.clear()
    return once(Flow() if flow else None, places)


def _watch_once(
    model: nn.Module,
    inputs: Inputs,
    meta: bool,
    created: Created,
    recording: Recording | None,
    flow: Flow | None,
    state: Mapping[str, Set[str]],
) -> tuple[nn.Module, Run, Flow]:
    """Run a copy of the model, in which the attributes in `state` stay as they are; returns it, and what was seen."""
    copy, opened, moved, values = prepared(model, inputs, meta)
    recorder = Recorder(state_of(copy), {id(module): path for path, module in copy.named_modules()})
    recorder.run.opened = tuple(opened)
    shared = SharedSettings(copy, state)
    lists = lists_of(copy)
    for path, entries in lists.items():
        recorder.entries.watch(path, [tensors.values() for tensors in entries.values()])
    remember_attributes(copy, recorder.tracker, state)
    for leaf in pytree.tree_leaves(moved):
        if isinstance(leaf, Tensor):
            recorder.learn(leaf, tuple(ONE if n == 1 else INPUT for n in leaf.shape), zero=False)
            recorder.roles.input(leaf)
    watch = _Watch(recorder, values, {id(tensor) for tensor in state_of(model).values()}, created)
    if recording is not None:
        watch.whole = WholeFunctions(partial(recording.add, recorder))
    if flow is not None:
        watch.flow = flow
        flow.watch(copy)
    with shared:
        output = _run(copy, moved, watch)
    if flow is not None:
        flow.finish(output)
    _freeze_output(recorder, output, model)
    watch.whole = watch.flow = None
    limit_layer_sizes(copy, recorder)
    recorder.entries.evaluated()
    outputs = tensors_in(output)
    if any(not recorder.was_read(parameter) for parameter in copy.parameters()):
        outputs += _watch_training(copy, moved, watch)
    for path, dim in recorder.entries.settle(outputs).items():
        recorder.run.lists[path] = ModuleList(dim, {entry: tuple(held) for entry, held in lists[path].items()})
    recorder.forget_tensors()
    return copy, recorder.run, flow or Flow()


def _trial(model: nn.Module, inputs: Inputs, meta: bool, created: Created) -> Trial:
    """Runs of another copy, without observation."""
    copy, _, moved, values = prepared(model, inputs, meta)

    def run(mode: Trial) -> None:
        with same_numbers(), open_paths(), mode:
            created.add(pytree.tree_leaves(call(copy, moved)))

    return Trial(copy, run, values)


def _freeze_output(recorder: Recorder, output: Any, model: nn.Module) -> None:
    found = tensors_in(output)
    if not found:
        raise CaptureError(
            f"{type(model).__name__} returns no tensor: {type(output).__name__}; let it return its result as a tensor, "
            "or in a container, a dataclass or an object that holds it"
        )
    for tensor in found:
        recorder.used(tensor)
        recorder.labels.observe(recorder.dims(tensor))
        for dim in recorder.dims(tensor):
            recorder.labels.freeze(dim, Reason("the model's output"))


def _watch_training(model: nn.Module, inputs: Inputs, watch: "_Watch") -> list[Tensor]:
    """Some parameters are read in training only, by auxiliary heads, say: an axis is what holds in both modes.

    Returns:
        What the model gave then.
    """
    model.train()
    try:
        output = _run(model, inputs, watch)
        _freeze_output(watch.recorder, output, model)
        return tensors_in(output)
    except (CaptureError, _NeedsValuesError) as error:
        logger.info("parameters that evaluation does not read could not be watched in training mode: %s", error)
        return []
    finally:
        model.eval()


def _run(model: nn.Module, inputs: Inputs, watch: "_Watch") -> Any:
    try:
        with same_numbers(), open_paths(), watch, watch.whole or nullcontext(), watch.recorder.sizes:
            return call(model, inputs)
    except SecateurError:
        raise
    except Exception as error:
        if watch.values is not None:
            raise _NeedsValuesError(f"{type(error).__name__}: {error}") from error
        raise CaptureError(
            f"{type(model).__name__} cannot run on these example inputs: {cause_of(error)}; "
            "check that model(example_inputs) works in eval mode"
        ) from error


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model(...)` on inputs of any of the accepted forms; a list of results for a list of inputs."""
    if isinstance(inputs, list):
        return [call(model, one) for one in inputs]
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows the recorder each operator as it passes, and what else is to be told of it."""

    def __init__(self, recorder: Recorder, values: KnownValues | None, originals: set[int], created: Created) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder, self.values, self.originals, self.created = recorder, values, originals, created
        self.whole: WholeFunctions | None = None
        self.flow: Flow | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(id(argument) in self.originals for argument in args):
            raise ModelError(
                f"the forward pass reaches the model itself instead of its copy ({self.recorder.where()}): a lambda, closure or "
                "weak reference holds it; make that a method, or a module of its own"
            )
        out = func(*args, **kwargs) if self.values is None else self.values.run(func, args, kwargs)
        self.created.add(out)
        before = len(self.recorder.run.contractions)
        apply(self.recorder, func, args, kwargs, out)
        if self.whole is not None and not self.whole.inside:
            operator = operator_of(func, args, kwargs, out)
            if operator is not None:
                self.whole.seen(operator, out)
        if self.flow is not None:
            found = self.flow.add(func, args, kwargs, out, range(before, len(self.recorder.run.contractions)))
            if found is not None:
                found.where = self.recorder.where()
        return out


@contextmanager
def same_numbers(seed: int = 0) -> Iterator[None]:
    """No gradients, and the same random numbers every time: a model that draws some takes the same way through its code."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def open_paths() -> Iterator[None]:
    """Switch off fused fast paths, which would hide the graph."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _to_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")
