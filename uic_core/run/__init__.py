"""What a stage needs of its process: devices, CPUs, ranks, randomness, signals, saved state, metrics."""
