"""`import refquant` loads NumPy and nothing heavier. Its time is measured by benchmarks/import_time.py."""

import subprocess
import sys

HEAVY = {
    "cupy",
    "hypothesis",
    "jinja2",
    "matplotlib",
    "numba",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
}

# Prints the third-party packages that a statement loads beyond those that NumPy does.
PROBE = """
import sys, numpy
before = set(sys.modules)
{statement}
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(loaded - sys.stdlib_module_names - {{"numpy"}}))
"""


def packages_loaded_by(statement):
    probe = PROBE.format(statement=statement)
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_refquant_loads_nothing_but_itself_and_numpy():
    assert packages_loaded_by("import refquant") == {"refquant"}


def test_quantizing_loads_nothing_more():
    statement = "import refquant; refquant.quantize(numpy.ones(64), 'nf4-b64-dq').dequantize()"
    assert packages_loaded_by(statement) == {"refquant"}


def test_a_heavy_import_is_noticed():
    assert packages_loaded_by("import refquant, rich") & HEAVY == {"rich"}
    assert "tokenizers" in packages_loaded_by("import refquant; refquant.load_model; import tokenizers")


def test_every_public_name_is_there():
    import refquant

    for name in refquant.__all__:
        assert getattr(refquant, name) is not None, name


def test_the_conformance_kit_says_which_extra_it_needs():
    hidden = "import sys; sys.modules['hypothesis'] = None\nimport refquant.conformance"
    result = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert "MissingExtraError: the conformance kit needs hypothesis, which is not installed" in result.stderr
    assert "pip install 'refquant[conform]'" in result.stderr
