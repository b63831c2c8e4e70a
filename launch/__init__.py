"""Starts the trainer: on this machine, in Docker or on rented machines."""
