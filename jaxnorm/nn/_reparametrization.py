"""Reparametrizations as wrappers of any brainstate layer: its weight is made anew at each call."""

import copy
import inspect
import threading
from collections.abc import Sequence
from typing import Any, cast

import brainstate
import jax.numpy as jnp

from .. import _checks, _units
from .. import functional as F
from .._typing import Axes, Result
from ..functional._reparametrization import leading_vector, weight_length
from ._base import Picklable, default, described
from ._running import POOLING, Running

#: The weight of a layer is another one while it is called: by one thread at a time.
_LOCK = threading.RLock()


class Reparametrization(Picklable, brainstate.nn.Module):
    """A layer whose weight is made of others, and those are what is learned.

    The docstrings of subclasses are completed from what follows.

    Parameters
    ----------
    layer : brainstate.nn.Module
        Linear, convolution, embedding, a recurrent cell, or any other. It becomes a part of this one and is called
        through it.
    axis : int or tuple of int
        The output axis of the weight. In brainstate it is the last one, but -2 in transposed convolutions; in an
        embedding, 0 gives each entry a norm of its own.
    weight_name : str
        The attribute that holds the weight, or a path to it where a layer has several: ``'weight.lora_a'``,
        ``'Wh.weight'``.
    name : str, optional
        The name of the module.

    Raises
    ------
    ValueError, TypeError
        At construction for a layer without such a weight, or a weight, an axis or an option that does not fit.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        described(cls, Reparametrization.__doc__)

    def __init__(self, layer: Any, axis: Any, weight_name: str, name: str | None) -> None:
        cast(Any, super()).__init__(name=name)
        self._place = _place(type(self).__name__, layer, weight_name)
        self.layer = layer
        self.axis = axis
        for size in ('in_size', 'out_size'):
            if getattr(layer, size) is not None:
                setattr(self, size, getattr(layer, size))

    @property
    def effective_weight(self) -> Result:
        """The weight that the layer computes with."""
        raise NotImplementedError

    def update(self, *args: Any, fit: bool | None = None, **kwargs: Any) -> Any:
        """Call the layer. Both phases are the same here; `fit` is for a layer that takes one."""
        with _LOCK:
            return self._call(self.effective_weight, args, kwargs, fit)

    def merge(self) -> Any:
        """A copy of the layer as it came, with the weight that it computes with now."""
        layer = copy.deepcopy(self.layer)
        self._store(layer, self._filled(self.effective_weight))
        return layer

    @property
    def _key(self) -> str:
        """The name of the weight, from which those of its parts are made."""
        _, attribute, entry = self._place
        return entry or attribute

    @property
    def _own(self) -> tuple[str, ...]:
        """The entries of the layer's state that the weight is made of."""
        return (self._key,)

    def _entries(self) -> dict[str, Any]:
        """The layer's state by names; a weight alone has its own."""
        modules, attribute, _ = self._place
        value = getattr(_inside(self.layer, modules), attribute).value
        return dict(value) if isinstance(value, dict) else {self._key: value}

    def _filled(self, weight: Any) -> Any:
        """What the layer finds in its state: a weight, in place of what it is made of."""
        others = {n: v for n, v in self._entries().items() if n not in self._own}
        return weight if self._place[2] is None else {self._key: weight, **others}

    def _store(self, layer: Any, value: Any) -> None:
        modules, attribute, _ = self._place
        owner = _inside(layer, modules)
        setattr(owner, attribute, type(getattr(owner, attribute))(value))

    def _call(self, weight: Any, args: Any, kwargs: Any, fit: bool | None) -> Any:
        """Call the layer with a weight, and with the phase if it takes one."""
        if fit is not None and 'fit' in inspect.signature(self.layer.update).parameters:
            kwargs = {**kwargs, 'fit': fit}
        modules, attribute, _ = self._place
        state = getattr(_inside(self.layer, modules), attribute)
        kept = state.value
        # The state holds the weight meanwhile, so that what is traced in the layer reads it as one. No trace around
        # may take it for written, as it would by `state.value = ...`: it holds after the call what it held before.
        state._value = self._filled(weight)
        try:
            return self.layer(*args, **kwargs)
        finally:
            state._value = kept

    def __pretty_repr_item__(self, name: str, value: Any) -> Any:
        return None if name == '_place' else cast(Any, super()).__pretty_repr_item__(name, value)


def _inside(layer: Any, names: Sequence[str]) -> Any:
    """What lies under the names in a layer: attributes, places in a list, keys of a dict; None where there is none."""
    for name in names:
        if isinstance(layer, list | tuple):
            layer = layer[int(name)] if name.isdecimal() and int(name) < len(layer) else None
        else:
            layer = layer.get(name) if isinstance(layer, dict) else getattr(layer, name, None)
    return layer


def _place(op: str, layer: Any, path: str) -> tuple[tuple[str, ...], str, str | None]:
    """Where a weight is: the modules on the way, the attribute that holds its state, and the entry of a dict."""
    if not isinstance(layer, brainstate.nn.Module):
        raise TypeError(
            f'{op}: layer must be a module, got {_checks.describe(layer)}; wrap for example brainstate.nn.Linear(4, 8).'
        )
    found, names = layer, str(path).split('.')
    for depth, attribute in enumerate(names):
        owner, found, rest = found, _inside(found, [attribute]), names[depth + 1 :]
        if isinstance(found, brainstate.State) and isinstance(owner, brainstate.nn.Module):
            named = isinstance(found.value, dict)
            entry = '.'.join(rest or ['weight']) if named else None
            if entry in found.value if named else not rest:
                return tuple(names[:depth]), attribute, entry
        if not isinstance(found, brainstate.nn.Module | list | tuple | dict):
            break
    paths = []
    for names, state in cast(Any, layer).states(brainstate.ParamState).items():
        entries = [(n,) for n in state.value] if isinstance(state.value, dict) else [()]
        paths += ['.'.join(map(str, (*names, *e))) for e in entries]
    fix = f'choose from {", ".join(map(repr, paths))}' if paths else 'it has none: wrap a layer that has'
    raise ValueError(f'{op}: weight_name must name a weight of {type(layer).__name__}, got {path!r}; {fix}.')


class WeightNorm(Reparametrization):
    """Weight normalization of a layer: direction and length of each output's weights are learned apart.

    In the layer's state stand ``weight_v`` and ``weight_g`` in place of ``weight``; a bias stays. At first they give
    the weight that the layer has.

    Parameters
    ----------
    axis : int, tuple of int or None
        The output axis of the weight, each element of which has a length of its own; None is one length for all. In
        brainstate it is the last one, but -2 in transposed convolutions; in an embedding, 0 gives each entry a length.

    References
    ----------
    Salimans & Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural
    networks", 2016, arXiv:1602.07868.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.WeightNorm(brainstate.nn.Linear(4, 8))
    >>> layer(jnp.ones((2, 4))).shape
    (2, 8)
    >>> sorted(layer.layer.weight.value)
    ['bias', 'weight_g', 'weight_v']
    """

    def __init__(
        self,
        layer: Any,
        axis: Axes | None = -1,
        *,
        weight_name: str = 'weight',
        name: str | None = None,
    ) -> None:
        super().__init__(layer, axis, weight_name, name)
        entries = self._entries()
        v = entries.pop(self._key)
        self._store(layer, {**entries, **dict(zip(self._own, (v, weight_length(v, axis=axis)), strict=True))})

    @property
    def _own(self) -> tuple[str, ...]:
        return (f'{self._key}_v', f'{self._key}_g')

    @property
    def effective_weight(self) -> Result:
        """The weight that the layer computes with."""
        entries = self._entries()
        return F.weight_norm(*(entries[n] for n in self._own), axis=self.axis)


class WeightStandardization(Reparametrization):
    """Weight standardization of a layer: each output's weights have mean zero and variance one.

    What is learned is the layer's own ``weight``, and with `use_gain` a ``gain`` beside it, as in the scaled layers of
    brainstate.

    Parameters
    ----------
    epsilon : float
        Added to the variance, in the square of the unit of the weight.
    scaled : bool
        Whether to divide by the root of the fan-in, as normalizer-free networks do.
    use_gain : bool
        Whether there is a gain for each output; ones at first.

    References
    ----------
    Qiao, Wang, Liu, Shen & Yuille, "Micro-batch training with batch-channel normalization and weight
    standardization", 2019, arXiv:1903.10520. Brock, De & Smith, "Characterizing signal propagation to close the
    performance gap in unnormalized ResNets", 2021, arXiv:2101.08692 (scaled, with gain).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.WeightStandardization(brainstate.nn.Conv2d((8, 8, 3), 16, 3), scaled=True, use_gain=True)
    >>> layer(jnp.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 16)
    """

    def __init__(
        self,
        layer: Any,
        axis: Axes = -1,
        *,
        epsilon: float = default(F.weight_standardization, 'epsilon'),
        scaled: bool = default(F.weight_standardization, 'scaled'),
        use_gain: bool = False,
        weight_name: str = 'weight',
        name: str | None = None,
    ) -> None:
        super().__init__(layer, axis, weight_name, name)
        op, entries = type(self).__name__, self._entries()
        weight = entries[self._key]
        self.epsilon = _checks.number(op, 'epsilon', epsilon, at_least=0)
        self.scaled = _checks.flag(op, 'scaled', scaled)
        self.use_gain = _checks.flag(op, 'use_gain', use_gain)
        if 'gain' in entries:
            raise ValueError(
                f"{op}: layer must not have a 'gain' already, got {type(layer).__name__}; wrap a layer that does not "
                'standardize its weight by itself.'
            )
        F.weight_standardization(weight, axis=axis)  # a weight or an axis that does not fit is told here
        if self.use_gain:
            along = _checks.axes(op, 'axis', axis, weight.ndim)
            shape = [s if a in along else 1 for a, s in enumerate(weight.shape)]
            self._store(layer, {**entries, 'gain': jnp.ones(shape, _units.number(weight).dtype)})

    @property
    def _own(self) -> tuple[str, ...]:
        return (self._key, 'gain')

    @property
    def effective_weight(self) -> Result:
        """The weight that the layer computes with."""
        weight, gain = map(self._entries().get, self._own)
        return F.weight_standardization(weight, gain, axis=self.axis, epsilon=self.epsilon, scaled=self.scaled)


class SpectralNorm(Running, Reparametrization):
    """Spectral normalization of a layer: the weight is divided by its largest singular value.

    What is learned is the layer's own ``weight``. The singular vector `u`, from which the value is estimated, is a
    state that moves at each call while fitting and rests while evaluating. The phase is the argument `fit` of the
    call, else the frozen flag, else ``brainstate.environ.context(fit=...)``, else an error.

    Parameters
    ----------
    axis : int
        The output axis of the weight. In brainstate it is the last one, but -2 in transposed convolutions.
    n_steps : int
        Steps of the power iteration at each call while fitting.
    init_steps : int
        Steps at construction, of the faster Lanczos iteration, so that the value is right from the first call on.
    epsilon : float
        The length up to which a vector counts as zero, in units of the largest entry of the weight.
    frozen : bool
        Whether the layer evaluates whatever the environment says; the call's `fit` still overrules it.

    Raises
    ------
    ValueError, TypeError
        At construction for a layer without such a weight, a weight of one axis, or an axis or an option that does not
        fit; at the call where nothing says which phase it is.

    References
    ----------
    Miyato, Kataoka, Koyama & Yoshida, "Spectral normalization for generative adversarial networks", 2018,
    arXiv:1802.05957.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, jaxnorm
    >>> layer = jaxnorm.nn.SpectralNorm(brainstate.nn.Linear(4, 8))
    >>> y = layer(jnp.ones((2, 4)), fit=True)
    >>> bool(abs(jnp.linalg.norm(layer.effective_weight, 2) - 1) < 1e-5)
    True
    """

    def __init__(
        self,
        layer: Any,
        axis: int = -1,
        *,
        n_steps: int = default(F.spectral_norm, 'n_steps'),
        init_steps: int = 100,
        epsilon: float = default(F.spectral_norm, 'epsilon'),
        frozen: bool = False,
        weight_name: str = 'weight',
        name: str | None = None,
    ) -> None:
        super().__init__(layer, axis, weight_name, name)
        op, weight = type(self).__name__, self._entries()[self._key]
        self.n_steps = _checks.integer(op, 'n_steps', n_steps)
        self.epsilon = _checks.number(op, 'epsilon', epsilon, at_least=0)
        self.frozen = _checks.flag(op, 'frozen', frozen)
        steps = _checks.integer(op, 'init_steps', init_steps)
        self.u = brainstate.BatchState(leading_vector(weight, axis=axis, n_steps=steps))

    _of_data = False

    @property
    def _running(self) -> tuple[brainstate.State, ...]:
        return (self.u,)

    def _nothing(self) -> dict[str, Any]:
        return {'u': self.u.value}

    def _commit(self, seen: dict[str, Any], weight: Any = None) -> None:
        self.u.value = seen['u']

    def _normalized(self, n_steps: int) -> Any:
        weight = self._entries()[self._key]
        return F.spectral_norm(weight, self.u.value, n_steps=n_steps, axis=self.axis, epsilon=self.epsilon)

    @property
    def effective_weight(self) -> Result:
        """The weight that the layer computes with while evaluating."""
        return self._normalized(0)[0]

    @property
    def sigma(self) -> Result:
        """The largest singular value of the weight, as far as it is known."""
        return self._normalized(0)[2]

    def update(self, *args: Any, fit: bool | None = None, **kwargs: Any) -> Any:
        """Call the layer; `fit` overrules frozen flag and environment."""
        fits = self._fits(fit)
        with _LOCK:
            weight, u, _ = self._normalized(self.n_steps if fits else 0)
            y = self._call(weight, args, kwargs, fit)
        if fits and self in POOLING:
            self._put(u=u)
        elif fits:
            self.u.value = u
        return y
