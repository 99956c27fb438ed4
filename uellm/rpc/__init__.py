"""What the three services share of gRPC: server bootstrap, interceptors, errors and checks."""
