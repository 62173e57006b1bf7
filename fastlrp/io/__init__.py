"""Files: models of the LRP Toolbox, arrays, and the outputs of its Caffe tool. Nothing that is read is ever run."""

from fastlrp.errors import FormatError
from fastlrp.io.arrays import read_array, write_array
from fastlrp.io.caffe import TopScores, read_raw_heatmap, read_top_scores, write_raw_heatmap, write_top_scores
from fastlrp.io.models import read_model, write_model

__all__ = [
    "FormatError",
    "TopScores",
    "read_array",
    "read_model",
    "read_raw_heatmap",
    "read_top_scores",
    "write_array",
    "write_model",
    "write_raw_heatmap",
    "write_top_scores",
]
