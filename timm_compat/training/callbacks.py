"""Callbacks of a training."""

from collections.abc import Mapping


class Callback:
    """Called by ``fit`` while it trains; a subclass overrides the methods that it needs, the others do nothing.

    Names are those of Transformers' ``TrainerCallback``. Under ``accelerate launch`` every process calls them. Random
    numbers that a callback draws do not change the training. Its state is not part of a checkpoint: after ``resume`` it
    is called for the remaining steps only. An exception ends the training and reaches the caller of ``fit``.

    Example:
        >>> class Steps(tc.Callback):
        ...     def on_train_begin(self):
        ...         self.steps, self.losses = 0, []
        ...     def on_step_end(self, step):
        ...         self.steps = step
        ...     def on_epoch_end(self, epoch, metrics):
        ...         self.losses.append(metrics["loss"])
        >>> images = tc.data.load_digits("train").subset(range(100))
        >>> space = tc.CompatSpace(8, images.class_names, ["common_classes"])
        >>> extractor = tc.create_extractor("test_vit", space, in_chans=1, img_size=16)
        >>> member = tc.Member("a", extractor, tc.TaskHead(space, images.class_names), images)
        >>> told = Steps()
        >>> config = tc.TrainConfig(epochs=2, batch_size=50)
        >>> result = tc.fit(space, [member], config, callbacks=[told], progress=None)
        >>> told.steps, told.losses == [record["loss"] for record in result.history]
        (4, True)
    """

    def on_train_begin(self) -> None:
        """All parts are on their device; frozen backbones have not seen their images yet."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before the first step of an epoch, counted from 1; again if a resumed run continues within it."""

    def on_step_end(self, step: int) -> None:
        """After a step of the optimiser.

        Args:
            step: steps so far, including those before a resumption.
        """

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """After an epoch, in evaluation mode, with the averaged weights if there are any.

        Args:
            epoch: counted from 1.
            metrics: the epoch's record in the history: mean losses, learning rate, seconds, what ``validate`` returned.
        """

    def on_train_end(self) -> None:
        """The parts hold the result: the last weights, the averaged ones, or those of the best epoch."""
