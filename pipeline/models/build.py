"""From sizes to a backbone."""

from pipeline.models.albef import Albef
from pipeline.models.backbone import Backbone
from pipeline.models.blip import Blip
from pipeline.models.clip import Clip
from pipeline.models.config import BackboneName, ModelConfig
from pipeline.models.meter import Meter

BACKBONES: dict[BackboneName, type[Backbone]] = {"albef": Albef, "blip": Blip, "meter": Meter, "clip": Clip}


def build_model(config: ModelConfig) -> Backbone:
    """A freshly initialised backbone; `text.vocab_size` is set."""
    return BACKBONES[config.backbone](config)
