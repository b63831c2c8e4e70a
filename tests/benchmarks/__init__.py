"""What is measured, not asserted: images a second, milliseconds, and ratios.

The commands are `table`, `optimizers`, `normalization` and `saves`.
"""
