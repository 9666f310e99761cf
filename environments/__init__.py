"""Adapters for environments, and recorders that make RLDS data from them."""

from gatokit.environments.adapter import Action, Adapter, NoExpertError, Observation, Transition
from gatokit.environments.registry import families, make, tasks

__all__ = ["Action", "Adapter", "NoExpertError", "Observation", "Transition", "families", "make", "tasks"]
