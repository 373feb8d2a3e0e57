"""The configuration of a training run, and the named configurations.

The configurations of the paper's networks depart from the paper's recipe because batches of one
leave any processor idle: larger batches, with a learning rate that warms up and decays, reach the
same errors in far less time. ``lstm_cifar10_paper`` is the paper's own recipe.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from jaxreg.disturbances import UNDISTURBED, Disturbance
from jaxreg.interpolation import Interpolation, check_interpolation
from jaxreg.metrics import LAMBDA, AngleLoss
from jaxreg.models import NETWORKS, NetworkConfig, fields
from jaxreg.models.compact import CompactConfig
from jaxreg.models.lstm import LSTMConfig
from jaxreg.models.siamese import ResNeXtConfig

Schedule = Literal["constant", "cosine"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. On a CPU it determines every bit of the result.

    Attributes:
      network: settings of the network; its ``image_size`` is the size of the images.
      data: image sources of the training pairs, see `jaxreg.data.load_images`; several are pooled.
      eval_data: image sources of the held-out pairs; empty for the same as ``data``.
      max_shift: translations are uniform on ``[-max_shift, max_shift]`` pixels.
      interpolation: interpolation that renders the moving images.
      disturbance: strengths of the disturbances of the training pairs; those of each pair are
        scaled by random factors in [0, 1]. Held-out pairs are not disturbed.
      scene_share: share of the training pairs whose images are two views of one photograph,
        rounded to whole pairs of a batch. Unless it is 0 or 1, a batch must have both kinds.
      scene_tiles: number of tiles of photographs that those pairs are drawn from.
      batch_size: pairs in a step.
      steps: number of training steps.
      learning_rate: largest learning rate of Adam.
      schedule: ``"constant"``, or ``"cosine"``, which decays to zero at the last step.
      warmup_steps: number of first steps over which the learning rate rises linearly; with
        ``"cosine"`` at most half of all steps, so that short trials need no other value.
      clip_norm: largest norm of the gradient; longer gradients are scaled down. 0 for no limit.
      average_decay: decay of the moving average of the weights and of batch normalisation's
        statistics; 0 for none. If there is an average, it is what is evaluated and used.
      translation_weight: weight of pixels against degrees in the loss (lambda of Eq. 5).
      angle_loss: ``"arc"``, the angle's error itself as in Eq. 5, or its `jaxreg.metrics.chord`.
        The compact network has a loss of its own and ignores this and ``translation_weight``.
      seed: seed of the initial weights and of all pairs.
      steps_per_dispatch: steps that run on the device without the host, and steps between two rows
        of metrics. Does not change the weights.
      eval_every: steps between evaluations on held-out pairs, besides the first and the last.
      eval_pairs: number of held-out pairs.
      save_every: steps between checkpoints.
      save_minutes: minutes without a checkpoint after which one is written too.
      init_from: weights to start from: a trained network of the same shape, as `jaxreg.load` takes
        it (the name of a shipped one, a file of `jaxreg.export`, the folder of a run), or for
        ResNeXt what `jaxreg.models.pretrained.load_pretrained` takes (``imagenet``, or the path
        of a torch state dict); empty for random weights.
    """

    network: NetworkConfig
    data: tuple[str, ...] = ("photos",)
    eval_data: tuple[str, ...] = ()
    max_shift: float = 5.0
    interpolation: Interpolation = "linear"
    disturbance: Disturbance = UNDISTURBED
    scene_share: float = 0.0
    scene_tiles: int = 2000
    batch_size: int = 64
    steps: int = 10_000
    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    clip_norm: float = 0.0
    average_decay: float = 0.0
    translation_weight: float = LAMBDA
    angle_loss: AngleLoss = "arc"
    seed: int = 0
    steps_per_dispatch: int = 50
    eval_every: int = 1000
    eval_pairs: int = 1024
    save_every: int = 1000
    save_minutes: float = 10.0
    init_from: str = ""

    def __post_init__(self) -> None:
        check_interpolation(self.interpolation)
        if self.interpolation == "nearest":
            raise ValueError("interpolation must not be nearest, which shows no part of a pixel")
        if self.angle_loss not in get_args(AngleLoss):
            raise ValueError(f"angle_loss must be arc or chord, got {self.angle_loss!r}")
        if type(self.network) not in NETWORKS.values():
            raise ValueError(
                f"network must be the settings of {', '.join(NETWORKS)}, got {self.network!r}"
            )
        if not self.data:
            raise ValueError("data must name at least one image source, such as photos")
        at_least = {"max_shift": 0.0, "warmup_steps": 0, "clip_norm": 0.0, "scene_tiles": 1}
        at_least |= dict.fromkeys(("batch_size", "steps", "steps_per_dispatch"), 1)
        at_least |= dict.fromkeys(("eval_every", "eval_pairs", "save_every"), 1)
        at_least |= {"translation_weight": 0.0, "save_minutes": 0.0, "seed": 0}
        for name, lowest in at_least.items():
            if not lowest <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.seed >= 2**32:  # a JAX key would silently drop further bits
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"average_decay must lie in [0, 1), got {self.average_decay}")
        if not 0.0 <= self.scene_share <= 1.0:
            raise ValueError(f"scene_share must lie in [0, 1], got {self.scene_share}")
        pairs = self.scene_pairs
        if (pairs == 0, pairs == self.batch_size) != (self.scene_share == 0, self.scene_share == 1):
            raise ValueError(
                f"scene_share={self.scene_share} of batch_size={self.batch_size} makes {pairs} "
                "pairs of it: give a larger batch_size, or a scene_share of 0 or 1"
            )

    @property
    def image_size(self) -> int:
        """Height and width of the images, the network's."""
        return self.network.image_size

    @property
    def scene_pairs(self) -> int:
        """The number of pairs in a batch that are two views of a photograph."""
        return round(self.scene_share * self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Convert all fields to JSON-able values; `from_dict` reads them.

        >>> TrainConfig.from_dict(CONFIGS["lstm_cifar10"].to_dict()) == CONFIGS["lstm_cifar10"]
        True
        """
        return fields.to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Build a configuration from a dictionary of `to_dict`.

        Raises:
          ValueError: a field is unknown, missing or of the wrong type.
        """
        return fields.from_dict(cls, values)

    def override(self, arguments: Sequence[str]) -> TrainConfig:
        """Return a copy with command-line arguments applied, see `jaxreg.models.fields.override`.

        >>> CONFIGS["lstm_cifar10"].override(["--steps=20", "--network.hidden=64"]).steps
        20
        """
        return fields.override(self, arguments)


# Fields that do not change the weights of a given step: a run may be continued with other values.
_HARMLESS = {"steps_per_dispatch", "eval_every", "save_every", "save_minutes"}


def changed_fields(old: TrainConfig, new: TrainConfig) -> list[str]:
    """List why a run of ``old`` cannot be continued as ``new``: ``"name: old -> new"`` each.

    With a constant learning rate, which does not depend on it, ``steps`` may change.
    """
    before, after = fields.flat_fields(old), fields.flat_fields(new)
    if type(old.network) is not type(new.network):
        kinds = {kind: name for name, kind in NETWORKS.items()}
        before |= {"network": kinds[type(old.network)]}
        after |= {"network": kinds[type(new.network)]}
    harmless = _HARMLESS | ({"steps"} if old.schedule == new.schedule == "constant" else set())
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before | after)
        if name not in harmless and before.get(name) != after.get(name)
    ]


# The outputs of the paper's LSTM are pixels and degrees. Outputs of order 1 train better, so these
# factors are the ranges of the parameters (their standard deviations are 0.58 of the ranges).
_SCALE_32 = (5.0, 5.0, 180.0)
_SCALE_96 = (15.0, 15.0, 180.0)

_LSTM = TrainConfig(
    network=LSTMConfig(output_scale=_SCALE_32),
    data=("cifar10",),
    batch_size=256,
    steps=100_000,
    learning_rate=1e-4,
    schedule="cosine",
    warmup_steps=1000,
    clip_norm=100.0,
    steps_per_dispatch=4,
    eval_every=2000,
    save_every=20_000,  # up to 3 GB, and training waits; save_minutes bounds what is lost
)

_NARROW_LSTM = dataclasses.replace(
    _LSTM,
    network=LSTMConfig(hidden=512, output_scale=_SCALE_32),
    learning_rate=5e-4,
    average_decay=0.999,
    steps_per_dispatch=20,
    save_every=2000,
)

_RESNEXT = dataclasses.replace(
    _LSTM,
    network=ResNeXtConfig(output_scale=_SCALE_32),
    batch_size=64,
    steps=50_000,
    init_from="imagenet",  # as in the paper
)
_AT_96: dict[str, Any] = {"data": ("stl10",), "max_shift": 15.0}

# Runs anywhere in minutes, without a download or a GPU.
_QUICKSTART = TrainConfig(
    network=CompactConfig(),
    batch_size=32,
    steps=600,
    learning_rate=3e-3,
    schedule="cosine",
    warmup_steps=20,
    clip_norm=1.0,
    steps_per_dispatch=20,
    eval_every=200,
    eval_pairs=512,
    save_every=200,
)

_COMPACT = dataclasses.replace(
    _QUICKSTART,
    data=("cifar10", "photos", "random"),
    disturbance=Disturbance(noise=10.0, gain=0.3, bias=20.0),
    scene_share=0.45,
    batch_size=64,
    steps=3_000,
    warmup_steps=200,
    average_decay=0.999,
    eval_every=1000,
    eval_pairs=1024,
    save_every=500,
)

CONFIGS: dict[str, TrainConfig] = {
    "quickstart": _QUICKSTART,
    "compact32": _COMPACT,
    # After the shrinking to 32x32 all is as in compact32, so a shorter training suffices.
    "compact96": dataclasses.replace(
        _COMPACT,
        network=CompactConfig(image_size=96),
        data=("stl10", "photos", "random"),
        max_shift=15.0,
        steps=1_000,
        warmup_steps=100,
        eval_every=250,
        save_every=250,
    ),
    "lstm_cifar10": _LSTM,
    "lstm_stl10": dataclasses.replace(
        _LSTM,
        network=LSTMConfig(image_size=96, output_scale=_SCALE_96),
        **_AT_96,
    ),
    "resnext_fc_cifar10": _RESNEXT,
    "resnext_lstm_cifar10": dataclasses.replace(
        _RESNEXT, network=ResNeXtConfig("lstm", output_scale=_SCALE_32)
    ),
    "resnext_fc_stl10": dataclasses.replace(
        _RESNEXT, network=ResNeXtConfig("fc", 96, _SCALE_96), **_AT_96
    ),
    "resnext_lstm_stl10": dataclasses.replace(
        _RESNEXT, network=ResNeXtConfig("lstm", 96, _SCALE_96), **_AT_96
    ),
    "lstm_cifar10_paper": dataclasses.replace(
        _LSTM,
        network=LSTMConfig(),
        batch_size=1,
        schedule="constant",
        warmup_steps=0,
        clip_norm=0.0,
        steps=1_000_000,
        steps_per_dispatch=1000,  # pairs in a row of metrics, about as in lstm_cifar10
    ),
    # A CPU core trains this network to a plateau in an hour or two.
    "lstm256_cifar10": dataclasses.replace(
        _NARROW_LSTM,
        network=LSTMConfig(hidden=256, output_scale=_SCALE_32),
        steps=14_000,
        learning_rate=1e-3,
    ),
    "lstm512_cifar10": _NARROW_LSTM,
}
