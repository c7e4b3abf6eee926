"""The modules here import their oracles plainly: a missing one is an error in the job that is meant to have it.

A run that deselects them must not even import them.
"""


def pytest_ignore_collect(config):
    return True if "not peers" in config.option.markexpr else None


def pytest_terminal_summary(terminalreporter):
    """What the tests counted, for whoever reads the log of a run that passed."""
    found = [pair for report in terminalreporter.getreports("passed") for pair in report.user_properties]
    for title in dict.fromkeys(name for name, _ in found):
        terminalreporter.section(title)
        for name, line in sorted(found):
            if name == title:
                terminalreporter.line(line)
