"""The CuPy twins of refquant's formats.

This version has none yet: `FORMATS` names the formats that have a twin here, and `refquant.quantize` with
`backend="cupy"` says so. Importing this package needs neither CuPy nor a driver.
"""

FORMATS: tuple[str, ...] = ()
