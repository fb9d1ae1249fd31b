"""Pictures and tables of results; computes nothing."""
