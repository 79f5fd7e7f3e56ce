"""Process-level parts of a stage: devices, CPUs, ranks, randomness, signals, saved state, metrics."""
