"""Training of the networks: data, simulated clicks, and the loops."""
