"""Convert weights of other projects to a model file. It is written only if every tensor fits the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resnetkit.convert.annotations import Stated, stated_error
from resnetkit.convert.checking import Check, Trial, nearest, presets_for, try_all
from resnetkit.convert.files.readers import read_weights, weights_file
from resnetkit.convert.naming.fitting import fit, refuse_contradictions, shape_text
from resnetkit.convert.naming.networks import HEAD, nearest_network
from resnetkit.convert.naming.projects import Project
from resnetkit.convert.naming.recognition import UNKNOWN_PROJECT, Recognised, recognised
from resnetkit.convert.presets import CLASS_LISTS, PREPROCESSES, class_names, parse_preprocess
from resnetkit.convert.provenance import Provenance, known_by_files, known_by_hash, usual_choices
from resnetkit.data.published.download import digest
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.display import count, line
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.files import expanded
from resnetkit.modelfile import HEADER_KEY, Header, save
from resnetkit.models.spec import ModelSpec, parse_spec

MOST_TOLD = 3
"""Largest number of missing, extra or misshaped tensors that an error names for the nearest network."""

if TYPE_CHECKING:
    from resnetkit.models.resnet import ResNet


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion: the model file, and everything that was assumed for it."""

    path: Path
    """The model file."""
    header: Header
    model: str
    """The network, as `model` accepts it."""
    origin: str
    """The project whose tensor names the file has; for a file with a known hash, the name of the published weights."""
    tensors: int
    """Number of tensors in the file that were used."""
    new_head: bool
    """Whether the last layer is new and has random weights. It must be trained before it predicts."""
    left_out: tuple[str, ...]
    """Names of the file's other entries, which the model file does not contain."""
    assumed: tuple[str, ...] = ()
    """`preprocess` and `classes`, if they were neither given nor found: they are as the weights' author publishes."""
    guessed: tuple[str, ...] = ()
    """Other assumptions, each as a part of a sentence."""
    classes_from: str = ""
    """Nested name of the class names in the file, if it contains them: `class_to_idx`, `hyper_parameters.classes`."""
    stated: Stated | None = None
    """The error that the file contains."""
    trials: tuple[Trial, ...] = ()
    """The error of each choice that was measured on the pictures of `check`."""
    trial: Trial | None = None
    """The trial that was chosen."""
    part: str = ""
    """The network's place in the file, as `part` accepts it."""
    other_parts: tuple[str, ...] = ()
    """Places of other networks in the file, as `part` accepts them."""

    def __repr__(self) -> str:
        return line(type(self), str(self.path), self.model, f"from {self.origin}", count(self.tensors, "tensor"))


def convert(
    file: str | Path,
    *,
    model: str | None = None,
    preprocess: str | Preprocess | None = None,
    classes: str | Path | Sequence[str] | None = None,
    new_head: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    strict: bool = False,
    check: Check | None = None,
    part: str | None = None,
) -> Conversion:
    """Write weights of another project as a model file; arguments and errors are those of `resnetkit.convert`.

    It is separate from `resnetkit.convert` because that function must not import torch. A new last layer has seed 0.
    """
    path = weights_file(file)
    target = free_target(path, out or f"{path.stem.removesuffix('.weights')}.safetensors", force=force)
    if new_head is not None and new_head < 1:
        raise UsageError(f"`new_head` is {new_head}; it must be the number of classes, at least 1")
    asked = _classes_in(model) if model else None
    if new_head and asked not in (None, new_head):
        raise UsageError(f"`new_head` is {new_head} and `model` has classes={asked}; leave one of them out")
    if new_head and check:
        raise UsageError("`check` measures the file's own last layer, but `new_head` replaces it; give only one")
    names = None if classes is None else class_names(classes)
    chosen = None if preprocess is None else parse_preprocess(preprocess)

    weights = read_weights(path, part=part)
    if HEADER_KEY in weights.metadata:
        raise UsageError(f"{path} is a model file already; use it as it is, or give `to` torchvision or timm")
    wanted = parse_spec(model) if model else None
    found = recognised(weights, wanted, new_head=bool(new_head), where=str(path))
    if found.one_output:
        asked = found.classes if asked == 1 else asked
        if names and len(names) == 1:
            raise UsageError(
                f"{path} has one output, which means two classes: give two names, first the class of outputs below 0"
            )
    sha256 = digest(path, "sha256")
    provenance = (known_by_hash(sha256) if found.project.registered else None) or known_by_files(
        found, weights.objects, new_head or found.classes, path, names_given=names is not None
    )
    like = [provenance.model] if provenance.model else found.like({**found.project.usual_fields, **provenance.facts})
    preset = chosen or provenance.preprocess
    stated = stated_error(weights.objects)
    trials: list[Trial] = []
    best: Trial | None = None
    if check:
        labels = names or provenance.classes or check.classes
        models = [model] if model else like
        open_to_choice = chosen is None and (provenance.preprocess is None or "preprocess" in provenance.assumed)
        trials = _tried(check, found, models, None if open_to_choice else preset, labels, path)
        best = nearest(trials, check, stated) if trials else None
    if best and best.preprocess:
        preset = parse_preprocess(best.preprocess)
    network = model or (best.model if best else None) or (like[0] if len(like) == 1 else None)
    headless = found.classes is None and not new_head
    if network is None or (headless and model is None):
        raise _question(path, provenance, like, network, preset, names or provenance.classes, found, new_head)

    if new_head and not names:
        names = provenance.classes if provenance.classes_from else tuple(map(str, range(new_head)))
    if check and names is None and provenance.classes is None and found.classes == len(check.classes):
        names = check.classes
    counted = new_head or asked or (len(names) if names else found.classes)
    spec = replace(parse_spec(network), classes=counted) if counted else parse_spec(network)
    if names and len(names) != spec.classes:
        raise UsageError(
            f"{len(names)} class names for {spec.classes} classes; "
            f"give {spec.classes} names as `classes`, or leave it out"
        )
    refuse_contradictions(provenance.who, provenance.facts, spec, where=str(path))
    net = _network(found.project, found.tensors, spec, new_head=bool(new_head), where=str(path))
    taken = {"preprocess": chosen or best, "classes": names}
    assumed = tuple(name for name, value in taken.items() if name in provenance.assumed and value is None)
    names = names or provenance.classes
    if preset is None or names is None:
        raise _question(path, provenance, like, network, preset, names, found, new_head)
    if spec.in_channels != preset.channels:
        grey = "; give `preprocess` size=N,mean=M,std=S,mode=L" if spec.in_channels == 1 else ""
        raise UsageError(
            f"the network requires {spec.in_channels} channels, but the preprocessing makes {preset.channels}{grey}"
        )
    guessed = found.notes + (() if model or best else usual_choices(found.project, provenance, spec))
    if strict and (guessed or assumed):
        raise UsageError(f"`strict`: {path} needs these assumptions: {'; '.join((*assumed, *guessed))}")
    if found.project is UNKNOWN_PROJECT:
        _prove(net, where=str(path))
    origin = {**provenance.origin, "converted_from": path.name, "sha256": sha256, "source": provenance.who}
    metrics = {} if new_head or chosen or best else provenance.metrics
    header = Header(spec, preset, names, metrics=metrics, origin=origin)
    save(target, net, header)
    return Conversion(
        target,
        header,
        network,
        provenance.who,
        tensors=found.taken,
        new_head=bool(new_head),
        left_out=weights.other_entries + found.left_out,
        assumed=assumed,
        guessed=guessed,
        classes_from=provenance.classes_from if names == provenance.classes else "",
        stated=stated,
        trials=tuple(trials),
        trial=best,
        part=weights.part,
        other_parts=weights.others,
    )


def free_target(source: Path, out: str | Path, *, force: bool) -> Path:
    """Return the path `out`. Raises UsageError if it is `source`, a folder or, without `force`, an existing file."""
    target = expanded(out)
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{target} is the file to read; give another `out`")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; `out` must be the name of a file")
    if target.exists() and not force:
        raise UsageError(f"{target} exists already; give another `out`, or `force` to replace it")
    return target


def _tried(
    check: Check, found: Recognised, models: list[str], preset: Preprocess | None, labels: tuple[str, ...], path: Path
) -> list[Trial]:
    """Measure each of `models` with `preset` or, if that is None, with each usual preprocessing."""
    if found.classes != len(labels):
        raise UsageError(f"`check`: {path} has {found.classes or 'no'} outputs, but there are {len(labels)} classes")
    nets: list[tuple[str, ResNet]] = []
    for model in models:
        spec = replace(parse_spec(model), classes=len(labels))
        nets.append((model, _network(found.project, found.tensors, spec, new_head=False, where=str(path))))
    if not nets:
        return []
    spec = nets[0][1].spec
    presets = [("", preset)] if preset else presets_for(spec.input_size) if spec.in_channels == 3 else []
    return try_all(check, nets, presets, labels)


def _prove(net: "ResNet", *, where: str) -> None:
    """Raise ModelFileError if a network that was matched by shapes has outputs for noise that are not finite."""
    spec = net.spec
    noise = torch.randn(
        2, spec.in_channels, spec.input_size, spec.input_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        logits = net.eval()(noise)
    if not logits.isfinite().all():
        raise ModelFileError(
            f"the shapes of the layers in {where} fit a network, but its outputs are not finite: it is another network"
        )


def _question(
    path: Path,
    provenance: Provenance,
    like: list[str],
    network: str | None,
    preset: Preprocess | None,
    names: tuple[str, ...] | None,
    found: Recognised,
    new_head: int | None,
) -> UsageError:
    """Return the error that names every missing argument, with its possible values."""
    tries = "; `check` DATA tries them" if len(like) > 1 and found.classes else ""
    none = f"its tensors fit no row of `resnetkit models`, nor a row with changes{_nearest(found)}"
    fits = f"its tensors fit {', '.join(like)}{tries}" if like else none
    needed = [f"`model` NAME ({fits})"] if network is None else []
    needed += [f"`preprocess` {'|'.join(PREPROCESSES)}"] if preset is None else []
    if found.classes is None and new_head is None:
        needed += ["`new_head` N (the file has no last layer; train the new one with resnetkit train --init)"]
    elif names is None and new_head is None:
        many = f" ({found.classes:,} names)" if found.classes else ""
        needed += [f"`classes` {'|'.join(CLASS_LISTS)}|FILE{many}"]
    return UsageError(
        f"{path} has the tensor names of {provenance.who}, which don't determine everything; give "
        f"{', and '.join(needed)}"
    )


def _nearest(found: Recognised) -> str:
    """Return the end of a sentence: the nearest network, and its missing, extra and misshaped tensors; or ""."""
    if (near := nearest_network(found.tensors)) is None:
        return ""
    name, misfit = near
    parts = {
        "missing": [(one, misfit.expected[one]) for one in misfit.missing],
        "extra": [(one, misfit.found[one]) for one in misfit.unexpected],
        "of another shape": [(one, misfit.found[one]) for one in misfit.misshaped],
    }
    told = [
        f"{what}: {', '.join(f'{one} {shape_text(shape)}' for one, shape in those[:MOST_TOLD])}"
        + (f" and {len(those) - MOST_TOLD} more" if len(those) > MOST_TOLD else "")
        for what, those in parts.items()
        if those
    ]
    return f"; the nearest is {name}; {'; '.join(told)}" if told else ""


def _classes_in(network: str) -> int | None:
    """Return the number of classes in the text of a network; None if the text has no `classes=`."""
    said = any(setting.partition("=")[0].strip() == "classes" for setting in network.split(",")[1:])
    return parse_spec(network).classes if said else None


def _network(
    project: Project, tensors: Mapping[str, Tensor], spec: ModelSpec, *, new_head: bool, where: str
) -> "ResNet":
    """Return the network with the file's tensors; with `new_head`, its last layer has random weights instead."""
    from resnetkit.models.resnet import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(spec)
    head = {name: net.state_dict()[name].clone() for name in HEAD} if new_head else {}
    net.load_state_dict(fit(project, {**tensors, **head}, spec, where=where) | head)
    return net
