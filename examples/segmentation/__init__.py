"""A segmentation service whose parts talk by messages: images in, counted and outlined objects out."""
