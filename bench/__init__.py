"""Speed and memory relative to reference code: `make bench`, or one part, `make bench-boundary`."""
