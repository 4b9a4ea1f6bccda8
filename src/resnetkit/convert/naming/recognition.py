"""A file's tensors under our names, by the names or the shapes that they have, and what was assumed for it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from resnetkit.convert.files.readers import Weights
from resnetkit.convert.naming.fitting import find_project, left_out, renamed
from resnetkit.convert.naming.heads import Headed, settle_head
from resnetkit.convert.naming.layouts import Tensors, fold_biases
from resnetkit.convert.naming.modules import facts_of, with_our_epsilon
from resnetkit.convert.naming.networks import has_tensors_of, networks_like, spec_of
from resnetkit.convert.naming.projects import Project, recognise
from resnetkit.convert.naming.structure import Match, keeps_order, matches
from resnetkit.errors import ModelFileError
from resnetkit.models.spec import ModelSpec

UNKNOWN_PROJECT = Project("a project that is not known here", known_by={})
"""Stands for the project of a file whose layers were matched by their shapes."""


@dataclass(frozen=True)
class Recognised:
    """What the tensors of a file are, as far as they tell."""

    project: Project
    tensors: dict[str, Tensor]
    """Under our names, in our layout: the trunk, the last layer if there is one, and tensors that belong to neither."""
    notes: tuple[str, ...] = ()
    """What was assumed, each as half a sentence."""
    left_out: tuple[str, ...] = ()
    """Names of what no network here has."""
    one_output: bool = False
    """Whether two classes were made of one output."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a spec that the file's own modules settle."""
    taken: int = 0
    """How many tensors of the file were taken."""
    networks: tuple[str, ...] | None = None
    """Where layers were matched by their shapes: the networks that they fit."""

    @property
    def classes(self) -> int | None:
        """Width of the last layer; None where there is none."""
        last = self.tensors.get("fc.weight")
        return len(last) if last is not None and last.ndim else None

    def like(self, facts: Mapping[str, Any]) -> list[str]:
        """The networks that the tensors fit and `facts` allow, as `model` takes them."""
        return networks_like(self.tensors, facts) if self.networks is None else list(self.networks)


def recognised(weights: Weights, wanted: ModelSpec | None, *, new_head: bool, where: str) -> Recognised:
    """Find out what the tensors are: by their names, else by their shapes in order.

    `wanted` is the network, where it is given. Raises ModelFileError where neither tells, and for networks that are
    known and can't be read.
    """
    tensors = weights.tensors
    project = recognise(tensors, weights.other_entries)
    by_names = None if project is None else _by_names(weights, new_head=new_head, where=where)
    if by_names and _is_whole(by_names.tensors, wanted):
        return by_names
    by_shapes = _by_shapes(weights, wanted, new_head=new_head, where=where)
    if by_shapes and (by_names is None or _is_whole(by_shapes.tensors, wanted)):
        return by_shapes
    if by_names:
        return by_names
    try:
        find_project(tensors, where=where)
    except ModelFileError as error:
        if keeps_order(tensors):
            raise
        raise ModelFileError(
            f"{error}. They are in the order of the alphabet, so their shapes don't tell either: a .pth file would"
        ) from None
    raise AssertionError("a project that is there and was not found")


def _by_names(weights: Weights, *, new_head: bool, where: str) -> Recognised:
    tensors = weights.tensors
    project = find_project(tensors, weights.other_entries, where=where)
    gone = left_out(project, tensors)
    ours = with_our_epsilon(renamed(project, tensors, where=where), weights.modules, project.rename)
    headed = settle_head(ours, new_head=new_head, where=where)
    return Recognised(
        project,
        headed.tensors,
        project.notes + headed.notes,
        (*_counted(gone.values()), *headed.left_out),
        headed.one_output,
        facts_of(weights.modules, project.rename, where=where),
        len(tensors) - len(gone) - headed.tensors_left_out,
    )


def _by_shapes(weights: Weights, wanted: ModelSpec | None, *, new_head: bool, where: str) -> Recognised | None:
    """The tensors under our names by their layers' shapes in order; None where no network has them."""
    tensors = weights.tensors
    found = matches(tensors, None if wanted is None else replace(wanted, classes=1))
    ways = {tuple(match.ours.values()) for match in found if match.spec == found[0].spec}
    if not found:
        return None
    if len(ways) > 1:
        raise ModelFileError(
            f"{where} has names that are not known here, and the shapes of its layers in order fit a "
            f"{found[0].spec.block} network in {len(ways)} ways: which is which can't be told, so it is not read"
        )
    headed = [_headed(match, weights, new_head=new_head, where=where) for match in found]
    facts = facts_of(weights.modules, found[0].rename, where=where)
    networks = dict.fromkeys(name for one in headed for name in networks_like(one.tensors, facts))
    first, layers = headed[0], len(found[0].ours)
    told = f"its names are not known here: its {layers} layers were told by their shapes in order, which fit in one way"
    notes = [f"{told}; `check` DATA measures whether that is right"]
    if found[0].spec.shortcut == "A":
        notes.append("where its shortcuts add channels, those are behind the others")
    if found[0].spec.order == "pre":
        notes.append("where dimensions change, its shortcuts start behind the first normalisation, as the paper's do")
    return Recognised(
        UNKNOWN_PROJECT,
        first.tensors,
        (*notes, *first.notes),
        first.left_out,
        first.one_output,
        facts,
        len(tensors) - first.tensors_left_out,
        tuple(networks),
    )


def _headed(match: Match, weights: Weights, *, new_head: bool, where: str) -> Headed:
    ours = {match.rename(name): tensor for name, tensor in weights.tensors.items()}
    ours = with_our_epsilon(fold_biases(ours), weights.modules, match.rename)
    return settle_head(ours, new_head=new_head, where=where)


def _is_whole(tensors: Tensors, wanted: ModelSpec | None) -> bool:
    """Whether names alone make a network of the tensors: the one that is wanted, or any."""
    return spec_of(tensors) is not None or (wanted is not None and has_tensors_of(wanted, tensors))


def _counted(parts: Iterable[str]) -> list[str]:
    """`["the detector (79 tensors)"]` of what each of some tensors is."""
    parts = list(parts)
    return [f"{part} ({parts.count(part)} tensors)" for part in dict.fromkeys(parts)]
