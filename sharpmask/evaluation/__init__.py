"""Average recall of proposals (COCO protocol, class-agnostic) and the per-patch metrics used in training."""

from .recall import (
    CURVE_COUNTS,
    PAPER_ROWS,
    SIZES,
    MaskMetrics,
    PatchMetrics,
    Recall,
    average_recall,
    load_results,
    mask_iou,
    mask_metrics,
    plot_recall,
    recall_table,
    score_accuracy,
)

__all__ = [
    "CURVE_COUNTS",
    "PAPER_ROWS",
    "SIZES",
    "MaskMetrics",
    "PatchMetrics",
    "Recall",
    "average_recall",
    "load_results",
    "mask_iou",
    "mask_metrics",
    "plot_recall",
    "recall_table",
    "score_accuracy",
]
