"""Calibration data: files, texts and tensors from strangers, and windows of samples made of them."""
