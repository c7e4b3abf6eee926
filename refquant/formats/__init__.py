"""The formats: the NumPy reference, a file a family."""

from refquant.formats import codebook as codebook  # importing a family registers its formats
from refquant.formats import ggml_float as ggml_float
from refquant.formats import ggml_fp4 as ggml_fp4
from refquant.formats import ggml_iq1 as ggml_iq1
from refquant.formats import ggml_iq2 as ggml_iq2
from refquant.formats import ggml_iq3 as ggml_iq3
from refquant.formats import ggml_iq4 as ggml_iq4
from refquant.formats import ggml_k2 as ggml_k2
from refquant.formats import ggml_k3 as ggml_k3
from refquant.formats import ggml_k6 as ggml_k6
from refquant.formats import ggml_k8 as ggml_k8
from refquant.formats import ggml_k45 as ggml_k45
from refquant.formats import ggml_simple as ggml_simple
from refquant.formats import ggml_ternary as ggml_ternary
from refquant.formats import integer as integer
from refquant.formats import llm_int8 as llm_int8
