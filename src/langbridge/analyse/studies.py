"""The studies by name."""

from langbridge.analyse.budget import Budget
from langbridge.analyse.encoder_size import EncoderSize
from langbridge.analyse.expressivity import Expressivity
from langbridge.analyse.freezing import Freezing
from langbridge.analyse.gap import Gap
from langbridge.analyse.neutrality import Neutrality
from langbridge.analyse.study import Study
from langbridge.analyse.told import Told
from langbridge.analyse.training_data import TrainingData

STUDIES: dict[str, type[Study]] = {
    kind.name: kind for kind in (Neutrality, Told, EncoderSize, Freezing, Expressivity, Budget, TrainingData, Gap)
}
