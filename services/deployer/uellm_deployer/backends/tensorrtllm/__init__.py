"""A front that speaks the engine protocol to a TensorRT-LLM model beside it (Triton's backend `tensorrtllm`)."""
