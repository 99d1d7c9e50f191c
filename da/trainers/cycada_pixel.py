"""CyCADA, pixel level: translate images between the domains without changing what they show.

Hoffman, Tzeng, Park, Zhu, Isola, Saenko, Efros, Darrell: "CyCADA: Cycle-Consistent Adversarial Domain Adaptation",
ICML 2018; the translation is CycleGAN (Zhu, Park, Isola, Efros, ICCV 2017).

    python -m da train experiments/mini/cycada_pixel.yaml

Symbols: x_s, y_s source image and label; x_t target image; G_st, G_ts generators; D_s, D_t discriminators of
pictures, real = 1, fake = 0; f_s the frozen source segmenter; p(x) = argmax f_s(x) its labels.

    L_GAN  = (D_t(G_st(x_s)) - 1)^2 + (D_s(G_ts(x_t)) - 1)^2                        (eq. 2, least squares)
    L_cyc  = |G_ts(G_st(x_s)) - x_s| + |G_st(G_ts(x_t)) - x_t|                      (eq. 3)
    L_idt  = |G_st(x_t) - x_t| + |G_ts(x_s) - x_s|                                  (CycleGAN, section 5.2)
    L_sem  = CE(f_s(G_st(x_s)), p(x_s)) + CE(f_s(G_ts(x_t)), p(x_t))                (eq. 4)
    L_D    = 1/2 (D(x) - 1)^2 + 1/2 D(pool(fake))^2      for each D, fakes detached

G minimise L_GAN + lambda_cyc (L_cyc + lambda_idt L_idt) + lambda_sem L_sem, each D its L_D. All networks step
together, on the translations made before the step. `predict` is f_s on G_ts(x_t), the target in the source's style,
so that validation says how well a translation keeps what the segmenter knows.

Differs from the authors' code: they released the semantic term for digits only, with a classifier trained alongside
and left out while its loss is above 1; here f_s is frozen (`init`), its doubtful pixels can be left out
(`sem_confidence`), and the term warms in. Ground truth on the source side and the score distance of BDL (Li et al.,
CVPR 2019) are settings; BDL weighs the distance 0.1, and takes it on reconstructions too, with a weight of 10.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.optim import Adam

from da.config import Section, UserError
from da.data.loaders import Batch
from da.engine.history import ImagePool
from da.engine.stepper import Backward
from da.labels import IGNORE
from da.losses import confident_labels, cross_entropy, real_loss, score_distance
from da.nets.discriminator import PatchDiscriminator
from da.nets.generator import Generator, Upsampling, to_generator, to_unit
from da.nets.optimizers import Betas
from da.nets.pspnet import PSPNet
from da.trainers import base


class Config(Section):
    lambda_cyc: NonNegativeFloat = 10.0
    lambda_idt: NonNegativeFloat = 0.5  # times lambda_cyc
    lambda_sem: NonNegativeFloat = 1.0  # 0 = CycleGAN alone
    semantic: Literal["labels", "ground_truth", "scores"] = "labels"  # ground_truth: y_s instead of p(x_s)
    sem_confidence: float = Field(0.0, ge=0, lt=1)  # pixels whose p(x) is less probable do not count (not `scores`)
    sem_start: NonNegativeInt = 0  # update at which L_sem sets in
    sem_ramp: NonNegativeInt = 0  # updates over which it then rises to its full weight
    pool: NonNegativeInt = 50  # past translations kept for each discriminator
    blocks: PositiveInt = 9  # residual blocks of a generator
    width: PositiveInt = 64  # channels of the first layer of all four networks
    upsampling: Upsampling = "transposed"  # `resize` leaves no checkerboard; transposed convolutions need long training
    lr: NonNegativeFloat = 2e-4
    betas: Betas = (0.5, 0.999)


class Trainer(base.Trainer):
    is_translation: ClassVar[bool] = True
    example_titles = ("real", "translated", "cycled")
    headline = {"loss/cycle": "cycle loss", "agreement/st": "agreement"}

    def __init__(self, config: base.Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        m = self.method
        if m.lambda_sem and not config.init:
            raise UserError("init: name the run of the source segmenter, or set method.lambda_sem=0 (CycleGAN alone)")
        if m.semantic == "scores" and m.sem_confidence:
            raise UserError("method.sem_confidence: the score distance has no doubtful pixels; set it to 0")
        if config.data.jitter or config.data.blur:
            raise UserError("data.jitter, data.blur: the translation would learn them as a style; set both to 0")
        self.g_st, self.g_ts = (Generator(m.blocks, m.width, m.upsampling) for _ in range(2))
        self.d_s, self.d_t = PatchDiscriminator(m.width), PatchDiscriminator(m.width)
        self.segmenter = PSPNet(config.model, len(self.classes))  # f_s
        self.segmenter_is_trained = config.init is not None
        base.freeze([self.segmenter], True)

        self.modules = {"g_st": self.g_st, "g_ts": self.g_ts, "d_s": self.d_s, "d_t": self.d_t}
        self.modules["segmenter"] = self.segmenter
        self.optimizers = {
            "g": Adam([*self.g_st.parameters(), *self.g_ts.parameters()], lr=m.lr, betas=m.betas),
            "d": Adam([*self.d_s.parameters(), *self.d_t.parameters()], lr=m.lr, betas=m.betas),
        }
        self.pool_s, self.pool_t = ImagePool(m.pool, config.seed), ImagePool(m.pool, config.seed + 1)
        self.memory = {"pool_s": self.pool_s, "pool_t": self.pool_t}

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        assert batch.tgt_image is not None
        self.segmenter.eval()
        m = self.method
        x_s, x_t = (to_generator(image.float() / 255) for image in (batch.src_image, batch.tgt_image))  # in [-1, 1]

        # G: both generators
        base.freeze([self.d_s, self.d_t], True)
        fake_t, fake_s = self.g_st(x_s), self.g_ts(x_t)
        scalars = {
            "loss/gan_st": real_loss(self.d_t(fake_t), True),
            "loss/gan_ts": real_loss(self.d_s(fake_s), True),
            "loss/cycle": F.l1_loss(self.g_ts(fake_t), x_s) + F.l1_loss(self.g_st(fake_s), x_t),  # L_cyc
        }
        loss = scalars["loss/gan_st"] + scalars["loss/gan_ts"] + m.lambda_cyc * scalars["loss/cycle"]
        if m.lambda_idt:
            identity = F.l1_loss(self.g_st(x_t), x_t) + F.l1_loss(self.g_ts(x_s), x_s)  # L_idt
            scalars["loss/identity"] = identity
            loss = loss + m.lambda_cyc * m.lambda_idt * identity
        if lambda_sem := m.lambda_sem * self.warm_in(m.sem_start, m.sem_ramp):
            y_s = batch.src_label if m.semantic == "ground_truth" else None
            st, scalars["agreement/st"] = self.semantic(fake_t, x_s, y_s)
            ts, scalars["agreement/ts"] = self.semantic(fake_s, x_t)
            scalars["loss/semantic"] = st + ts  # L_sem
            loss = loss + lambda_sem * scalars["loss/semantic"]
        backward(loss)

        # D: tell pictures from translations
        base.freeze([self.d_s, self.d_t], False)
        for name, d, real, fake, pool in (
            ("source", self.d_s, x_s, fake_s, self.pool_s),
            ("target", self.d_t, x_t, fake_t, self.pool_t),
        ):
            on_real, on_fake = d(real), d(pool.exchange(fake))
            loss_d = 0.5 * real_loss(on_real, True) + 0.5 * real_loss(on_fake, False)
            backward(loss_d)
            scalars[f"loss/d_{name}"] = loss_d
            right = 0.5 * (on_real > 0.5).float().mean() + 0.5 * (on_fake <= 0.5).float().mean()
            scalars[f"d/accuracy_{name}"] = right
        return scalars

    def semantic(self, fake: Tensor, real: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One direction of L_sem, and the share of pixels on which f_s gives both pictures the same label."""
        with torch.no_grad():
            wanted = self.segment(real)
        scores = self.segment(fake)
        agreement = (scores.detach().max(1).indices == wanted.max(1).indices).float().mean()  # argmax, but faster
        if self.method.semantic == "scores":
            return score_distance(scores, wanted), agreement
        if label is None:
            label = confident_labels(wanted, self.method.sem_confidence)
            return (label != IGNORE).float().mean() * cross_entropy(scores, label), agreement  # mean over all pixels
        return self.source_weight * cross_entropy(scores, label), agreement  # ground truth, with unlabelled pixels

    def segment(self, image: Tensor) -> Tensor:
        """f_s: logits at the size of a picture in [-1, 1]."""
        return self.segmenter(to_unit(image), "source").main

    def predict(self, image: Tensor) -> Tensor:
        return self.segmenter.scores(to_unit(self.g_ts(to_generator(image))), "source").main

    def translate(self, image: Tensor) -> Tensor:
        return to_unit(self.g_st(to_generator(image)))

    def examples(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        rows = []
        for image, there, back in ((batch.src_image, self.g_st, self.g_ts), (batch.tgt_image, self.g_ts, self.g_st)):
            assert image is not None
            real = to_generator(image.float() / 255)
            fake = there(real)
            rows.append(tuple(to_unit(picture) for picture in (real, fake, back(fake))))
        return rows
