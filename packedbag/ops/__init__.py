"""torch's side: operator schemas, their autograd, and the functions users call."""
