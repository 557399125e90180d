"""The base classes: an activation made from its function, and a norm that owns scale and bias."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import brainstate
import jax.numpy as jnp

from .. import _checks, _docs
from .._typing import Activation as ActivationLike
from .._typing import Array, ArrayLike, Axes, Result, Size
from ..functional._normalization import named_activation


def default(kernel: Callable[..., Any], argument: str) -> Any:
    """The default of a kernel's argument, so that no default is written twice."""
    return inspect.signature(kernel).parameters[argument].default


class _Pickled(NamedTuple):
    """A state or module on its way through pickle; brainstate's own hold references to the trace they were made in."""

    kind: type | str
    value: Any


def _inside(change: Callable[[Any], Any], value: Any) -> Any:
    """`value` with a change made to each item of a list, tuple or dict."""
    kind: Any = type(value)
    if kind in (list, tuple):
        return kind(change(v) for v in value)
    return {n: change(v) for n, v in value.items()} if kind is dict else value


def _pack(value: Any, seen: dict[int, _Pickled]) -> Any:
    """`value` as something that pickles, with brainstate's states and layers in it; what is shared stays shared."""
    if id(value) in seen:
        return seen[id(value)]
    kind: Any = type(value)
    if isinstance(value, brainstate.State):
        packed = _Pickled(kind, value.value)
    elif isinstance(value, brainstate.nn.Module) and not isinstance(value, Picklable):
        packed = _Pickled(kind, _pack(vars(value), seen))
    elif isinstance(value, brainstate.nn.init.Initializer):
        # pickle looks for brainstate's classes elsewhere
        own = getattr(brainstate.nn.init, kind.__name__, None) is kind
        packed = _Pickled(kind.__name__ if own else kind, _pack(vars(value), seen))
    else:
        return _inside(lambda v: _pack(v, seen), value)
    seen[id(value)] = packed
    return packed


def _unpack(value: Any, seen: dict[int, Any]) -> Any:
    if not isinstance(value, _Pickled):
        return _inside(lambda v: _unpack(v, seen), value)
    if id(value) in seen:
        return seen[id(value)]
    kind = getattr(brainstate.nn.init, value.kind) if isinstance(value.kind, str) else value.kind
    if issubclass(kind, brainstate.State):
        found = kind(value.value)
    else:
        found = object.__new__(kind)
        vars(found).update(_unpack(value.value, seen))
    seen[id(value)] = found
    return found


class Picklable:
    """A module of plain attributes, states and layers, as something that pickles."""

    def __getstate__(self) -> dict[str, Any]:
        return _pack(vars(self), {})

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(_unpack(attributes, {}))


def described(cls: type, *families: str | None, without: Sequence[str] = ()) -> None:
    """Give a class the signature that brainstate's metaclass hides, and what its docstring leaves out.

    What a constructor hands on to that of its base, as ``**options``, is part of its signature: all keywords of the
    base but those that it names itself, and those that it goes `without`.
    """
    kinds = inspect.Parameter
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    base = next((b for b in cls.__mro__ if b is not cls and '__signature__' in vars(b)), None)
    if base and parameters and parameters[-1].kind is kinds.VAR_KEYWORD:
        parameters.pop()
        names = {*without, *(p.name for p in parameters)}
        handed = [p for p in inspect.signature(base).parameters.values() if p.kind is kinds.KEYWORD_ONLY]
        parameters += [p for p in handed if p.name not in names]
    cast(Any, cls).__signature__ = inspect.Signature(parameters)
    if families:
        cls.__doc__ = _docs.complete(cls.__doc__, (p.name for p in parameters), *families)


class Applied(Picklable, brainstate.nn.Module):
    """A function as a module, made from it: ``class CReLU(Applied, fn=F.crelu)``.

    The constructor takes the function's hyperparameters, with its names, order and defaults; they become
    attributes. A `where` of the function is the `mask` of the call, and a `key` is no hyperparameter, nor are the
    `inputs`, further arrays that a class hands on in `update`.

    Hyperparameters that are `learned`, given with their initial values, are held by one state instead:
    ``class PReLU(Activation, fn=F.prelu, learned={'slope': 0.25})`` is constructed as ``PReLU(in_size=1, slope=0.25)``,
    with one number shared by all where `in_size` is 1, else one for each feature, and has the state
    ``weight: {'slope'}``; a `bare` one, of which there is no other, is the state's value itself, as in brainstate's
    PReLU. `aliases` are other libraries' names of constructor arguments.
    """

    fn: ClassVar[Callable[..., Any]]
    _hyper: ClassVar[tuple[str, ...]] = ()
    _learned: ClassVar[tuple[str, ...]] = ()
    _bare: ClassVar[bool] = False
    _aliases: ClassVar[dict[str, str]] = {}
    _maskable: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        fn: Callable[..., Any] | None = None,
        aliases: dict[str, str] | None = None,
        learned: Mapping[str, Any] | None = None,
        inputs: Sequence[str] = (),
        bare: bool = False,
    ) -> None:
        super().__init_subclass__()
        if fn is None:
            return
        _, *parameters = inspect.signature(fn).parameters.values()
        cls.fn = staticmethod(fn)
        cls._maskable = any(p.name == 'where' for p in parameters)
        parameters = [p for p in parameters if p.name not in ('where', 'key', *inputs)]
        cls._hyper = tuple(p.name for p in parameters)
        cls._learned = tuple(learned or ())
        cls._bare = bare
        cls._aliases = aliases or {}
        one = inspect.Parameter
        options = [one('name', one.KEYWORD_ONLY, default=None)]
        if learned:
            parameters = [p.replace(default=learned[p.name]) if p.name in learned else p for p in parameters]
            parameters = [one('in_size', one.POSITIONAL_OR_KEYWORD, default=1), *parameters]
            options = [one('param_type', one.KEYWORD_ONLY, default=brainstate.ParamState), *options]
        else:
            options = [one('in_size', one.KEYWORD_ONLY, default=None), *options]
        parameters = [*parameters, *options]
        cast(Any, cls).__signature__ = inspect.Signature(parameters)
        cls.__doc__ = _class_doc(cls.__doc__ or '', fn, [p.name for p in parameters])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        op = type(self).__name__
        for alias, name in self._aliases.items():
            if alias in kwargs:
                if name in kwargs:
                    raise TypeError(f'{op}: {alias} is another name of {name}; pass only one of the two.')
                kwargs[name] = kwargs.pop(alias)
        signature = inspect.signature(type(self))
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f'{op}: {error}; the signature is {op}{signature}.') from None
        bound.apply_defaults()
        given = dict(bound.arguments)
        cast(Any, super()).__init__(name=given.pop('name'))  # brainstate hides its constructor from checkers
        size = given.pop('in_size')
        if self._learned:
            size = _size(op, size, {})
            shape = size if isinstance(size, tuple) else (size,)
            values = {n: jnp.array(_initial(op, n, given.pop(n), shape)) for n in self._learned}
            self.weight = given.pop('param_type')(values[self._learned[0]] if self._bare else values)
            if shape != (1,):
                self.in_size = self.out_size = size
        elif size is not None:
            self.in_size = self.out_size = size
        for name, value in given.items():
            setattr(self, name, value)

    def update(self, x: ArrayLike, mask: ArrayLike | None = None) -> Result:
        """Apply the function to `x`."""
        return self._apply(x, mask)

    def _apply(self, x: ArrayLike, mask: ArrayLike | None, **more: Any) -> Result:
        options = {name: getattr(self, name) for name in self._hyper if name not in self._learned}
        if self._learned:
            values = {self._learned[0]: self.weight.value} if self._bare else self.weight.value
            options |= {n: v.reshape(()) if v.shape == (1,) else v for n, v in values.items()}
        if self._maskable:
            options['where'] = mask
        elif mask is not None:
            raise TypeError(
                f'{type(self).__name__}: mask must be None for a function of single elements, '
                f'got {_checks.describe(mask)}; multiply the result by it instead.'
            )
        return type(self).fn(x, **(options | more))


class Activation(Applied, brainstate.nn.ElementWiseBlock):
    """A function whose result has the size of its input: ``class ELU(Activation, fn=F.elu)``, as `Applied` in all else.

    What is no such function must not come from here: a `brainstate.nn.Sequential` asks no element-wise block its size.
    """


#: What the docstrings of such classes need not say.
_APPLIED = """Of a function as a module.

Parameters
----------
in_size : int or tuple of int, optional
    The size of the input, for a container that asks for it. Where something is learned: the features, each with
    parameters of its own; 1 shares one.
param_type : type
    The state class of what is learned.
name : str, optional
    The name of the module.

Raises
------
TypeError
    At construction for an argument that the class does not have; else as the function, at the call.
"""


def _class_doc(doc: str, fn: Callable[..., Any], names: Sequence[str]) -> str:
    """A class docstring from that of the function: the same parameters, errors and references, said once."""
    return _docs.complete(doc, names, fn.__doc__, _APPLIED, without=['Returns'])


#: What to write in place of other libraries' arguments of a call.
_KNOWN_AS = {
    'where': 'pass what counts as mask',
    **dict.fromkeys(('training', 'train', 'is_training'), 'write fit=True or fit=False'),
    **dict.fromkeys(('use_running_average', 'deterministic', 'inference'), 'write fit=False or fit=True'),
}


class Normalization(Picklable, brainstate.nn.Module):
    """A norm that owns scale and bias: one state ``{'scale', 'bias'}``, in brainstate's tree and shapes.

    The docstrings of subclasses are completed from what follows.

    Parameters
    ----------
    in_size : int or tuple of int
        The number of channels (any resolution), or the shape of the input without its batch (checked).
    feature_axis : int
        The channel axis of `in_size`; channels come last by default.
    feature_axes : int or tuple of int
        The axes of `in_size` along which scale and bias vary.
    reduction_axes : int or tuple of int
        The axes of `in_size` to reduce.
    epsilon : float
        Added to the variance, in the square of the unit of the input.
    use_bias : bool
        Whether there is a bias.
    use_scale : bool
        Whether there is a scale.
    bias_init : callable or array_like
        The bias at first, or a function of the shape.
    scale_init : callable or array_like, optional
        The scale at first, or a function of the shape; by default such that with `scale_offset` it is 1.
    scale_offset : float
        Added to the scale: with 1.0 it is learned as an offset from one, as in Gemma.
    cast : {'after', 'before'}
        Whether the result is rounded to the dtype of the input after scale and bias come in, or before, as in Llama.
    activation : str, callable or module, optional
        What follows the norm. Of a name or a function nothing is saved for the backward pass; a module is called after.
    axis_name, axis_index_groups
        A mapped axis over which what is reduced is split, as in `jax.lax.psum`.
    use_fast_variance : bool
        Accepted for brainstate's sake; has no effect, for the variance here is always the stable one.
    dtype : dtype, optional
        The dtype of the result; by default that of the input.
    param_type : type
        The state class of the parameters.
    num_features : int, optional
        PyTorch's name for `in_size`.
    num_channels : int, optional
        PyTorch's name for `in_size`.
    normalized_shape : int or tuple of int, optional
        PyTorch's name and meaning: the size, with statistics and parameters over all its axes.
    name : str, optional
        The name of the module.

    Raises
    ------
    ValueError, TypeError
        At construction for a wrong size, axis or epsilon; at the call for an input of another shape.
    """

    #: the attribute that holds scale and bias, as brainstate calls it
    _parameters: ClassVar[str] = 'weight'
    #: the function of `jaxnorm.functional` that such a layer calls
    _kernel: ClassVar[Callable[..., Any]]
    #: the arguments of the call, and how many of them there must be
    _inputs: ClassVar[tuple[str, ...]] = ()
    _needed: ClassVar[int] = 0
    #: docstrings of what subclasses have in common, from which theirs are completed first
    _families: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, without: Sequence[str] = ()) -> None:
        super().__init_subclass__()
        _, *inputs = inspect.signature(cls.update).parameters.values()
        named = [p for p in inputs if p.kind is not p.VAR_KEYWORD]
        # what is handed on are arguments of the base
        cls._inputs = tuple(dict.fromkeys((*(p.name for p in named), *(cls._inputs if named != inputs else ()))))
        cls._needed = sum(p.default is p.empty for p in named)
        described(cls, *cls._families, Normalization.__doc__, without=without)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            signature = inspect.signature(cls)  # nothing at all comes where pickle makes one
            (signature.bind if args or kwargs else signature.bind_partial)(*args, **kwargs)
        except TypeError as error:
            known = ', '.join(inspect.signature(cls).parameters)
            raise TypeError(f'{cls.__name__}: {error}; its arguments are {known}.') from None
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        op, arguments = type(self).__name__, f'its arguments are {", ".join(self._inputs)}'
        for name in kwargs:
            if name not in self._inputs:
                raise TypeError(f'{op}: the call has no argument {name}; {_KNOWN_AS.get(name, arguments)}.')
        if len(args) + len(kwargs) < self._needed:
            missing = self._inputs[len(args) : self._needed]
            raise TypeError(f'{op}: the call must have {" and ".join(missing)}, got none; {arguments}.')
        return cast(Any, super()).__call__(*args, **kwargs)

    def __init__(
        self,
        in_size: Size | None,
        feature_axes: Axes = -1,
        *,
        aliases: dict[str, Any] | None = None,
        use_scale: bool = True,
        use_bias: bool = True,
        scale_init: Any = None,
        bias_init: Any = 0.0,
        scale_offset: float = 0.0,
        activation: ActivationLike | None = None,
        param_type: type = brainstate.ParamState,
        dtype: Any = None,
        name: str | None = None,
    ) -> None:
        cast(Any, super()).__init__(name=name)
        op = type(self).__name__
        self.scale_offset = _checks.number(op, 'scale_offset', scale_offset)
        self.activation: Any = named_activation(op, activation)  # a module, which is called after, is one too
        size = _size(op, in_size, aliases or {})
        self.any_resolution = not isinstance(size, tuple)
        self.in_size = self.out_size = size
        self.feature_axes = _checks.axes(op, 'feature_axis', feature_axes, len(self._size))
        shape = tuple(s if a in self.feature_axes else 1 for a, s in enumerate(self._size))
        scale_init = 1.0 - self.scale_offset if scale_init is None else scale_init
        wanted = {'bias': (use_bias, bias_init), 'scale': (use_scale, scale_init)}
        values = {
            key: _initial(op, f'{key}_init', init, shape)
            for key, (use, init) in wanted.items()
            if _checks.flag(op, f'use_{key}', use)
        }
        setattr(self, self._parameters, param_type(values) if values else None)
        self.dtype = None if dtype is None else _checks.floating_dtype(op, 'dtype', dtype)

    @property
    def _size(self) -> tuple[int, ...]:
        """`in_size` as the tuple that it always is."""
        return tuple(cast(Any, self.in_size))

    @property
    def _affine(self) -> dict[str, Any]:
        """Scale and bias, to be handed to a kernel by name."""
        state = getattr(self, self._parameters)
        return {} if state is None else dict(state.value)

    def _parameters_of(self, scale: Any = None, bias: Any = None) -> dict[str, Any]:
        """What the layer has learned, and scale and bias of the call where it has none of its own."""
        given = {n: v for n, v in (('scale', scale), ('bias', bias)) if v is not None}
        own = self._affine
        for argument in given.keys() & own.keys():
            op = type(self).__name__
            raise ValueError(
                f'{op}: {argument} must be None where the layer has one of its own, '
                f'got {_checks.describe(given[argument])}; construct it with use_{argument}=False.'
            )
        return {**own, **given}

    @property
    def _function(self) -> Any:
        """The activation that a kernel is given.

        Modules are no functions, and may have states: `_result` calls them after the kernel.
        """
        return None if isinstance(self.activation, brainstate.nn.Module) else self.activation

    @property
    def _options(self) -> dict[str, Any]:
        """What the layer says to the kernel, beside what all layers of its kind do."""
        return {'activation': self._function}

    def _told(self, scale: Any = None, bias: Any = None) -> dict[str, Any]:
        """The parameters, and what else the layer says to the kernel."""
        return {**self._parameters_of(scale, bias), **self._options}

    def _learn(self, param_type: type, shape: tuple[int, ...] | None = None, **initial: Any) -> None:
        """Learn more than scale and bias, in the same state: values of their shape, or of another one."""
        if shape is None:
            shape = tuple(s if a in self.feature_axes else 1 for a, s in enumerate(self._size))
        values = {n: _initial(type(self).__name__, f'{n}_init', v, shape) for n, v in initial.items()}
        setattr(self, self._parameters, param_type({**self._affine, **values}))

    def __pretty_repr_item__(self, name: str, value: Any) -> Any:
        # what says where the parameters lie, and is told by in_size and axis already
        hidden = {'any_resolution', 'feature_axes'} if self.any_resolution else {'any_resolution'}
        unused = {'activation': None, 'scale_offset': 0, 'cast': 'after', 'partial': 1}
        return (
            None
            if name in hidden or unused.get(name, unused) == value
            else cast(Any, super()).__pretty_repr_item__(name, value)
        )

    def update(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        fit: bool | None = None,
    ) -> Result:
        """Normalize `x`; `mask` says what counts.

        `scale` and `bias` are those of the call, where the layer has none of its own. Both phases are the same, so
        `fit` has no effect.
        """
        return self._apply(x, mask, **self._told(scale, bias))

    def _apply(self, x: Any, mask: Any, **options: Any) -> Result:
        """The result of the kernel, which is given these options and those of the layer."""
        raise NotImplementedError

    def _result(self, y: Any, mask: Any = None) -> Any:
        if isinstance(self.activation, brainstate.nn.Module):
            y = self.activation(y)
            y = y if mask is None else jnp.where(jnp.asarray(mask), y, 0)
        return y if self.dtype is None else y.astype(self.dtype)

    def _check_shape(self, x: Any, ranks: Sequence[int] | None = None) -> None:
        """Check the shape of an input against `in_size`; `ranks` lists what ranks may come where any resolution may."""
        op, shape, size = type(self).__name__, jnp.shape(x), self._size
        if ranks is not None and len(shape) not in ranks:
            raise ValueError(
                f'{op}: x must have rank {" or ".join(map(str, ranks))}, got the shape {shape}; '
                'the batch comes first, then what in_size describes.'
            )
        if self.any_resolution:
            axis = self._channel_axis
            if len(shape) < (1 if axis < 0 else axis + 1) or shape[axis] != size[0]:
                raise ValueError(
                    f'{op}: x must have {size[0]} channels on axis {axis}, got the shape {shape}; '
                    'change in_size or move the channels there.'
                )
        elif tuple(shape[len(shape) - len(size) :]) != tuple(size) or len(shape) < len(size):
            raise ValueError(
                f'{op}: x must end in the shape {tuple(size)} given as in_size, got {shape}; '
                'give in_size as an int to allow any resolution.'
            )

    @property
    def _channel_axis(self) -> int:
        """The channel axis of an input, batch included."""
        raise NotImplementedError


described(Normalization)


def _size(op: str, in_size: Any, aliases: dict[str, Any]) -> int | tuple[int, ...]:
    """`in_size`, or what was given under another library's name for it."""
    given = {n: v for n, v in {'in_size': in_size, **aliases}.items() if v is not None}
    if len(given) != 1:
        names = ' or '.join(['in_size', *aliases])
        raise TypeError(
            f'{op}: {names} must be given once, got {sorted(given) or "none"}; pass for example in_size=64.'
        )
    ((argument, size),) = given.items()
    if isinstance(size, Sequence) and not isinstance(size, str):
        if not size:
            raise ValueError(f'{op}: {argument} must not be empty, got {size!r}; pass for example 64.')
        return tuple(_checks.integer(op, argument, s) for s in size)
    return _checks.integer(op, argument, size)


def trailing(size: Any) -> tuple[int, ...] | None:
    """All axes of a shape, counted from its end, which PyTorch's `normalized_shape` means; None of a number."""
    return tuple(range(-len(size), 0)) if isinstance(size, Sequence) else None


def _made(init: Callable[..., Any], shape: tuple[int, ...]) -> Any:
    """What a function of a shape returns; JAX's take a random key before it, and haiku's a dtype after it."""
    try:
        parameters = inspect.signature(init).parameters.values()
    except ValueError:  # some of numpy's have none
        parameters = ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in positional]
    others = {'key': brainstate.random.split_key, 'dtype': brainstate.environ.dftype}
    if sum(name not in others for name in needed) != 1:
        return init(shape)
    return init(*(others[name]() if name in others else shape for name in needed))


def _initial(op: str, argument: str, init: Any, shape: tuple[int, ...]) -> Array:
    """The initial value of a parameter."""
    given = _made(init, shape) if callable(init) else init
    try:
        value = jnp.asarray(given, brainstate.environ.dftype())
    except (TypeError, ValueError):
        raise TypeError(
            f'{op}: {argument} must be numbers, or a function of a shape that returns them, got '
            f'{_checks.describe(given)}; pass for example 0.5.'
        ) from None
    if not _checks.broadcasts(value.shape, shape):
        raise ValueError(
            f'{op}: {argument} must give the shape {shape}, got {value.shape}; return an array of that shape.'
        )
    return jnp.broadcast_to(value, shape)
