"""Detection: Faster R-CNN on a residual trunk, trained by the one loop; its measures and predictions."""
