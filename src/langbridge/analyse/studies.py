"""The studies by name."""

from langbridge.analyse.neutrality import Neutrality
from langbridge.analyse.study import Study
from langbridge.analyse.told import Told

STUDIES: dict[str, type[Study]] = {kind.name: kind for kind in (Neutrality, Told)}
