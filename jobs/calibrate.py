"""Fit the confidence of a checkpoint: images with reference captions → the column `confidence`.

    python -m jobs.calibrate runs/mine/best runs/mine/calibrated --data flickr8k,flickr8k,dev

The command captions the images with the checkpoint's own search, counts a caption as right if its CIDEr-D against the
references is above 0.5, and fits a small logistic model on evidence of the search (see `captionlib.confidence`). Use
about a thousand images that the checkpoint was not trained on. Ray is not needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from tyro.conf import Positional, UseAppendAction

from captionlib.errors import UserError
from captionlib.ranges import POSITIVE, at_least, check_ranges
from captionlib.storage.folder import Folder
from jobs.cli.arguments import parse
from jobs.cli.exit_codes import run_command

if TYPE_CHECKING:
    from captionlib.captioners.predictor import Predictor
    from captionlib.confidence import Evidence
    from captionlib.datasets import CaptionedImage

PROG = "python -m jobs.calibrate"
_IMAGES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """Settings of the calibration."""

    model: Positional[str]
    """The checkpoint: a folder, a URL, or `default` for the one that comes with the project."""
    output: Positional[str]
    """Folder or URL of the calibrated checkpoint. It may be the same folder."""
    data: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Images with captions, as KIND,PATH,SPLIT: kinds, paths and splits as for jobs.evaluate. Where the captions do not
    say where the images are, their folder comes last: coco,captions.json,all,photos. May be given several times: each
    data set is scored by itself, and the model is fitted on all of them."""
    folds: int = 10
    """Parts of the cross-validation."""
    ridge: float = 300.0
    """Penalty on large weights; more for fewer images."""
    config: Path | None = None
    """A YAML or TOML file with any of these settings; the command line takes precedence."""

    def __post_init__(self) -> None:
        check_ranges(self, "--", folds=at_least(2), ridge=POSITIVE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 written, 2 invalid request, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings = parse(CalibrateSettings, arguments, prog=PROG, description=__doc__ or "")
    return run_command(PROG, lambda: calibrate(settings))


def calibrate(settings: CalibrateSettings) -> int:
    """Caption, fit, cross-validate and write; return the exit code.

    Raises:
        UserError, OSError: the images, the output or the checkpoint cannot be used.
    """
    from captionlib.captioners.predictor import Predictor
    from captionlib.checkpoints import add_confidence, changed_copy, load_checkpoint, resolve_checkpoint
    from captionlib.confidence import Fitter, cross_validated
    from captionlib.metrics.calibration import area_under_roc, expected_calibration_error, reliability
    from jobs.evaluation.inputs import read_captioned_images

    if not settings.data:
        raise UserError("give at least one data set of images with captions, such as --data flickr8k,flickr8k,dev")
    datasets = [(text, read_captioned_images("--data", text)) for text in settings.data]
    directory = resolve_checkpoint(settings.model)
    predictor = Predictor(load_checkpoint(directory))
    output = Folder.of(settings.output)
    output.check_writable()
    found: list[Evidence] = []
    is_right: list[bool] = []
    for text, images in datasets:
        evidence, right = judge(predictor, images)
        print(f"{text}: {len(images)} images, {sum(right)} captions are right", file=sys.stderr, flush=True)
        found += evidence
        is_right += right
    fitter = Fitter(ridge=settings.ridge)
    fitted = fitter.fit(found, is_right)
    probabilities = cross_validated(found, is_right, fitter, settings.folds)
    auc = area_under_roc(probabilities, is_right)
    error = expected_calibration_error(probabilities, is_right)
    names = ", ".join(f"{kind} {split}" for kind, _, split, *_ in (text.split(",") for text in settings.data))
    model = replace(fitted, fitted_on=names, area_under_roc=auc, calibration_error=error)
    with changed_copy(directory, output) as draft:
        add_confidence(draft, model)
    print(f"{len(found)} captions, {sum(is_right)} right; cross-validated in {settings.folds} parts:")
    print(f"area under the ROC curve {auc:.3f}, expected calibration error {error:.3f}")
    per_word = [evidence.signals[1] for evidence in found]
    print(f"the log-probability per word alone: {area_under_roc(per_word, is_right):.3f}")
    start = 0
    for text, images in datasets:
        here = slice(start, start + len(images))
        start += len(images)
        if 0 < sum(is_right[here]) < len(images):
            print(f"  {text}: {area_under_roc(probabilities[here], is_right[here]):.3f}")
    print("confidence  captions  mean   right")
    for low, high, count, mean, share in reliability(probabilities, is_right):
        if count:
            print(f"{low:.1f} to {high:.1f}  {count:8d}  {mean:.3f}  {share:.3f}")
    print(f"written to {output.url}")
    return 0


def judge(predictor: Predictor, images: Sequence[CaptionedImage]) -> tuple[list[Evidence], list[bool]]:
    """Caption images of one data set; return the evidence of each caption, and whether it is right."""
    from captionlib.confidence import RIGHT_ABOVE
    from captionlib.metrics import CiderD
    from captionlib.text import tokenize

    reward = CiderD.from_references([[tokenize(caption) for caption in image.captions] for image in images])
    found: list[Evidence] = []
    captions: list[Sequence[str]] = []
    for pixels in _batches(predictor, images):
        for text, evidence in predictor.evidence(pixels):
            found.append(evidence)
            captions.append(tokenize(text))
    scores = reward.score_many(captions, list(range(len(images))))
    return found, [bool(score > RIGHT_ABOVE) for score in scores]


def _batches(predictor: Predictor, images: Sequence[CaptionedImage]) -> Iterator[np.ndarray]:
    from captionlib.images.decode_pixels import decode_pixels
    from captionlib.images.pixels import to_pixels
    from captionlib.storage.read import read_bytes

    preprocessing = predictor.preprocessing
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        files = [read_bytes(image.path) for image in images[start : start + _IMAGES_AT_ONCE]]
        decoded = [decode_pixels(data, target_side=preprocessing.size).pixels for data in files]
        yield np.stack([to_pixels(picture, preprocessing) for picture in decoded])


if __name__ == "__main__":
    sys.exit(main())
