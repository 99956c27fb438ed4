"""The batch scheduler: which queries run together, now, so that every promise is kept."""
