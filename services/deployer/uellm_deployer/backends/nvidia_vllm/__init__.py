"""A front that speaks the engine protocol to a model of NVIDIA's vLLM backend beside it (Triton's backend `vllm`)."""
