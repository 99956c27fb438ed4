"""Predictors that are neural networks: a LoRA-fine-tuned LLM, a MiniLM encoder. Needs torch, transformers and peft."""

from uellm_profiler.neural.predictor import load_predictor

__all__ = ["load_predictor"]
