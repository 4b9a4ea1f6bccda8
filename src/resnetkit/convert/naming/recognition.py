"""Recognise a file's tensors by their names or by their shapes, and rename them to our names."""

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
"""The project of files whose layers were matched by their shapes."""


@dataclass(frozen=True)
class Recognised:
    """A file's tensors under our names, and everything that they tell about the network."""

    project: Project
    tensors: dict[str, Tensor]
    """Under our names, in our layout: the trunk, the last layer if there is one, and other tensors."""
    notes: tuple[str, ...] = ()
    """Assumptions, each as a part of a sentence."""
    left_out: tuple[str, ...] = ()
    """Names of components and layers that are left out."""
    one_output: bool = False
    """Whether one output of the file became two classes."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the spec that the modules in the file determine."""
    taken: int = 0
    """Number of tensors in the file that are used."""
    networks: tuple[str, ...] | None = None
    """If layers were matched by their shapes: the networks that fit. Else None."""

    @property
    def classes(self) -> int | None:
        """Number of outputs of the last layer; None if there is no last layer."""
        last = self.tensors.get("fc.weight")
        return len(last) if last is not None and last.ndim else None

    def like(self, facts: Mapping[str, Any]) -> list[str]:
        """Return the networks that fit the tensors and `facts`, as `model` accepts them."""
        return networks_like(self.tensors, facts) if self.networks is None else list(self.networks)


def recognised(weights: Weights, wanted: ModelSpec | None, *, new_head: bool, where: str) -> Recognised:
    """Recognise the tensors by their names or, if that fails, by their shapes in the order of the file.

    `wanted` is the network if the user gave one, else None. `where` names the file in errors. Raises ModelFileError if
    both ways fail, and for known networks that can't be converted.
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
            f"{error}. The tensors are in alphabetical order: a .pth file could be matched by the shapes of its layers"
        ) from None
    raise AssertionError("no project, but find_project found one")


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
    """Match the tensors by the shapes of their layers, in order; return None if they fit no network."""
    tensors = weights.tensors
    found = matches(tensors, None if wanted is None else replace(wanted, classes=1))
    ways = {tuple(match.ours.values()) for match in found if match.spec == found[0].spec}
    if not found:
        return None
    if len(ways) > 1:
        raise ModelFileError(
            f"{where} has unknown tensor names, and the shapes of its layers in order fit a {found[0].spec.block} "
            f"network in {len(ways)} ways: the layers can't be matched"
        )
    headed = [_headed(match, weights, new_head=new_head, where=where) for match in found]
    facts = facts_of(weights.modules, found[0].rename, where=where)
    networks = dict.fromkeys(name for one in headed for name in networks_like(one.tensors, facts))
    first, layers = headed[0], len(found[0].ours)
    told = f"its tensor names are unknown: its {layers} layers were matched by their shapes, which fit in only one way"
    notes = [f"{told}; `check` DATA measures whether this is right"]
    if found[0].spec.shortcut == "A":
        notes.append("shortcuts that add channels add them after the existing channels")
    if found[0].spec.order == "pre":
        notes.append("shortcuts that change dimensions start after the first normalisation, as in the paper")
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
    """Whether the tensors are those of a whole network: of `wanted`, or of any."""
    return spec_of(tensors) is not None or (wanted is not None and has_tensors_of(wanted, tensors))


def _counted(parts: Iterable[str]) -> list[str]:
    """Count the components of tensors: `["the detector (79 tensors)"]` for 79 times "the detector"."""
    parts = list(parts)
    return [f"{part} ({parts.count(part)} tensors)" for part in dict.fromkeys(parts)]
