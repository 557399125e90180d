"""How activations bend the plane: the decision regions of a small network with each of them, and how they come about.

A network of 2 → 16 → 2 → 1 tells two interleaved moons apart. Its last hidden layer has two units, so that what it
makes of the plane can be drawn: there the border between the classes is a straight line, and the plane is bent.
Beside the picture there is a page with a slider over the training: open decision_regions.html in a browser.

    python examples/decision_regions.py
    python examples/decision_regions.py --activations relu snake hard_tanh
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import brainstate
import numpy as np
import optax
from _common import Options, Trainer, activation_name, evaluate, mlp, plt, print_table, save, write_whole
from sklearn.datasets import make_moons

from jaxnorm import functional as F

STAGES = 6  # pictures of the training on the page
SIDE = 65
PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Decision regions</title>
<body style="font-family: sans-serif; text-align: center">
<p><label>training <input type="range" id="stage" min="0" max="{last}" value="{last}" style="width: 60%"></label></p>
<img id="picture" alt="decision regions" style="max-width: 100%">
<script>
const frames = [{frames}];
const stage = document.getElementById("stage");
const show = () => {{ document.getElementById("picture").src = "data:image/png;base64," + frames[stage.value]; }};
stage.oninput = show;
show();
</script></body></html>
"""


class View(NamedTuple):
    """What a network makes of the plane and of the points at one stage of its training."""

    logits: np.ndarray  # (SIDE, SIDE)
    bent: np.ndarray  # (SIDE, SIDE, 2): the plane as its last hidden layer sees it
    points: np.ndarray  # (points, 2): likewise
    border: tuple[np.ndarray, float]  # the last layer: a point h is on the border where weights · h + bias is 0
    right: float  # the share of points on their side


def look(model: Any, plane: np.ndarray, x: np.ndarray, y: np.ndarray) -> View:
    """The view of a network."""
    *hidden, last = model.layers

    def bend(points: Any) -> Any:
        for layer in hidden:
            points = layer(points)
        return points

    weights = last.weight.value
    border = np.asarray(weights['weight'])[:, 0], float(weights['bias'][0])
    right = np.mean((evaluate(model, x)[:, 0] > 0) == y)
    return View(evaluate(model, plane)[..., 0], evaluate(bend, plane), evaluate(bend, x), border, float(right))


def main(arguments: Sequence[str] | None = None) -> dict[str, list[View]]:
    """Train a network with each activation, print the share of right answers, and draw what it sees."""
    parser = Options(__doc__, steps=400)
    names = ['identity', 'relu', 'leaky_relu', 'tanh', 'gelu']
    parser.add_argument('--activations', nargs='+', type=activation_name, default=names, metavar='NAME')
    options = parser.read(arguments)
    moons: Any = make_moons(200, noise=0.1, random_state=options.seed)
    x, y = moons
    x = (2 * (x - x.mean(axis=0))).astype(np.float32)
    side = np.linspace(-3.6, 3.6, SIDE, dtype=np.float32)
    plane = np.stack(np.meshgrid(side, side), axis=-1)

    views: dict[str, list[View]] = {}
    for name in dict.fromkeys(options.activations):
        brainstate.random.seed(options.seed)
        model = mlp((2, 16, 2, 1), lambda name=name: F.get(name))

        def loss(x, y, model=model):
            return optax.sigmoid_binary_cross_entropy(model(x)[:, 0], y).mean()

        trainer = Trainer(model, loss, optax.adam(0.02))
        views[name] = [look(model, plane, x, y)]
        for _ in range(STAGES):
            trainer.fit(max(1, options.steps // STAGES), x, y)
            views[name].append(look(model, plane, x, y))

    print_table(
        ['activation', 'right at first', 'right at the end', 'area of the plane in the second class'],
        [
            [name, f'{v[0].right:.1%}', f'{v[-1].right:.1%}', f'{np.mean(v[-1].logits > 0):.1%}']
            for name, v in views.items()
        ],
    )
    best = max(view[-1].right for view in views.values())
    print(f'Best: {", ".join(name for name, view in views.items() if view[-1].right == best)}, {best:.1%} right.')
    if 'identity' in views and views['identity'][-1].right < best:
        missed = round((best - views['identity'][-1].right) * len(x))
        print(
            f'Without activation (identity) the border is straight, and {missed} more of the {len(x)} points are wrong.'
        )
    save(draw(views, -1, side, x, y), options.output / 'decision_regions.png')
    write_page(views, side, x, y, options.output / 'decision_regions.html')
    return views


def draw(views: dict[str, list[View]], stage: int, side: np.ndarray, x: np.ndarray, y: np.ndarray) -> Any:
    """Above, the regions in the plane of the inputs; below, the same plane as the last hidden layer sees it."""
    figure, axes = plt.subplots(2, len(views), figsize=(3.1 * len(views), 6.2), squeeze=False)
    for (top, bottom), (name, stages) in zip(axes.T, views.items(), strict=True):
        view = stages[stage]
        probability = np.asarray(F.sigmoid(view.logits))
        top.contourf(side, side, probability, levels=np.linspace(0, 1, 11), cmap='RdBu_r', alpha=0.7)
        if view.logits.min() < 0 < view.logits.max():
            top.contour(side, side, view.logits, levels=[0], colors='black')
        top.scatter(*x.T, c=y, cmap='RdBu_r', edgecolor='black', linewidth=0.4, s=14)
        top.set(title=f'{name}: {view.right:.0%} right', aspect='equal')
        for lines in view.bent[::8], view.bent[:, ::8].swapaxes(0, 1):
            bottom.plot(*lines.T, color='gray', linewidth=0.5)
        bottom.scatter(*view.points.T, c=y, cmap='RdBu_r', edgecolor='black', linewidth=0.4, s=14, zorder=2)
        bottom.autoscale(False)
        (a, b), bias = view.border
        if b != 0:
            bottom.axline((0, -bias / b), slope=-a / b, color='black')
        bottom.set(xlabel='first hidden unit')
        bottom.grid(visible=False)
    axes[0, 0].set_ylabel('the plane, and the border (black)')
    axes[1, 0].set_ylabel('its grid after the hidden layers')
    return figure


def write_page(views: dict[str, list[View]], side: np.ndarray, x: np.ndarray, y: np.ndarray, path: Path) -> None:
    """A page that needs nothing else, with the picture at each stage of the training."""
    frames = []
    for stage in range(STAGES + 1):
        figure = draw(views, stage, side, x, y)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=55, format='png')
        plt.close(figure)
        frames.append(f'"{base64.b64encode(picture.getvalue()).decode()}"')
    page = PAGE.format(last=STAGES, frames=','.join(frames))
    write_whole(path, lambda part: part.write_text(page, encoding='utf-8'))


if __name__ == '__main__':
    main()
