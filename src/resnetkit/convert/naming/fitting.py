"""Fit the tensors of a file into a network: none may be missing, extra or of another shape."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from resnetkit.convert.naming.layouts import Tensors, fold_biases
from resnetkit.convert.naming.networks import HEAD, contradicted, networks_like
from resnetkit.convert.naming.projects import Project, recognise
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.empty import empty_network
from resnetkit.models.spec import ModelSpec
from resnetkit.models.tensors import COUNTER, Misfit, compare, without_counters

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""
MOST_LISTED = 8
"""Largest number of tensors of one kind that an error lists; the others are counted."""
KERNEL_STRIDES = {"1x1": "in the first 1×1 convolution (v1)", "3x3": "in the 3×3 convolution (v1.5)"}
"""Value of `downsample_in` -> its description."""


def find_project(tensors: Tensors, other_entries: Iterable[str] = (), *, where: str) -> Project:
    """Return the project with these tensor names. Raises ModelFileError if it is unknown, or can't be read."""
    if project := recognise(tensors, other_entries):
        for pattern, (networks, why) in project.unread.items():
            if any(re.fullmatch(pattern, name) for name in tensors):
                raise ModelFileError(f"{where} is {networks} of {project.name}, which can't be converted: {why}")
        return project
    raise ModelFileError(
        f"{where} contains no known residual network; first tensors: {_listed(tensors, 3)}. "
        "Known projects: docs/weights.md"
    )


def renamed(project: Project, tensors: Tensors, *, where: str) -> dict[str, Tensor]:
    """Return the tensors under our names and in our layout, without the tensors in `left_out`.

    Raises ModelFileError if two tensors get the same name.
    """
    ours: dict[str, Tensor] = {}
    gone = left_out(project, tensors)
    for theirs, tensor in tensors.items():
        if theirs in gone:
            continue
        if (name := project.rename(theirs)) in ours:
            raise ModelFileError(f"{where} has two tensors for {name}, one of them {theirs}; remove one")
        ours[name] = tensor
    return fold_biases(project.prepare(ours))


def left_out(project: Project, tensors: Tensors) -> dict[str, str]:
    """Return, for tensors that do not belong to the network: name -> the component it belongs to ("the detector")."""
    return {
        name: what
        for name in tensors
        for pattern, what in project.leaves.items()
        if project.rename(name) == name and re.fullmatch(pattern, name)
    }


def refuse_contradictions(who: str, facts: Mapping[str, Any], spec: ModelSpec, *, where: str) -> None:
    """Raise UsageError if `spec` contradicts `facts`, known fields of the spec. The tensors would fit nevertheless.

    `where` names the file and `who` its origin in the error.
    """
    for name in contradicted(spec, facts):
        known, value = facts[name], getattr(spec, name)
        if name == "downsample_in":
            fits = "resnet50_v1, resnet101_v1, ..." if known == "1x1" else "resnet50, resnet101, ..."
            raise UsageError(
                f"{where} comes from {who}, whose bottlenecks have the stride {KERNEL_STRIDES[known]}; the network has "
                f"the stride {KERNEL_STRIDES[value]}: the weights would load, but the predictions would be wrong. "
                f"Give `model` {fits}"
            )
        raise UsageError(
            f"{where} comes from {who}, with {name}={known}; the network has {name}={value}. Change `model`"
        )


def fit(project: Project, tensors: Tensors, spec: ModelSpec, *, where: str) -> dict[str, Tensor]:
    """Return the state dict for `build(spec)`, in float32, from tensors of `project` under our names (see `renamed`).

    Missing batch counters are 0. Raises ModelFileError if tensors are missing, extra or of another shape. The error
    names the file `where` and the first tensors of each kind; the error's notes contain all of them.
    """
    expected = empty_network(spec).state_dict()
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith(COUNTER)}
    counters |= {name: tensors[name].long() for name in counters if name in tensors and not tensors[name].ndim}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in counters}
    if misfit := compare(without_counters(expected), tensors):
        error = ModelFileError(_account(where, misfit, spec, networks_like(tensors, project.implies)))
        kinds = {"missing": misfit.missing, "extra": misfit.unexpected, "another shape": misfit.misshaped}
        for kind, names in kinds.items():
            if len(names) > MOST_LISTED:
                error.add_note(f"all {kind}: {', '.join(names)}")
        raise error
    ours = project.reorder({name: tensor.float() for name, tensor in tensors.items()}, spec)
    return {name: counters[name] if name in counters else ours[name].contiguous() for name in expected}


def _account(where: str, misfit: Misfit, spec: ModelSpec, like: list[str]) -> str:
    """Return the error's text: the tensors that do not fit, with similar names, and a possible fix."""
    missing, unexpected, misshaped = misfit.missing, misfit.unexpected, misfit.misshaped
    lines = [f"{where} does not fit the network; nothing was written."]
    if missing:
        lines += _rows("missing", missing, misfit.expected, unexpected, misfit.found)
    if unexpected:
        lines += _rows("extra", unexpected, misfit.found, missing, misfit.expected)
    if misshaped:
        shapes = [(name, shape_text(misfit.found[name]), shape_text(misfit.expected[name])) for name in misshaped]
        lines += _shown("another shape", [f"{name} {here}, in the network {ours}" for name, here, ours in shapes])
    if not unexpected and missing == list(HEAD):
        lines.append(
            "The file has no last layer, and therefore no classes; `new_head` N adds a last layer for N classes. Train "
            "it with: resnetkit train DATA --init FILE"
        )
    elif not unexpected and set(missing + misshaped) <= set(HEAD):
        inside = f"{misfit.found[HEAD[1]][0]:,}" if misfit.found.get(HEAD[1]) else "no"
        lines.append(
            f"The file has {inside} classes and the network {spec.classes:,}. Give the file's number in `model` "
            f"NAME,classes=N or as many names in `classes`; or give `new_head` {spec.classes} for a new last layer."
        )
    elif like:
        lines.append(f"The file's tensors fit {', '.join(like)}.")
    return "\n".join(lines)


def _rows(kind: str, names: list[str], shapes: Shapes, others: list[str], other_shapes: Shapes) -> list[str]:
    """Return lines for `names`, which only one side has, each with the most similar name that only the other has."""
    texts: list[str] = []
    for name in names[:MOST_LISTED]:
        alike = [other for other in others if other_shapes[other] == shapes[name]]
        near = get_close_matches(name, alike, n=1, cutoff=0.3) or get_close_matches(name, others, n=1, cutoff=0.7)
        nearest = f", nearest {near[0]} {shape_text(other_shapes[near[0]])}" if near else ""
        texts.append(f"{name} {shape_text(shapes[name])}{nearest}")
    return _shown(kind, [*texts, *names[MOST_LISTED:]])


def _shown(kind: str, texts: list[str]) -> list[str]:
    more = (
        [f"  and {len(texts) - MOST_LISTED} more; the notes of this error name them (resnetkit convert --debug)"]
        if len(texts) > MOST_LISTED
        else []
    )
    return [f"{kind}:", *(f"  {text}" for text in texts[:MOST_LISTED]), *more]


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as text: 3×3."""
    return "×".join(map(str, shape)) or "scalar"


def _listed(names: Iterable[str], most: int) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" ({len(names)} in all)" if len(names) > most else "")
