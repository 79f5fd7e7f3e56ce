"""The names of PASCAL VOC's classes. Imports nothing, so that the config's check is fast."""

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The 20 classes in VOC's order; a label is a position in this tuple."""

CLASSES_SEGMENTATION = ("background", *CLASSES)
"""The 21 classes of the masks; a mask's value is a position in this tuple, or IGNORED."""
