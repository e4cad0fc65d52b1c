"""Classes of instances with missing modalities: p(class | what is observed), exact under the fitted model.

A reader begins with ``classify.py``, which users call as ``calmrl_prob.classify``; ``choice.py`` says what is chosen on
held-out labels, ``classifier.py`` is what comes back, ``linear_gaussian/mixture/labelled.py`` has the closed forms.
"""

from __future__ import annotations

from calmrl_prob.classification.classifier import Classifier
from calmrl_prob.classification.classify import classify
from calmrl_prob.classification.options import ClassifyOptions

__all__ = ["Classifier", "ClassifyOptions", "classify"]
