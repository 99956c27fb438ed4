"""Pure types and algorithms of the scheduler."""
