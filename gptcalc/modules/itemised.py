"""What every module of the reference decoder is: a part built by its `kind`, which itemises its own tensors.

The modules read a part's plain fields and nothing else of it, so that they can disagree with the inventory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.spec import Part, Spec

#: The standard deviation of every matrix and table at the start (Radford et al. 2018, §4.1; GPT-2's released code).
INITIAL_STD = 0.02


class Dims(NamedTuple):
    """The sizes that all parts of a model share."""

    d_model: int
    n_vocab: int
    n_ctx: int

    @classmethod
    def of(cls, spec: Spec) -> Dims:
        """The shared sizes of `spec`."""
        return cls(spec.d_model, spec.n_vocab, spec.n_ctx)


class Itemised(nn.Module):
    """A module that can say which component each of its numbers belongs to."""

    #: Of its own tensors (not those of its children) one token uses `active[0]` in `active[1]`.
    active: tuple[int, int] = (1, 1)
    _nameless: Itemised | None = None

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter below this module once: component key, and the tensor, or slice of it, that forward uses."""
        raise NotImplementedError(type(self).__name__)

    def reset_parameters(self) -> None:
        """Draw its own parameters anew, not those of its children; most modules have none of their own."""

    def attach(self, name: str, module: nn.Module) -> None:
        """Add a child under its published name, which must be free; on the way down a dotted name plain containers.

        A child without a name stands for itself nowhere in the state dict: its own children are this module's too.
        """
        first, _, rest = name.partition(".")
        if not name:
            self._attach_nameless(module)
        elif not rest:
            self._add(name, module)
        else:
            if first not in self._modules:
                self._add(first, Container())
            self.child(first).attach(rest, module)

    def _add(self, name: str, module: nn.Module) -> None:
        if hasattr(self, name) or not name:
            raise InvalidValueError(f"{type(self).__name__}: read a part named {name!r}; allowed: a free name")
        self.add_module(name, module)

    def _attach_nameless(self, module: nn.Module) -> None:
        if self._nameless is not None or not isinstance(module, Itemised):
            raise InvalidValueError(f"{type(self).__name__}: read another part named ''; allowed: one")
        for name, inner in module.named_children():
            self._add(name, inner)
        self.__dict__["_nameless"] = module  # not by torch, which would list it

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  torch's
        """As torch has it, for the child without a name too."""
        if self._nameless is not None:
            self._nameless.train(mode)
        return super().train(mode)

    def child(self, name: str) -> Itemised:
        """The child of that name, which may be a path."""
        module: Any = self
        for step in name.split("."):
            module = getattr(module, step) if step else module._nameless  # noqa: SLF001  its own
        if not isinstance(module, Itemised):
            raise TypeError(f"{type(self).__name__}.{name} is a {type(module).__name__}, which does not itemise itself")
        return module


class Container(Itemised):
    """What stands between a module and a child that a dotted name puts further down."""

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Everything below."""
        for module in self.children():
            if isinstance(module, Itemised):
                yield from module.itemise()


Builder = TypeVar("Builder", bound=Callable[..., Itemised])

_BUILDERS: dict[str, Callable[..., Itemised]] = {}


def register(kind: str) -> Callable[[Builder], Builder]:
    """Enter a class, or a function that returns a module, as what builds parts of `kind`."""

    def enter(builder: Builder) -> Builder:
        if kind in _BUILDERS:
            raise TypeError(f"two modules of kind {kind!r}: {_BUILDERS[kind].__name__} and {builder.__name__}")
        _BUILDERS[kind] = builder
        return builder

    return enter


def make(part: Mapping[str, Any], dims: Dims) -> Itemised:
    """The module of a dumped part; a field that the module does not know is an error, never ignored."""
    kind = str(part.get("kind"))
    if kind not in _BUILDERS:
        raise UnknownNameError.near("kind of module", kind, _BUILDERS)
    known = signature(_BUILDERS[kind]).parameters
    fields = {
        key: value for key, value in part.items() if key not in ("kind", "name") if key in known or _is_on(part, key)
    }
    for key, value in fields.items():
        if key not in known:
            raise InvalidValueError(f"{kind}: read {key}={value!r}; the reference module of this kind knows none")
    return _BUILDERS[kind](dims, **fields)


def _is_on(part: Mapping[str, Any], key: str) -> bool:
    """Whether a field is other than by default: what a part can do and this one does not, its module need not know."""
    fields = Part.kinds[str(part["kind"])].model_fields
    return key not in fields or part[key] != fields[key].default


def init_normal(parameter: Tensor) -> None:
    """Draw from N(0, 0.02²); a tensor on the meta device has no values to draw."""
    if not parameter.is_meta:
        nn.init.normal_(parameter, mean=0.0, std=INITIAL_STD)


def init_constant(parameter: Tensor | None, value: float) -> None:
    """Fill with `value`, where there is a tensor and it has values."""
    if parameter is not None and not parameter.is_meta:
        nn.init.constant_(parameter, value)


def empty(*shape: int) -> nn.Parameter:
    """A parameter without values, on the default device and of the default dtype."""
    return nn.Parameter(torch.empty(shape))
