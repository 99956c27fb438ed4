"""Predictors that are neural networks: a LoRA-fine-tuned LLM, a MiniLM encoder. Needs torch, transformers and peft."""
