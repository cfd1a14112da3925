"""Tools of development that are not installed."""
