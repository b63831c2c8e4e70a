"""How good samples are, measured on features of them.

`metrics` has the table of what is measured, `classifier` and `inception` make
features of images, and `evaluator` puts a generator's and the data's beside
each other.
"""
