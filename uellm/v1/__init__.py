"""Generated from `protos/uellm/v1` by `make protos`. Do not edit."""
