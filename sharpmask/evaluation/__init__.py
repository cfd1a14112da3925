"""Average recall of proposals (COCO's protocol, class-agnostic), and metrics of single patches."""

from .patches import MaskMetrics, PatchMetrics, mask_iou, mask_metrics, resize_masks, score_accuracy
from .recall import CURVE_COUNTS, SIZES, Recall, average_recall
from .report import PAPER_ROWS, plot_recall, recall_table
from .results import load_results
from .validator import Validator

__all__ = [
    "CURVE_COUNTS",
    "PAPER_ROWS",
    "SIZES",
    "MaskMetrics",
    "PatchMetrics",
    "Recall",
    "Validator",
    "average_recall",
    "load_results",
    "mask_iou",
    "mask_metrics",
    "plot_recall",
    "recall_table",
    "resize_masks",
    "score_accuracy",
]
