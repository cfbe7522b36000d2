"""Programs that `compare_post_training.py` runs by the Python of another environment: tensors in, tensors out."""
