"""The studies by name."""

from langbridge.analyse.budget import Budget
from langbridge.analyse.encoder_size import EncoderSize
from langbridge.analyse.expressivity import Expressivity
from langbridge.analyse.freezing import Freezing
from langbridge.analyse.gain import Gain
from langbridge.analyse.gap import Gap
from langbridge.analyse.neutrality import Neutrality
from langbridge.analyse.study import Study
from langbridge.analyse.told import Told
from langbridge.analyse.training_data import TrainingData
from langbridge.analyse.unseen import Unseen

STUDIES: dict[str, type[Study]] = {
    kind.name: kind
    for kind in (Neutrality, Gain, EncoderSize, Freezing, Expressivity, Unseen, Budget, TrainingData, Told, Gap)
}
