"""Finds out how many channels a model's images have, and whether its image processor agrees with it.

A model with one channel (radiographs, handwriting) fails on RGB images, or broadcasts them silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from finetune_trainer.data.images import MODES
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import pluralize
from finetune_trainer.hub import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CHANNEL_FIELDS = ("num_channels", "in_channels", "in_chans", "input_channels")
VISION_CONFIGS = ("vision_config", "image_config", "backbone_config")
DEFAULT_CHANNELS = 3
PROBE_SIZE = (64, 64)


def image_channels(config: PretrainedConfig, image_processor: Any, source: str) -> int:
    """The number of channels of the images that a model takes: 1 (grey) or 3 (RGB).

    Args:
        config: the model's config.
        image_processor: its image processor.
        source: `model.source`, for the error message.

    Raises:
        UserError: it is another number, or the image processor makes another number of channels of such images.
    """
    channels = _model_channels(config)
    if channels not in MODES:
        raise UserError(
            f"model.source: {source}: its config has {pluralize(channels, 'image channel')}; supported are 1 (grey) "
            "and 3 (RGB)"
        )
    processed = _processed_channels(image_processor, channels, source)
    if processed not in (None, channels):
        raise UserError(
            f"model.source: {source}: its config has {pluralize(channels, 'image channel')}, but its image processor "
            f"makes {processed}{_explain(image_processor, channels)}; correct config.json or preprocessor_config.json"
        )
    return channels


def _model_channels(config: Any) -> int:
    parts = [getattr(config, name, None) for name in VISION_CONFIGS]
    for part in (*filter(None, parts), config):
        arguments = getattr(part, "model_args", None) or {}  # of a timm model
        values = [*(getattr(part, name, None) for name in CHANNEL_FIELDS), *map(arguments.get, CHANNEL_FIELDS)]
        if found := next((value for value in values if isinstance(value, int)), None):
            return found
    return DEFAULT_CHANNELS


def _processed_channels(image_processor: Any, channels: int, source: str) -> int | None:
    """The number of channels that the processor makes of an image; None if its output is not laid out as an image."""
    try:
        output: Mapping[str, Any] = image_processor([Image.new(MODES[channels], PROBE_SIZE)], return_tensors="pt")
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"model.source: {source}: its config has {pluralize(channels, 'image channel')}, but its image processor "
            f"rejects such images{_explain(image_processor, channels)}: {first_line(error)}"
        ) from error
    pixels = output.get("pixel_values")
    return int(pixels.shape[1]) if pixels is not None and pixels.ndim == 4 else None


def _explain(image_processor: Any, channels: int) -> str:
    """The settings that may be the cause."""
    mean = getattr(image_processor, "image_mean", None)
    settings = []
    if getattr(image_processor, "do_convert_rgb", None) and channels != DEFAULT_CHANNELS:
        settings.append("do_convert_rgb: true")
    if isinstance(mean, list | tuple) and len(mean) not in (1, channels):
        settings.append(f"image_mean with {len(mean)} values")
    return f" ({', '.join(settings)})" if settings else ""
