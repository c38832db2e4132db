"""Everything that is decided before the first step: which module owns which parameter, from names and sizes alone."""
