"""Published metrics on arrays, a file for each kind, without a backbone."""
