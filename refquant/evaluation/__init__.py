"""What a quantization costs: perplexity, divergence and the benchmark table."""

from refquant.evaluation.benchmark import DEFAULT_SCHEMES, Benchmark, Row, benchmark
from refquant.evaluation.divergence import Divergence, divergence
from refquant.evaluation.llama_base_file import LlamaBase, read_llama_base
from refquant.evaluation.llama_kl import LlamaKl, llama_kl, write_llama_base
from refquant.evaluation.perplexity import Perplexity, perplexity
from refquant.evaluation.quantized_model import Cost, quantize_model
from refquant.models.corpus import split_documents

__all__ = [
    "perplexity",
    "divergence",
    "benchmark",
    "quantize_model",
    "split_documents",
    "read_llama_base",
    "write_llama_base",
    "llama_kl",
    "LlamaBase",
    "LlamaKl",
    "Perplexity",
    "Divergence",
    "Benchmark",
    "Row",
    "Cost",
    "DEFAULT_SCHEMES",
]
