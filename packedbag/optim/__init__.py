"""Optimizers that train packed bits from a few bits of integer state, with no fp32 latent weights."""

from packedbag.optim.accumulated_steps import AccumulatedSteps
from packedbag.optim.bit_flip import BitFlip
from packedbag.optim.counter_sgd import CounterSGD
from packedbag.optim.sign_momentum import SignMomentum
from packedbag.optim.split import dense_parameters, packed_parameters
from packedbag.optim.vote_flip import VoteFlip

__all__ = [
    "AccumulatedSteps",
    "BitFlip",
    "CounterSGD",
    "SignMomentum",
    "VoteFlip",
    "dense_parameters",
    "packed_parameters",
]
