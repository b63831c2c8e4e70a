"""Distributed GAN training on TensorFlow: right, fast, and never loses a run."""
