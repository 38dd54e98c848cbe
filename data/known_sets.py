"""Published data sets, known by their sizes."""

CLASSIFICATION_SETS = {
    # classes, training and test images
    (1000, 1_281_167, 50_000): "ImageNet-1k",
    (10, 50_000, 10_000): "CIFAR-10",
    (100, 50_000, 10_000): "CIFAR-100",
    (102, 2_040, 6_149): "Flowers-102",
    (196, 8_144, 8_041): "Stanford Cars",
    (8142, 437_513, 24_426): "iNaturalist 2018",
    (1010, 265_213, 3_030): "iNaturalist 2019",
}
SALIENCY_SETS = {"ECSSD": 1000, "DUTS-TE": 5019, "DUT-OMRON": 5168}
"""Images."""
VOC12_SEGMENTATION_VAL = 1449
"""Images."""
DISCOVERY_SETS = {
    # layout, whether a list of images is given, images
    "VOC07 trainval": ("voc", False, 5011),
    "VOC12 trainval": ("voc", False, 11540),
    "COCO20k": ("coco", True, 19817),
}
KEYPOINT_SETS = {
    # categories, pairs with a common point
    (18, 12_234): "SPair-71k test",
}
TRACKING_SETS = {
    # videos, name of the file
    (30, "tapvid_davis"): "TAP-Vid DAVIS",
    (50, "tapvid_rgb_stacking"): "TAP-Vid RGB-Stacking",
}
JHMDB_TEST = 268
"""Videos of split 1's test list."""
VIP_VAL = 50
"""Videos."""
