"""What `resnetkit evaluate` does for a model that gives several labels for a picture."""

import csv
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.commands.leaks import leaking_pictures, sections_on_data
from resnetkit.commands.printing import on_one_line, print_json, print_table
from resnetkit.display import printable
from resnetkit.errors import DataError, UsageError
from resnetkit.files import write_whole
from resnetkit.location import short_name
from resnetkit.progress import bar

if TYPE_CHECKING:
    from resnetkit.data.parts import Part
    from resnetkit.data.samples import Dataset
    from resnetkit.evaluation.multilabel import MultiLabelEvaluation
    from resnetkit.modelfile import Model

REFUSED = {
    "label_errors": "judges one label for each picture",
    "review": "judges one label for each picture",
    "learning_curve": "is measured with one label for each picture",
    "features_of": "is for questions about pictures with one label",
    "class_share": "needs one class for each picture, so that shares sum to 1",
}
"""Flags of `evaluate` that have no meaning here, with the reasons."""


def run(
    model: "Model",
    dataset: "Dataset",
    part: "Part",
    given: Mapping[str, Any],
    files: Mapping[str, Path],
    argv: Sequence[str],
) -> int:
    """Evaluate, and print or write the result; `given` are the flags of `evaluate`, `argv` as they were typed."""
    from resnetkit.data.parts import recognise
    from resnetkit.evaluation.evaluate import evaluate_multilabel
    from resnetkit.evaluation.thresholds import fit_several
    from resnetkit.modelfile import load, save

    for name, why in REFUSED.items():
        if given[name]:
            raise UsageError(f"`{name}` {why}, and this model gives several; leave it out")
    other = load(given["against"]) if given["against"] else None
    if other and (not other.header.multilabel or other.header.classes != model.header.classes):
        raise UsageError(f"`against` {given['against']} has other classes, or gives one for a picture; give another")

    def evaluated(one: "Model", doing: str, of: "Part") -> "MultiLabelEvaluation":
        with bar(doing, len(of.samples)) as advance:
            return evaluate_multilabel(
                one,
                of,
                views=given["views"],
                batch_size=given["batch_size"],
                workers=given["workers"],
                strict=given["strict"],
                advance=advance,
            )

    result = evaluated(model, "evaluating", part)
    more: dict[str, Any] = {}
    if file := files.get("calibrate"):
        calibration = fit_several(result.logits, result.labels)
        if calibration is None:
            raise DataError("--calibrate needs finite logits")
        save(file, model.net, replace(model.header, calibration=calibration))
        result = replace(result, calibration=calibration)
        more["calibrated_model"] = str(file)
    more |= _leaks(dataset, part, model, result, workers=given["workers"])
    if other:
        if known := int(recognise(part.samples, other.header.data).mask.sum()):
            _say(f"{known:,} of these pictures trained {given['against']}: its AP on new pictures may be much lower")
        others = evaluated(other, "evaluating the other model", replace(part, trained_on=0))
        more["difference"] = _difference(result, others)
    document = result.to_dict() | more
    if given["json"]:
        print_json(document)
    else:
        pictures = f"all {result.images:,}" if part.name == "all" else f"{result.images:,} {part.name}"
        print(on_one_line(f"{pictures} pictures of {given['data']}, {given['views']} view"))
        print(f"{part.name}: {part.why}")
        _print(result, document)
    for note in result.notes:
        _say(note)
    if file := files.get("report"):
        on_data = sections_on_data(dataset, workers=given["workers"])
        _write_report(file, model, result, part, document, given, argv, chose="calibrate" in files, sections=on_data)
        _say(f"the report is {file}")
    if file := files.get("csv"):
        _write_csv(file, result, part)
        _say(f"the result of each picture is in {file}")
    if file := files.get("calibrate"):
        _say(f"the model with the new temperature and thresholds is {file}")
    return 0


def _leaks(
    dataset: "Dataset", part: "Part", model: "Model", result: "MultiLabelEvaluation", *, workers: int
) -> dict[str, Any]:
    leaks = leaking_pictures(dataset, part, model.header.data, workers=workers)
    if leaks is None:
        return {"leaking": None, "map_percent_without_leaks": None}
    kept = ~leaks[result.indices]
    rest = replace(result, logits=result.logits[kept], labels=result.labels[kept], indices=result.indices[kept])
    return {"leaking": int((~kept).sum()), "map_percent_without_leaks": rest.map_percent if kept.any() else None}


def _difference(result: "MultiLabelEvaluation", others: "MultiLabelEvaluation") -> dict[str, Any]:
    """Return how the mean average precision differs from another model's, with a paired bootstrap over pictures."""
    import numpy as np

    from resnetkit.evaluation.average_precision import interval_of, resampled_means

    _, one, two = np.intersect1d(result.indices, others.indices, return_indices=True)
    first, second = resampled_means([result.logits[one], others.logits[two]], result.labels[one])
    low, high = interval_of(first - second)
    verdict = "better" if low > 0 else "worse" if high < 0 else "can't be told apart"
    return {
        "pictures": len(one),
        "map_percent": round(result.map_percent - others.map_percent, 4),
        "interval_percent": [round(100 * low, 4), round(100 * high, 4)],
        "other_map_percent": others.map_percent,
        "verdict": verdict,
    }


def _print(result: "MultiLabelEvaluation", document: Mapping[str, Any]) -> None:
    low, high = document["map_interval_percent"]
    print(f"mAP          {result.map_percent:.2f} % (95 % interval: {low:.2f} to {high:.2f} %)")
    print(f"error        {result.error_percent:.2f} %: 100 % minus the mAP")
    print(f"F1           {result.macro_f1_percent:.2f} % macro, {result.micro_f1_percent:.2f} % micro")
    print(f"exact match  {result.exact_match_percent:.2f} % of the pictures have all labels right")
    print(f"loss         {result.loss:.4f}")
    found = document["calibration"]
    before = f", {found['ece_percent_before']:.1f} % without it" if found["temperature"] != 1 else ""
    print(f"calibration  error of {found['ece_percent']:.1f} % at temperature {found['temperature']:.3f}{before}")
    for text in _compared(document, "the other model").items():
        print(": ".join(text))
    print()
    print_table(*result.table(worst_first=False))
    if result.unreadable:
        print(f"\n{len(result.unreadable)} more can't be read, first {on_one_line(next(iter(result.unreadable)))}")


def _compared(document: Mapping[str, Any], other: str) -> dict[str, str]:
    """Return the results on leaks and of --against, as name and text."""
    rows: dict[str, str] = {}
    if document.get("leaking"):
        left = document["map_percent_without_leaks"]
        without = "" if left is None else f"; without them, mAP {left:.2f} %"
        rows["pictures that are alike to training pictures"] = f"{document['leaking']:,}{without}"
    if found := document.get("difference"):
        low, high = found["interval_percent"]
        rows[f"mAP minus that of {other}"] = (
            f"{found['map_percent']:+.2f} points ({low:+.2f} to {high:+.2f}): {found['verdict']}"
        )
    return rows


def _write_report(
    file: Path,
    model: "Model",
    result: "MultiLabelEvaluation",
    part: "Part",
    document: Mapping[str, Any],
    given: Mapping[str, Any],
    argv: Sequence[str],
    *,
    chose: bool,
    sections: Mapping[str, str],
) -> None:
    from resnetkit.evaluation.mistakes import worst_labels
    from resnetkit.evaluation.multilabel_section import labels_section
    from resnetkit.evaluation.report import versions, write_report
    from resnetkit.train.effects import effective_fields

    write_report(
        file,
        model.header,
        title=f"{short_name(given['model'])} on {short_name(given['data'])}",
        evaluated=None,
        before=labels_section(
            result,
            on=f"{part.name} pictures",
            chose=chose,
            compared=_compared(document, str(given["against"])),
            mistakes=list(worst_labels(model, part.samples, result)),
        ),
        recipe=effective_fields(model.header.recipe, model.header.data.get("split", {})),
        sections=sections,
        made_by={
            "command": shlex.join(["resnetkit", "evaluate", *argv]),
            "data": f"{given['data']}, {part.name}, fingerprint {part.samples.fingerprint()}",
            **versions(),
        },
    )


def _write_csv(file: Path, result: "MultiLabelEvaluation", part: "Part") -> None:
    """Write a row for each picture: its labels and the answered ones, between bars, and all probabilities."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "labels", "answered", *(f"probability of {name}" for name in result.classes)])
    for row, index in enumerate(result.indices.tolist()):
        named = [
            "|".join(name for name, there in zip(result.classes, of[row], strict=True) if there)
            for of in (result.labels, result.answers)
        ]
        writer.writerow([part.samples.place(index), *named, *map(str, result.probabilities[row])])
    write_whole(file, printable(text.getvalue()))


def _say(text: str) -> None:
    print(on_one_line(f"resnetkit evaluate: {text}"), file=sys.stderr)
