"""Convert weights of other projects to model files, and back. The function: `resnetkit.convert("resnet50.pth")`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from resnetkit.verb import stands_for

if TYPE_CHECKING:
    from resnetkit.convert.checking import Check
    from resnetkit.convert.conversion import Conversion
    from resnetkit.data.transforms.preprocess import Preprocess


@overload
def convert(
    file: str | Path,
    *,
    model: str | None = None,
    preprocess: "str | Preprocess | None" = None,
    classes: str | Path | Sequence[str] | None = None,
    new_head: int | None = None,
    to: None = None,
    out: str | Path | None = None,
    force: bool = False,
    strict: bool = False,
    check: "Check | None" = None,
    part: str | None = None,
) -> "Conversion": ...


@overload
def convert(
    file: str | Path, *, to: Literal["torchvision", "timm"], out: str | Path | None = None, force: bool = False
) -> Path: ...


def convert(
    file: str | Path,
    *,
    model: str | None = None,
    preprocess: "str | Preprocess | None" = None,
    classes: str | Path | Sequence[str] | None = None,
    new_head: int | None = None,
    to: Literal["torchvision", "timm"] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    strict: bool = False,
    check: "Check | None" = None,
    part: str | None = None,
) -> "Conversion | Path":
    """Write the weights of another project as a model file; or, with `to`, write a model file for another project.

        rk.convert("resnet50.pth", out="resnet50.safetensors").path
        rk.convert("runs/birds", to="torchvision")

    `file` is .pth, .pt, .th, .bin, .safetensors, .h5, .keras or .npz. Code in the file is not run. Give the following
    arguments if the file, its hash and the config.json in its folder do not contain them: `model` (a name in SPECS,
    with changes), `preprocess` (imagenet, cifar10, ... with changes, or a Preprocess), `classes` (imagenet, cifar10,
    cifar100, a file, or the names).

    `new_head` is a number of classes: a new last layer with random weights replaces the layer in the file. The default
    of `out` is the file's stem with .safetensors, in the working folder. An existing file is only replaced with
    `force`. With `strict`, nothing is assumed: an assumption is an error. `check` contains labelled pictures: their
    error chooses the preprocessing, and the network if several fit, unless these are given or known. `part` chooses
    one of several networks in the file: its nested name and prefixes, joined by dots. Returns the Conversion: the
    header, and everything that was assumed. The header's `origin` tells where the weights come from.

    With `to` (torchvision or timm), `file` is a model file or a run folder. Its tensors are written under the names of
    that project, and the path of the new file is returned.

    Raises UsageError for a missing argument, for an argument that contradicts known facts, and for a network that the
    project `to` does not have; ModelFileError for a file that is broken, hostile or does not fit the network. Nothing
    is written in these cases.
    """
    if to is not None:
        from resnetkit.convert.outgoing import write_state_dict
        from resnetkit.errors import UsageError

        given = {"model": model, "preprocess": preprocess, "classes": classes, "new_head": new_head}
        given |= {"strict": strict or None, "check": check, "part": part}
        if others := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"`to` writes the model file unchanged; leave out {' '.join(f'`{it}`' for it in others)}")
        return write_state_dict(file, to=to, out=out, force=force)
    from resnetkit.convert.conversion import convert

    return convert(
        file,
        model=model,
        preprocess=preprocess,
        classes=classes,
        new_head=new_head,
        out=out,
        force=force,
        strict=strict,
        check=check,
        part=part,
    )


stands_for(__name__, convert)
