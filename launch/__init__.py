"""Starts the trainer: as several processes that train together."""
