"""Speed and memory beside peers, as ratios: `make bench`, or a part, `make bench-boundary`."""
