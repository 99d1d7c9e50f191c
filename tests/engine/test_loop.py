"""NaN guard, logging, and where a run continues."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from da.config import UserError
from da.engine import checkpoint
from da.engine.log import RunLog, duration
from da.engine.loop import Loop, RunConfig, Window
from da.engine.stepper import ScheduleConfig, Stepper
from da.engine.stop import COME_BACK, TIME_IS_UP, Stopped


class Batch:
    def __init__(self, number: int) -> None:
        self.number, self.names = number, [f"image_{number}"]

    def to(self, device):
        return self


class Method:
    """Loss is not a number in the update that sees batch `bad`."""

    headline = {"loss/fit": "loss"}

    def __init__(self, bad: int | None = None) -> None:
        self.bad, self.layer = bad, nn.Linear(1, 1)
        self.modules = {"layer": self.layer}
        self.optimizers = {"layer": torch.optim.SGD(self.layer.parameters(), lr=0.1)}
        self.memory = {}

    def source_weights(self, batches):
        return [torch.ones(()) for _ in batches]

    target_weights = source_weights

    def step(self, batch, backward):
        loss = self.layer(torch.ones(1, 1)).square().mean()
        if batch.number == self.bad:
            loss = loss * float("nan")
        backward(loss)
        return {"loss/fine": torch.ones(()), "loss/fit": loss}

    def predict(self, image):
        return image


def loop(folder, method, poll=lambda: None, **settings) -> Loop:
    folder.mkdir(exist_ok=True)
    settings = {"steps": 10, "log_every": 4, "val_every": 5, "save_every": 3} | settings
    config = RunConfig(**settings)
    stepper = Stepper(method, torch.device("cpu"), seed=0, steps=config.steps, schedule=ScheduleConfig())

    def load(state, source):
        method.layer.load_state_dict(state["modules"]["layer"])

    scores = iter(range(100))
    return Loop(
        stepper, config, folder, lambda step, limit: {"val/mIoU": next(scores)}, lambda *_: None, {}, load, poll
    )


def batches(start):
    return iter([Batch(n) for n in range(start, 100)])


def test_nan_guard_names_step_loss_and_files_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError) as caught:
        loop(tmp_path, Method(bad=7)).fit(batches)
    text = str(caught.value)
    assert "step 8: loss/fit is not finite (images of process 0: image_7)" in text
    assert str(tmp_path / "checkpoints/last.pt") in text
    state = checkpoint.load(tmp_path / "checkpoints/last.pt")
    assert state["step"] == 6
    assert all(torch.isfinite(v).all() for v in state["modules"]["layer"].values())


def test_nan_guard_names_every_file_of_the_batch():
    window, names = Window(), [f"source_{n}" for n in range(16)] + [f"target_{n}" for n in range(16)]
    window.add(1, names, {"loss/a": torch.tensor(float("nan"))})
    with pytest.raises(UserError, match=f"images of process 0: {', '.join(names)}\\)"):
        window.settle(None)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    method = Method()
    run = loop(tmp_path, method)
    with torch.no_grad():
        method.layer.weight.fill_(float("inf"))
    with pytest.raises(UserError, match="weights of layer are not finite"):
        run._save(3)
    assert not (tmp_path / "checkpoints").exists()


def test_files_of_a_finished_run(tmp_path):
    loop(tmp_path, Method(), keep_every=6).fit(batches)
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last.pt", "previous.pt", "best.pt", "step_00000006.pt"}
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/fit" in line] == [4, 8, 10]
    assert [line["step"] for line in lines if "val/mIoU" in line] == [5, 10]
    assert checkpoint.load(tmp_path / "checkpoints/best.pt")["step"] == 10


def test_networks_are_kept_only_when_saved():
    assert RunConfig(steps=10, save_every=3, keep_every=6).keep_every == 6
    with pytest.raises(ValueError, match=r"keep_every\n.*not a multiple of run.save_every \(3\)"):
        RunConfig(steps=10, save_every=3, keep_every=5)


def test_a_network_that_could_not_be_kept_is_kept_by_the_next_start(tmp_path, monkeypatch):
    """The disk is full at step 6, before or after that step is there to go on from."""
    with monkeypatch.context() as full:
        save = checkpoint.save

        def refuse(path, state, confirm):
            if path.name == "step_00000006.pt":
                raise UserError("no space left")
            save(path, state, confirm)

        full.setattr(checkpoint, "save", refuse)
        with pytest.raises(UserError, match="no space left"):
            loop(tmp_path, Method(), keep_every=6).fit(batches)
    loop(tmp_path, Method(), keep_every=6).fit(batches)
    assert checkpoint.load(tmp_path / "checkpoints/step_00000006.pt")["step"] == 6


def test_a_time_limit_that_lets_nothing_be_done_is_an_error_and_no_endless_loop(tmp_path):
    """Stopped before the validation of step 5, and again in it."""
    polls = iter(range(100))

    def time_is_up_at(poll):
        def ask():
            if next(polls) == poll:
                raise Stopped(TIME_IS_UP)

        return ask

    with pytest.raises(Stopped) as stopped:
        loop(tmp_path, Method(), time_is_up_at(4)).fit(batches)
    assert stopped.value.code == COME_BACK
    with pytest.raises(UserError, match="run.time_limit: 1m was over before anything was done beyond step 5"):
        loop(tmp_path, Method(), time_is_up_at(5), time_limit="1m").fit(batches)
    with pytest.raises(Stopped):  # SIGUSR1, as of another job that takes the place, may come at any time
        loop(tmp_path, Method(), lambda: (_ for _ in ()).throw(Stopped(COME_BACK)), time_limit="1m").fit(batches)
    loop(tmp_path, Method(), time_limit="1m").fit(batches)
    assert checkpoint.load(tmp_path / "checkpoints/last.pt")["step"] == 10


def test_continues_with_the_window_it_had(tmp_path):
    straight = tmp_path / "straight"
    torch.manual_seed(0)
    loop(straight, Method()).fit(batches)
    torch.manual_seed(0)
    with pytest.raises(UserError):
        loop(tmp_path / "cut", Method(bad=7)).fit(batches)  # last checkpoint: step 6, between two log lines
    run = loop(tmp_path / "cut", Method())
    assert run.start == 6
    run.fit(batches)

    def losses(folder):
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(x["step"], x["loss/fit"]) for x in lines if "loss/fit" in x]

    assert losses(straight) == losses(tmp_path / "cut")


def test_log_drops_what_lies_beyond_the_checkpoint(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "a": 1}\n{"step": 5, "a": 1}\n{"step": 6, "a"')
    RunLog(tmp_path, start=4).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 2, "a": 1}\n'


@pytest.mark.parametrize("ahead", [0, 3600])
def test_a_torn_tensorboard_file_loses_and_doubles_nothing(tmp_path, ahead):
    """`ahead`: seconds by which the clock of the machine before was ahead of this one's."""
    first = RunLog(tmp_path, start=0)
    for step in (1, 2, 3):
        first.scalars(step, {"a": step})
    first.flush()  # as before a checkpoint
    for step in (4, 5):
        first.scalars(step, {"a": step})
    first.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-5])  # a kill in the middle of a record
    opened = events.name.split(".")[3]
    events.rename(events.with_name(events.name.replace(opened, str(int(opened) + ahead))))
    second = RunLog(tmp_path, start=3)
    for step in (4, 5, 6):
        second.scalars(step, {"a": 10 * step})
    second.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("a")] == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]


def test_window_mean_is_over_updates():
    window = Window()
    for step in range(3):
        window.add(step, [], {"loss/a": torch.tensor(float(step))})
    window.settle(None)
    assert window.mean() == {"loss/a": 1.0}


def test_durations_read_well():
    assert [duration(s) for s in (5, 65, 3725)] == ["0m05s", "1m05s", "1h02m"]
