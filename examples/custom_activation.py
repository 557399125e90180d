"""An activation of your own: written as a formula, checked for what is wanted of one, and held against ReLU.

Wanted: not linear, differentiable everywhere, no vanishing gradient on either side, bounded below. A function that only
rises can not have both of the last two: what is bounded below must level out, so its slope vanishes. `bounce` turns
round instead: a smoothed ReLU whose left side rises again, at a quarter of the slope.

    python examples/custom_activation.py
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import Options, plt, print_table, save, whole
from which_activation import Outcome, compare, draw_curves, draw_held_out, trials

import jaxnorm
from jaxnorm import functional as F


def bounce_slope(x, left=0.25):
    """The derivative of `bounce`: from -left to 1. The first call compares it with automatic differentiation."""
    return ((1 - left) + (1 + left) * x / jnp.hypot(1, x)) / 2


@jaxnorm.activation(derivative=bounce_slope)
def bounce(x, left=0.25):
    """A hyperbola through the origin, with the slopes 1 on the right and -left on the left."""
    # sqrt(1 + x²) - 1 without the difference of two nearly equal numbers
    return ((1 - left) * x + (1 + left) * x * (x / (1 + jnp.hypot(1, x)))) / 2


@jaxnorm.activation
def parabola_softplus(x, alpha=0.5, beta=1.0):
    """Alpha x² where x is positive, else beta log(1 + exp(x)): a formula that is found in tutorials."""
    return jnp.where(x > 0, alpha * x**2, beta * F.softplus(x))


CANDIDATES: dict[str, Callable[..., Any]] = {'bounce': bounce, 'relu': F.relu, 'parabola_softplus': parabola_softplus}
FAR = 100.0


def jump(f: Callable[[jax.Array], jax.Array]) -> float:
    """The largest step between neighbouring points that does not shrink with their distance: 0 if f is continuous."""
    widths = (1e-2, 1e-3)
    coarse, fine = (np.abs(np.diff(f(jnp.arange(-5, 5, width) + width / 3))).max() for width in widths)
    return float(fine) if fine > coarse / 2 else 0.0


def qualities(f: Callable[..., Any]) -> dict[str, tuple[str, bool]]:
    """What is wanted of an activation, measured: a number in words, and whether it will do."""
    x = jnp.linspace(-FAR, FAR, 2001)
    slope = jax.vmap(jax.grad(f))
    values, slopes = np.asarray(f(x)), np.asarray(slope(x))
    straight = np.polyfit(x, values, 1)
    bend = np.abs(values - np.polyval(straight, x)).max() / np.abs(values).max()
    far_left, far_right = abs(slopes[0]), abs(slopes[-1])
    step, kink = jump(f), jump(slope)
    return {
        'not linear': (f'{bend:.2f} off a line', bool(bend > 1e-3)),
        'continuous': (f'jumps by {step:.2f}' if step else 'no jump', step == 0),
        'differentiable': (f'slope jumps by {kink:.2f}' if kink else 'no kink', step == 0 and kink == 0),
        'slope far out': (f'{far_left:.2f} and {far_right:.2f}', bool(min(far_left, far_right) > 0.01)),
        # lower at the ends than anywhere inside means that it goes on falling
        'bounded below': (
            f'{values.min():.2f}',
            bool(0 < values.argmin() < len(x) - 1 or min(far_left, far_right) == 0),
        ),
    }


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, dict[str, tuple[str, bool]]], dict[str, Outcome]]:
    """Check each candidate, train a network with each, and draw both."""
    parser = Options(__doc__, seeds=5)
    parser.add_argument('--epochs', type=whole(1, 1000), default=50, metavar='N', help='how often all samples are seen')
    options = parser.read(arguments)
    checked = {name: qualities(f) for name, f in CANDIDATES.items()}
    print_table(
        ['', *checked],
        [
            [
                quality,
                *(f'{"yes" if good else "NO"}: {words}' for words, good in (c[quality] for c in checked.values())),
            ]
            for quality in checked['bounce']
        ],
    )
    for name, found in checked.items():
        lacks = [quality for quality, (_, good) in found.items() if not good]
        print(f'{name} {"has all that is wanted" if not lacks else "lacks: " + ", ".join(lacks)}.')

    print('\nThe task of which_activation.py:')
    seeds = range(options.seed, options.seed + options.seeds)
    outcomes = {name: trials(lambda f=f: f, seeds, options.epochs) for name, f in CANDIDATES.items()}
    compare(outcomes)
    gains = outcomes['bounce'].held_out - outcomes['relu'].held_out
    verdict = 'more than' if abs(gains.mean()) > gains.std() else 'within'
    print(
        f'For new samples bounce is {abs(100 * gains.mean()):.2f} points {"better" if gains.mean() > 0 else "worse"} '
        f'than relu, which is {verdict} the {100 * gains.std():.2f} by which that difference varies between starts.'
    )
    draw(outcomes, options)
    return checked, outcomes


def draw(outcomes: dict[str, Outcome], options) -> None:
    """The candidates and their slopes, the training, and the new samples."""
    x = jnp.linspace(-4, 3, 701)
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2))
    for name, f in CANDIDATES.items():
        (line,) = axes[0].plot(x, f(x), label=name)
        axes[0].plot(x, jax.vmap(jax.grad(f))(x), '--', color=line.get_color(), linewidth=1)
    axes[0].set(title='output (solid) and slope (dashed)', xlabel='input', ylim=(-1, 3))
    axes[0].legend()
    draw_curves(axes[1], outcomes)
    draw_held_out(axes[2], outcomes)
    save(figure, options.output / 'custom_activation.png')


if __name__ == '__main__':
    main()
