"""The settings of one run: a section from each room, and the method's own."""

from typing import Any

from pydantic import model_validator

from da.config import Section, UserError
from da.data.loaders import DataConfig
from da.engine.loop import RunConfig
from da.evaluation.infer import EvalConfig
from da.nets.pspnet import PSPNetConfig
from da.supervised import LossConfig


class Experiment(Section):
    """Everything a run is made of. `method` is checked against the trainer's own `Config`."""

    trainer: str
    experiment: str  # folder of the run: runs/<experiment>/<name>-seed<seed>
    name: str
    seed: int = 0
    init: str | None = None  # run folder or checkpoint whose segmenter the run starts from
    model: PSPNetConfig
    data: DataConfig
    run: RunConfig
    eval: EvalConfig = EvalConfig()
    loss: LossConfig = LossConfig()
    method: Any

    @model_validator(mode="after")
    def _subset_is_known(self) -> "Experiment":
        """`eval.classes` names a subset of `data.classes`; None becomes all of them."""
        try:
            self.data.classes.subset(self.eval.classes)
        except UserError as error:
            raise ValueError(str(error)) from error
        if self.eval.classes is None:  # stored with every number
            object.__setattr__(self, "eval", self.eval.model_copy(update={"classes": len(self.data.classes)}))
        return self

    @model_validator(mode="after")
    def _loss_fits(self) -> "Experiment":
        given, classes = self.loss.class_weights, self.data.classes
        if isinstance(given, tuple) and len(given) != len(classes):
            raise ValueError(f"loss.class_weights: {len(given)} weights; {classes.name} has {len(classes)} classes")
        if self.loss.lambda_presence and not self.model.presence:
            raise ValueError("loss.lambda_presence: needs model.presence=true; add it, or set to 0")
        return self

    def require_aux(self, *weights: str) -> None:
        """
        Raises:
            UserError: one of the method's `weights` is for the auxiliary head, and the model has none.
        """
        found = [f"method.{name}" for name in weights if getattr(self.method, name)]
        if found and not self.model.aux:
            raise UserError(f"{', '.join(found)}: needs model.aux=true; add it, or set to 0")
