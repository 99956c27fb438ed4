"""Use cases of the scheduler: the effect-free core and the shell that carries its effects out."""
