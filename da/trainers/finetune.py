"""Transfer fine-tuning: a trained segmenter or encoder goes on with the labels of other data, perhaps in other classes.

Heads first, then everything: Kumar, Raghunathan, Jones, Ma, Liang: "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", ICLR 2022. L2-SP: Li, Grandvalet, Davoine: "Explicit Inductive Bias for Transfer
Learning with Convolutional Networks", ICML 2018. Segmenter and loss: PSPNet, Zhao et al., CVPR 2017.

    python -m da train experiments/mini/finetune.yaml

Symbols: x, y image and label; f the segmenter, w its weights; w_S those that came from `init` or `model.weights`,
w_S^0 what they were there, w_new the others; t the number of the update.

    L = CE(f(x), y) + lambda_aux CE(f_aux(x), y)                                      (PSPNet, section 3.3)
    Omega(w) = alpha / 2 |w_S - w_S^0|^2 + beta / 2 |w_new|^2                         (L2-SP, section 3)

    t < head_steps     the heads minimise L (+ Omega); the encoder stays as it is, and so do its batch statistics
    t >= head_steps    all minimise it; the encoder's rates rise linearly over `warmup` updates

Omega takes the place of weight decay (`da.nets.optimizers.TowardsStart`). The schedule is one curve over both stages,
and the heads go on as they were. What `model.freeze` or `model.frozen_stages` names stays as it was loaded in both.

Differs from the authors' code: the second stage of Kumar et al. has a schedule and an optimiser of its own. L2-SP was
published for classifiers, and can spare norms and biases there.
"""

from collections.abc import Set
from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from da.config import UserError
from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.nets.optimizers import L2SP, SegmenterSGD, TowardsStart
from da.nets.pspnet import PSPNet
from da.trainers import base


class Config(SegmenterSGD):
    lr: NonNegativeFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4  # without effect where `l2_sp` is on
    lambda_aux: NonNegativeFloat = 0.4  # weight of the auxiliary head's loss
    head_steps: NonNegativeInt = 0  # updates of the heads alone, before the others; `run.steps` or more: all
    warmup: NonNegativeInt = 0  # updates over which the encoder's rates rise, once it trains
    from_scratch: bool = False  # True: that all weights begin at random is meant, as for a baseline
    l2_sp: L2SP | None = None  # `l2_sp={}` takes the authors' alpha and beta


class Trainer(base.Trainer):
    uses_target: ClassVar[bool] = False
    takes_other_classes: ClassVar[bool] = True

    def __init__(self, config: base.Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        m = self.method
        config.require_aux("lambda_aux")
        self.segmenter = PSPNet(config.model, len(self.classes))
        self.encoder_weights, heads = self.segmenter.parameter_groups()  # those that train
        if m.head_steps and not heads:
            raise UserError("method.head_steps: model.freeze leaves no head to train; set it to 0")
        optimizer = m.build(self.segmenter)
        for group in optimizer.param_groups:
            if group["name"].startswith("backbone"):
                group |= {"joins": m.head_steps, "warmup": m.warmup}  # the engine's schedule reads them
        self.modules = {"segmenter": self.segmenter}
        self.optimizers = {"segmenter": optimizer}
        self.towards_start: TowardsStart | None = None
        if m.l2_sp is not None:
            self.towards_start = self.memory["towards_start"] = TowardsStart(m.l2_sp, self.segmenter, optimizer)

    def started(self, fresh: Set[str]) -> None:
        """
        Raises:
            UserError: all weights are random.
        """
        if not self.method.from_scratch and fresh >= self.segmenter.state_dict().keys():
            raise UserError(
                "init: nothing to start from; name a run or a checkpoint, or an encoder in model.weights (for a "
                "baseline without: method.from_scratch=true)"
            )
        if self.towards_start is not None:
            self.towards_start.begin(fresh)

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        self.hold_encoder(self.iteration < self.method.head_steps)
        x, y = self.view(batch.src_image), batch.src_label  # (B, 3, H, W) in [0, 1], (B, H, W) trainIds
        loss, scalars = self.segmentation_loss(self.segmenter.scores(x, "source"), y, self.method.lambda_aux)
        backward(loss)  # L; Omega acts in the optimiser
        return scalars

    def hold_encoder(self, held: bool) -> None:
        """Stop (or let) gradients reach the encoder. While held it keeps its batch statistics, and drops no path."""
        if held:
            self.segmenter.backbone.eval()  # until the engine says `train()`, before each update
        for parameter in self.encoder_weights:
            parameter.requires_grad_(not held)

    def predict(self, image: Tensor) -> Tensor:
        return self.segmenter.scores(image, "source").main  # the only domain whose statistics were seen
