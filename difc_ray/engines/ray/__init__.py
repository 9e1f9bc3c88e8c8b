"""The same algorithm on a Ray cluster: a coordinator actor, one domain worker actor per source domain."""
