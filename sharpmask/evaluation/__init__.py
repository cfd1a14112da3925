"""Average recall of proposals (COCO's protocol, class-agnostic), and metrics of single patches."""

from .bootstrap import Figures, difference, figures
from .breakdown import By, break_down, group_names
from .gallery import write_gallery
from .matching import SIZES, Kind, Matches, match_objects
from .patches import MaskMetrics, PatchMetrics, mask_iou, mask_metrics, resize_masks, score_accuracy
from .recall import CURVE_COUNTS, Recall, average_recall, recall_of
from .report import PAPER_ROWS, breakdown_table, difference_table, plot_recall, recall_table
from .results import load_results
from .validator import Validator

__all__ = [
    "CURVE_COUNTS",
    "PAPER_ROWS",
    "SIZES",
    "By",
    "Figures",
    "Kind",
    "MaskMetrics",
    "Matches",
    "PatchMetrics",
    "Recall",
    "Validator",
    "average_recall",
    "break_down",
    "breakdown_table",
    "difference",
    "difference_table",
    "figures",
    "group_names",
    "load_results",
    "mask_iou",
    "mask_metrics",
    "match_objects",
    "plot_recall",
    "recall_of",
    "recall_table",
    "resize_masks",
    "score_accuracy",
    "write_gallery",
]
