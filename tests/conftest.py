"""Hypothesis profiles: `default` keeps a run short, `thorough` (--hypothesis-profile=thorough) is for CI."""

from hypothesis import HealthCheck, settings

settings.register_profile("default", max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=100)
settings.load_profile("default")
