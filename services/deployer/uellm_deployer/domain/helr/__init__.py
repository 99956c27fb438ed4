"""HELR: an exact search for the layers' devices. Definitions, and what is exact, in docs/placement.md."""
