"""Photos, COCO-format folders, generated pictures, and the sampling of training patches and tiles."""
