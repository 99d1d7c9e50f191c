"""CyCADA, feature level: adapt a segmenter so that a discriminator cannot tell its features of the two domains apart.

Hoffman, Tzeng, Park, Zhu, Isola, Saenko, Efros, Darrell: "CyCADA: Cycle-Consistent Adversarial Domain Adaptation",
ICML 2018.

    python -m da train experiments/mini/cycada_feature.yaml

Symbols: x_s, y_s source image and label, translated to the target's style before (`cycada_pixel`) or not; x_t target
image; f the segmenter; h(x) its scores, or the features they are made of; D the discriminator, two-way softmax.

    L_seg = CE(f(x_s), y_s) + lambda_aux CE(f_aux(x_s), y_s)
    L_adv = CE(D(h(x_t)), source)                                                   (eq. 2, last term of eq. 5)
    L_D   = 1/2 CE(D(h(x_s)), source) + 1/2 CE(D(h(x_t)), target)                   h detached

f minimises L_seg + lambda_g L_adv, D minimises lambda_d L_D. L_adv counts only while D's accuracy, averaged over the
`gate_window` updates before, is at least `gate`: a D that is no better than chance has nothing to teach.

Differs from the authors' code: the supervised step always runs, theirs waits for the gate, and a run whose gate
stays shut for an epoch ends; f and D step together, theirs D, then f on the adversarial and f on the
supervised loss, each with a step of its own, so that momentum and weight decay act on f twice an update; f sees x_s and
x_t once an update, theirs x_s and x_t for D, then x_t anew and x_s anew; the auxiliary head's loss; D judges at the
output stride, theirs after upsampling; D on features has their widths (1024, 512), which are for 4096 channels, as the
pyramid of ResNet-50 and -101 has them, also where there are fewer; the source is domain 0 everywhere, theirs 1.
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.optim import SGD

from da.data.loaders import Batch
from da.engine.history import RunningMean
from da.engine.stepper import Backward
from da.losses import SOURCE_DOMAIN, TARGET_DOMAIN, two_way_domain_accuracy, two_way_domain_loss
from da.nets.discriminator import FeatureDiscriminator
from da.nets.norms import Domain
from da.nets.optimizers import SegmenterSGD
from da.nets.pspnet import PSPNet, Scores
from da.trainers import base


class Config(SegmenterSGD):
    lr: NonNegativeFloat = 1e-5
    head_lr_mult: NonNegativeFloat = 1.0
    momentum: float = Field(0.99, ge=0, lt=1)  # of D's optimiser too
    lambda_aux: NonNegativeFloat = 0.1  # weight of the auxiliary head's segmentation loss
    lambda_g: NonNegativeFloat = 0.1
    lambda_d: NonNegativeFloat = 1.0
    discriminate: Literal["scores", "features"] = "scores"  # what D sees; features: the pyramid's output
    lr_d: NonNegativeFloat = 1e-5
    dropout_d: float = Field(0.5, ge=0, lt=1)  # between D's layers
    gate: float = Field(0.6, ge=0, le=1)  # D's accuracy from which L_adv counts; 0 = always
    gate_window: PositiveInt = 100  # updates


class Trainer(base.Trainer):
    headline = {"loss/seg": "loss", "d/gate": "gate open"}

    def __init__(self, config: base.Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        m = self.method
        config.require_aux("lambda_aux")
        self.segmenter = PSPNet(config.model, len(self.classes))
        if m.discriminate == "scores":
            self.d = FeatureDiscriminator(len(self.classes), (512, 256), m.dropout_d)
        else:
            self.d = FeatureDiscriminator(self.segmenter.ppm.out_channels, (1024, 512), m.dropout_d)
        self.modules = {"segmenter": self.segmenter, "d": self.d}
        self.optimizers = {
            "segmenter": m.build(self.segmenter),
            "d": SGD(self.d.parameters(), lr=m.lr_d, momentum=m.momentum, weight_decay=m.weight_decay),
        }
        self.accuracy = RunningMean(m.gate_window, config.run.accumulate)
        self.memory = {"accuracy": self.accuracy}

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        assert batch.tgt_image is not None
        m = self.method
        x_s, y_s = self.view(batch.src_image), batch.src_label  # (B, 3, H, W) in [0, 1], (B, H, W) trainIds
        x_t = self.view(batch.tgt_image)

        # f: supervised on the source
        h_s, scores = self.represent(x_s, "source")
        loss_seg, scalars = self.segmentation_loss(scores, y_s, m.lambda_aux)  # L_seg
        backward(loss_seg)

        # D: tell the domains apart
        h_t, _ = self.represent(x_t, "target")
        base.freeze([self.d], False)
        log_p_s, log_p_t = self.d(h_s.detach()), self.d(h_t.detach())
        loss_d = 0.5 * two_way_domain_loss(log_p_s, SOURCE_DOMAIN) + 0.5 * two_way_domain_loss(log_p_t, TARGET_DOMAIN)
        backward(m.lambda_d * loss_d)  # L_D
        scalars["loss/d"] = loss_d
        scalars["d/accuracy_source"] = two_way_domain_accuracy(log_p_s, SOURCE_DOMAIN)
        scalars["d/accuracy_target"] = two_way_domain_accuracy(log_p_t, TARGET_DOMAIN)

        # f: target features should pass for source features, where D has something to teach
        right = 0.5 * (scalars["d/accuracy_source"] + scalars["d/accuracy_target"])
        accuracy = self.accuracy.add(right, self.iteration)
        gate_open = (accuracy >= m.gate).float()
        base.freeze([self.d], True)
        loss_adv = two_way_domain_loss(self.d(h_t), SOURCE_DOMAIN)  # L_adv
        backward(m.lambda_g * gate_open * loss_adv)
        return scalars | {"loss/adv": loss_adv, "d/accuracy": accuracy, "d/gate": gate_open}

    def represent(self, image: Tensor, domain: Domain) -> tuple[Tensor, Scores]:
        """h(x), and the scores, both at the output stride."""
        features = self.segmenter.features(image, domain)
        scores = self.segmenter.classify(features)
        return (scores.main if self.method.discriminate == "scores" else features.pyramid), scores
