"""Supervised PSPNet on one labelled domain: the source-only baseline, and with target labels the oracle.

Zhao, Shi, Qi, Wang, Jia: "Pyramid Scene Parsing Network", CVPR 2017.

    python -m da train experiments/mini/source_only.yaml

L = CE(f(x_s), y_s) + lambda_aux CE(f_aux(x_s), y_s)            (section 3.3 of the paper, lambda_aux = 0.4)

Differs from the authors' code: the auxiliary head can be left out; batch normalisation in the pyramid's branches
is group normalisation unless `model.ppm_norm: batch` is set, so that batch 1 trains. No target image is opened,
not even for batch statistics.
"""

from typing import ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor

from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.nets.optimizers import SegmenterSGD
from da.nets.pspnet import PSPNet
from da.trainers import base


class Config(SegmenterSGD):
    lambda_aux: NonNegativeFloat = 0.4  # weight of the auxiliary head's loss


class Trainer(base.Trainer):
    uses_target: ClassVar[bool] = False

    def __init__(self, config: base.Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        config.require_aux("lambda_aux")
        self.segmenter = PSPNet(config.model, len(self.classes))
        self.modules = {"segmenter": self.segmenter}
        self.optimizers = {"segmenter": self.method.build(self.segmenter)}

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        x_s, y_s = self.view(batch.src_image), batch.src_label  # (B, 3, H, W) in [0, 1], (B, H, W) trainIds
        loss, scalars = self.segmentation_loss(self.segmenter.scores(x_s, "source"), y_s, self.method.lambda_aux)
        backward(loss)
        return scalars

    def predict(self, image: Tensor) -> Tensor:
        return self.segmenter.scores(image, "source").main  # the only domain whose statistics were seen
