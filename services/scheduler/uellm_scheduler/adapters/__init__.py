"""Redis and Triton as the scheduler uses them."""
