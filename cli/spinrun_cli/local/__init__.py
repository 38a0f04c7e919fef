"""`spinrun local`: a whole run on one machine, as children of one command."""
