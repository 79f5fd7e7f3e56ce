"""Linear probes with several tests, of several batches each, so that there is something to interrupt in all of them:
`python -m tests.evaluate.small_probes …`.
"""

from uic_core.evaluate import linear_probe, probes, ten_crop

if __name__ == "__main__":
    ten_crop._IMAGES = 2
    probes.SNAPSHOT_BYTES = 2 * 4 * 4 * (9600 + 2304 + 2)  # heads of two epochs
    linear_probe.main()
