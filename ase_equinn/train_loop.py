"""Lightning drives a training run: the loop, devices and gradient clipping are its, everything else is the run's."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

from .train_checkpoint import save_checkpoint
from .train_module import Run


def fit(
    run: Run, checkpoint_path: Path, *, extra: dict | None = None, after_step: Callable[[Run], None] = lambda run: None
):
    """Drives the run to its end with Lightning: all epochs, the time budget, early stopping or Ctrl-C.

    A checkpoint is written after each complete epoch. `after_step` is called after every step (progress bar, tests).
    """
    epochs = None if run.clock.budget is not None else run.config.training.epochs - run.epoch
    if run.stopped or (epochs is not None and epochs <= 0):
        return
    from lightning.pytorch import Trainer

    with _quiet(), _ctrl_c(run):
        trainer = Trainer(
            accelerator="gpu" if run.potential.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=-1 if epochs is None else epochs,
            gradient_clip_val=run.config.training.gradient_clip or None,
            barebones=True,
        )
        trainer.fit(_adapter(run, checkpoint_path, extra or {}, after_step), run.batches)


def _adapter(run: Run, checkpoint_path: Path, extra: dict, after_step: Callable[[Run], None]):
    from lightning.pytorch import LightningModule

    class Adapter(LightningModule):
        def __init__(self):
            super().__init__()
            self.potential = run.potential

        def configure_optimizers(self):
            return run.optimizer

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch.to(device)

        def on_train_epoch_start(self):
            run.begin_epoch()
            self.complete = False

        def on_train_batch_start(self, batch, batch_idx):
            run.before_step()

        def training_step(self, batch, batch_idx):
            return run.loss(batch)

        def backward(self, loss):
            loss.backward(inputs=run.fitted)  # not by the edge vectors, leaves as well, where nothing is to be learned

        def on_train_batch_end(self, outputs, batch, batch_idx):
            run.after_step()
            self.complete = batch_idx + 1 == len(run.batches)
            after_step(run)
            if run.stopped or run.interrupted:
                self.trainer.should_stop = True

        def on_train_epoch_end(self):
            if not self.complete and run.interrupted:
                return
            run.end_epoch()
            if run.stopped:
                self.trainer.should_stop = True
            if self.complete:
                checkpoint = run.checkpoint()
                save_checkpoint(checkpoint_path, checkpoint._replace(state=checkpoint.state | extra))

    return Adapter()


@contextmanager
def _quiet():
    """Lightning's advice and device messages are left out; its errors are not."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


@contextmanager
def _ctrl_c(run: Run):
    """The first Ctrl-C ends the run after the present step, the second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(signum, frame):
        run.interrupted = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
