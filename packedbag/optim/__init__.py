"""Optimizers that train packed bits from a few bits of integer state, with no fp32 latent weights."""

from packedbag.optim.bit_flip import BitFlip
from packedbag.optim.counter_sgd import CounterSGD
from packedbag.optim.sign_momentum import SignMomentum
from packedbag.optim.split import dense_parameters, packed_parameters

__all__ = ["BitFlip", "CounterSGD", "SignMomentum", "dense_parameters", "packed_parameters"]
