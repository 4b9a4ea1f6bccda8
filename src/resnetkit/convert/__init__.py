"""Other people's weights to model files, and back. Also the verb: `resnetkit.convert("resnet50.pth")`."""

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
    """Write someone else's weights as a model file; or, with `to`, a model file as weights that another project loads.

        rk.convert("resnet50.pth", out="resnet50.safetensors").path
        rk.convert("runs/birds", to="torchvision")

    `file` is .pth, .pt, .th, .bin, .safetensors, .h5, .keras or .npz; no code in it is run. Give what neither the file
    nor its hash nor a config.json beside it says: `model` (a name in SPECS, with changes), `preprocess` (imagenet,
    cifar10, ... with changes, or a Preprocess), `classes` (imagenet, cifar10, cifar100, a file, or the names).
    `new_head` is a number of classes: the last layer is left out, and one with first values takes its place. `out` is
    by default the file's stem in the working folder; an existing file is only replaced with `force`. `strict` refuses
    what would be assumed. With `check`, labelled pictures choose the preprocessing, and the network where several fit,
    unless they are given or known. `part` says which of several networks in the file is meant: its nested name and
    prefixes, joined by dots. Returns what was converted, and what was assumed; the header's `origin` says where the
    weights come from.

    With `to` (torchvision or timm), `file` is a model file or a run folder, its tensors are written as that project
    names them, and the path of the new file is returned.

    Raises UsageError for what is missing or contradicts what is known, or a network that `to` does not have;
    ModelFileError for a file that is broken, hostile or does not fit. Nothing is written then.
    """
    if to is not None:
        from resnetkit.convert.outgoing import write_state_dict
        from resnetkit.errors import UsageError

        given = {"model": model, "preprocess": preprocess, "classes": classes, "new_head": new_head}
        given |= {"strict": strict or None, "check": check, "part": part}
        if others := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"`to` writes what is in the model file; leave out {' '.join(f'`{it}`' for it in others)}")
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
