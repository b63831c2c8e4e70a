"""Makes the parts of a run from its config, which they never see themselves."""
