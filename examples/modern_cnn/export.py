"""Write a trained model into files that need neither jaxnorm nor brainstate: StableHLO and safetensors."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from options import PACKAGES, Parser, Problem, check_packages, say

FOLDABLE = ('batch', 'ghost', 'batch_renorm')  # norms that only scale and shift each channel while evaluating
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
LOADERS = [Path(__file__).with_name(name) for name in ('picture.py', 'exported.py')]


def parser() -> Parser:
    """All options of the command."""
    result = Parser(
        prog='export.py',
        description='Write the model of the latest checkpoint of a run into files that need neither jaxnorm nor '
        'brainstate: model.stablehlo (by jax.export: uint8 images to logits, any number of them from 1 on, on CPU, '
        'CUDA, ROCm or TPU), weights.safetensors (with the classes and the size of an image), exported.py, which loads '
        'both, and picture.py, which reads pictures for it.',
        epilog='Exit code: 0 when all is written, 2 when something stands in the way.',
        allow_abbrev=False,
    )
    result.add_argument('run', type=Path, metavar='RUN_FOLDER', help='the --output of train.py')
    result.add_argument('output', type=Path, metavar='OUT', help='a folder that is made, or empty')
    return result


def fold(model: Any, norm: str) -> None:
    """Put the batch norms into the convolutions in front of them."""
    import jaxnorm

    if norm in FOLDABLE:
        for block in '12':
            conv, batch_norm = getattr(model, f'conv{block}'), getattr(model, f'bn{block}')
            setattr(model, f'conv{block}', jaxnorm.nn.fold(conv.plain(), batch_norm))
            setattr(model, f'bn{block}', jaxnorm.nn.Identity())


def program(model: Any, in_size: tuple[int, int, int]) -> tuple[Any, dict[str, Any]]:
    """The exported function of weights and images, and the weights by the names that it takes them by."""
    import brainstate
    import jax
    import jax.numpy as jnp
    from feed import to_float

    graph, states = brainstate.graph.treefy_split(model)
    leaves, structure = jax.tree_util.tree_flatten_with_path(states)
    # 'conv1.weight.bias': the path of the state, and in it what a state of several arrays has for each
    names = ['.'.join(str(part.key) for part in path if hasattr(part, 'key')) for path, _ in leaves]

    def logits(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        states = jax.tree.unflatten(structure, [weights[name] for name in names])
        with brainstate.environ.context(fit=False):
            return brainstate.graph.treefy_merge(graph, states)(to_float(images))

    weights = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    (number,) = jax.export.symbolic_shape('n')  # any number of images from 1 on
    images = jax.ShapeDtypeStruct((number, *in_size), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(weights, images), weights


def write(run: Path, output: Path) -> None:
    """Export the model of a run into a folder, which is complete or not there; one that is there, or empty."""
    import numpy as np
    from safetensors.numpy import save_file
    from trained import load

    trained = load(run)
    fold(trained.model, trained.settings.norm)
    exported, weights = program(trained.model, trained.in_size)
    metadata = {
        'classes': json.dumps(trained.classes),
        'in_size': json.dumps(trained.in_size),
        'normalization': 'x / 255, done by model.stablehlo',
        'step': str(trained.step),
        'settings': json.dumps(trained.settings.as_dict()),
    }
    there = output.exists()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output if there else output.parent, prefix=f'.{output.name}.') as part:
        folder = Path(part) / output.name
        folder.mkdir()
        (folder / 'model.stablehlo').write_bytes(exported.serialize())
        arrays = {name: np.ascontiguousarray(value) for name, value in weights.items()}
        save_file(arrays, folder / 'weights.safetensors', metadata)
        for loader in LOADERS:
            shutil.copyfile(loader, folder / loader.name)
        if there:  # somebody may be in this folder, and would be in none if it were replaced
            for file in folder.iterdir():
                file.replace(output / file.name)
        else:
            folder.replace(output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, export, and tell what was written."""
    options = parser().parse_args(arguments)
    output = options.output
    check_packages({**PACKAGES, 'safetensors': 'safetensors', 'flatbuffers': 'flatbuffers'})
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise Problem(f"OUT must be a new or empty folder, got '{output}'")
        write(options.run, output.absolute())
    except OSError as error:
        raise Problem(f"can not write '{output}': {error.strerror or error}") from None
    for file in sorted(output.iterdir()):
        say(f'{file}  {file.stat().st_size:,} bytes')


if __name__ == '__main__':
    try:
        main()
    except Problem as problem:
        parser().error(str(problem))
