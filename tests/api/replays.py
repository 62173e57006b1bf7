"""Explainers of small models and replays of them, for which a tape stands in for the CUDA graph."""

from __future__ import annotations

from fastlrp import Explainer
from fastlrp.run.replay import Replay
from tests.api.models import make
from tests.api.tape import Tape


def explainer_of(name, composite="epsilon_plus", **options):
    return Explainer(make(name), composite, backend="torch", **options)


def replay_of(explainer, x, count, *arguments, **options):
    return Replay(explainer._plans, x, count, *arguments, max_memory=explainer.max_memory, recording=Tape(), **options)
