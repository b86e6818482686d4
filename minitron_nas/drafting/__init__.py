"""From a tiny random model of a type that is not known to the first version of its table."""
