"""Distributed GAN training on TensorFlow that never loses a run."""
