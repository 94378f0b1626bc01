"""A segmentation service over messages: images in, counted and outlined objects out."""
