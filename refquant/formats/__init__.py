"""The formats: the NumPy reference, a file a family."""

from refquant.formats import integer as integer  # importing a family registers its formats
