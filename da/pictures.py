"""The pictures of training for TensorBoard, and those of a data set and of the miniature."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from da.config import UserError
from da.data import folders
from da.data.loaders import Batch
from da.engine.stepper import Stepper
from da.evaluation import visualize
from da.evaluation.infer import entropy, upsample
from da.labels import DEFAULT, LabelSpace, label_space
from da.nets.generator import quantise
from da.trainers import base


def of_training(stepper: Stepper, batch: Batch) -> np.ndarray:
    """The first source image with prediction and label, and below it the first target image with prediction and
    entropy: (H, W, 3) uint8. For a method with `examples`: its rows of images, each above the predictions of a
    trained segmenter."""
    stepper.eval()
    trainer: base.Trainer = stepper.trainer  # type: ignore[assignment]
    classes = trainer.classes
    if rows := _example_rows(trainer, stepper, batch):
        return visualize.grid(rows, trainer.example_titles, classes)
    for images in (batch.src_image, batch.tgt_image):
        if images is None:
            continue
        with torch.no_grad(), stepper.autocast():
            logits = stepper.trainer.predict(images[:1].to(stepper.device).float() / 255)
            logits = upsample(logits, (images.shape[-2], images.shape[-1]))[0]
        right = (
            visualize.heat_map(entropy(logits.softmax(0))) if rows else visualize.colorize(batch.src_label[0], classes)
        )
        prediction = visualize.colorize(logits.argmax(0).to(torch.uint8), classes)
        rows.append([visualize.to_picture(images[0]), prediction, right])
    titles = ("source / target image", "prediction", "label / entropy")
    return visualize.grid(rows, titles, classes)


def _example_rows(trainer: base.Trainer, stepper: Stepper, batch: Batch) -> list[list[np.ndarray]]:
    rows: list[list[np.ndarray]] = []
    with torch.no_grad(), stepper.autocast():
        for images in trainer.examples(batch.first().to(stepper.device)):
            rows.append([visualize.to_picture(quantise(image[0])) for image in images])
            if trainer.segmenter_is_trained:
                labels = [trainer.segmenter(image, "source").main[0].argmax(0) for image in images]
                rows.append([visualize.colorize(label.to(torch.uint8), trainer.classes) for label in labels])
    return rows


def draw_data_set(
    root: Path, dataset: str, classes: LabelSpace, splits: Sequence[str], figure: Path, with_labels: bool = True
) -> None:
    """Draw the first images of each split beside their labels, where they have some, and the classes' colours below."""
    of = folders.find(dataset)
    rows = []
    for split in splits:
        for sample in of.scan(root, split, with_labels)[:4]:
            row: list[np.ndarray] = []
            with contextlib.suppress(UserError):  # what `data check` has named
                row.extend(_image_and_label(of, sample, classes))
            rows.append([*row, *[np.zeros((3, 4, 3), np.uint8)] * (2 - len(row))])
    if rows and not with_labels:
        visualize.save(figure, visualize.grid([row[:1] for row in rows], ("image",), classes))
    elif rows:
        picture = visualize.grid(rows, ("image", "label"), classes)
        visualize.save(figure, np.concatenate([picture, visualize.legend(classes, picture.shape[1])]))


def draw_miniature(root: Path, figure: Path) -> None:
    """Draw source and target examples of the miniature at `root`, each with its label, side by side."""
    classes = label_space(DEFAULT)
    source, target = folders.find("gta5"), folders.find("cityscapes")
    pairs = zip(source.index(root / "gta5", "all"), target.index(root / "cityscapes", "val"))
    rows = [
        [*_image_and_label(source, first, classes), *_image_and_label(target, second, classes)]
        for first, second in islice(pairs, 6)
    ]
    visualize.save(figure, visualize.grid(rows, ("source", "label", "target", "label"), classes))


def _image_and_label(of: folders.DataSet, sample: folders.Sample, classes: LabelSpace) -> Iterator[np.ndarray]:
    """A sample's photograph, then its label, if it has one, in the colours of `classes`, each (H, W, 3) uint8."""
    yield folders.read_image(sample.image)
    if sample.label:
        yield visualize.colorize(of.read_label(sample.label, classes), classes)
