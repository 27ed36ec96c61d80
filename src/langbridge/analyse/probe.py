"""Can a linear classifier tell which language a vector came from? Cross-validated, no sentence on both sides."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from langbridge.evaluate.statistics import mean_interval

FOLDS = 5


def language_probe(
    vectors: NDArray[np.float64], languages: NDArray[np.int64], sentences: NDArray[np.int64]
) -> tuple[float, list[float]]:
    """Return the accuracy of a linear classifier of languages, and its 95% interval over sentences.

    vectors (rows, dim); languages and sentences (rows,): translations of one sentence share its number and are never
    in both training and test part.
    """
    folds = GroupKFold(min(FOLDS, len(np.unique(sentences))))
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0))
    found = cross_val_predict(classifier, vectors, languages, groups=sentences, cv=folds)
    right = (found == languages).astype(np.float64)
    by_sentence = np.array([right[sentences == number].mean() for number in np.unique(sentences)])
    return float(right.mean()), mean_interval(by_sentence)
