"""Data sets and their tf.data pipelines.

A data set is looked for (`locate`, no TensorFlow), opened (`load_dataset`), read split by split as
uint8 arrays (`ImageData.load`), and fed to training (`training_pipeline`) and evaluation
(`evaluation_pipeline`).

Importing this package imports neither TensorFlow nor tensorflow-datasets nor scikit-learn.
"""

from kerasnet.data.augment import augment_batch, effective_augment
from kerasnet.data.dataset import ImageData, load_dataset
from kerasnet.data.network import network_reaches
from kerasnet.data.pipeline import evaluation_pipeline, steps_per_epoch, training_pipeline
from kerasnet.data.places import Located, dataset_spec, locate, search_places
from kerasnet.data.resizing import resize
from kerasnet.data.splits import Split, SplitName, joined, limit, split_validation

__all__ = [
    "ImageData",
    "Located",
    "Split",
    "SplitName",
    "augment_batch",
    "dataset_spec",
    "effective_augment",
    "evaluation_pipeline",
    "joined",
    "limit",
    "load_dataset",
    "locate",
    "network_reaches",
    "resize",
    "search_places",
    "split_validation",
    "steps_per_epoch",
    "training_pipeline",
]
